// A network between namespaces, with delay, rate and loss, in one process (Linux, root):
//   _netlab [--seed N] [--packets N] NETNS=ADDRESS NETNS=ADDRESS ...
//
//   netns h0          netns h1          netns h2
//    wan0 (TUN)        wan0 (TUN)        wan0 (TUN)     MTU 1500, one IP packet per read
//      │                 │                 │
//      └───────── one thread, epoll ───────┘            line_switch.h: when, and whether, each
//                        ▲                              packet comes out
//        commands.h on stdin, answers on stdout; the end of stdin ends it
//
// Says "ready" once the devices are up. Times are good to about 0.1 ms on an idle core.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "netlab/commands.h"
#include "netlab/line_switch.h"
#include "netlab/tun.h"

namespace decentral::netlab {
namespace {

constexpr int kReadsPerTurn = 64;  // per host, so that one sender does not delay the others
constexpr size_t kMaxCommand = 4096;

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

class Lab {
 public:
  Lab(std::vector<int> tuns, LineSwitch lines) : tuns_(std::move(tuns)), lines_(std::move(lines)) {
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (epoll_ < 0 || timer_ < 0) throw std::runtime_error("epoll and timerfd are needed");
    for (size_t host = 0; host < tuns_.size(); ++host) Watch(tuns_[host], static_cast<int>(host));
    Watch(timer_, kTimer);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    Watch(STDIN_FILENO, kStdin);
  }

  void Run() {
    std::vector<epoll_event> ready(tuns_.size() + 2);
    while (true) {
      const int count = epoll_wait(epoll_, ready.data(), static_cast<int>(ready.size()), -1);
      if (count < 0 && errno != EINTR) throw std::runtime_error(std::strerror(errno));
      for (int i = 0; i < count; ++i) {
        const int who = static_cast<int>(ready[i].data.u32);
        if (who >= 0) {
          ReadHost(who);
        } else if (who == kStdin && !ReadCommands()) {
          return;
        } else if (who == kTimer) {
          uint64_t times;
          if (read(timer_, &times, sizeof times) > 0) armed_ = INT64_MAX;
        }
      }
      Deliver();
      ArmTimer();
    }
  }

 private:
  static constexpr int kTimer = -1, kStdin = -2;

  void Watch(int fd, int who) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = static_cast<uint32_t>(who);
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) {
      throw std::runtime_error(std::string("cannot wait for a descriptor: ") +
                               std::strerror(errno));
    }
  }

  void ReadHost(int host) {
    for (int i = 0; i < kReadsPerTurn; ++i) {
      const ssize_t size = read(tuns_[host], lines_.Buffer(), kMaxPacket);
      if (size <= 0) return;
      lines_.Arrive(host, static_cast<size_t>(size), NowNs());
    }
  }

  void Deliver() {
    LineSwitch::Delivery packet;
    while (lines_.NextDelivery(NowNs(), &packet)) {
      // A host that is short of memory loses the packet, as behind any other line.
      if (write(tuns_[packet.to], packet.data, packet.size) < 0 && errno == EBADFD) {
        throw std::runtime_error("a TUN device is gone");
      }
    }
  }

  void ArmTimer() {
    const int64_t next = lines_.NextEvent();
    if (next >= armed_ || next == INT64_MAX) return;  // an early alarm harms nobody
    itimerspec when{};
    when.it_value.tv_sec = next / 1'000'000'000;
    when.it_value.tv_nsec = next % 1'000'000'000;
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
    armed_ = next;
  }

  bool ReadCommands() {  // false: stdin has ended
    char some[kMaxCommand];
    const ssize_t size = read(STDIN_FILENO, some, sizeof some);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (size > 0) typed_.append(some, static_cast<size_t>(size));
    for (size_t end; (end = typed_.find('\n')) != std::string::npos; typed_.erase(0, end + 1)) {
      std::printf("%s\n", Execute(lines_, typed_.substr(0, end)).c_str());
    }
    std::fflush(stdout);
    return typed_.size() < kMaxCommand;
  }

  std::vector<int> tuns_;
  LineSwitch lines_;
  int epoll_ = -1, timer_ = -1;
  int64_t armed_ = INT64_MAX;
  std::string typed_;
};

int Main(const std::vector<std::string>& arguments) {
  std::vector<HostSpec> hosts;
  uint64_t seed = 1;
  size_t packets = 1 << 16;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const size_t equals = word.find('=');
    if ((word == "--seed" || word == "--packets") && i + 1 < arguments.size()) {
      const uint64_t value = std::strtoull(arguments[++i].c_str(), nullptr, 10);
      word == "--seed" ? seed = value : packets = value;
    } else if (word.rfind("--", 0) != 0 && equals != std::string::npos) {
      hosts.push_back({word.substr(0, equals), word.substr(equals + 1)});
    } else {
      throw std::runtime_error("usage: _netlab [--seed N] [--packets N] NETNS=ADDRESS ...");
    }
  }
  if (hosts.size() < 2 || packets < 2) throw std::runtime_error("a network needs two hosts");
  std::vector<uint32_t> addresses;
  std::vector<int> tuns;
  for (const HostSpec& host : hosts) {
    addresses.push_back(ParseAddress(host.address));
    tuns.push_back(OpenTun(host));
  }
  setpriority(PRIO_PROCESS, 0, -15);  // be on time also where the machine is busy
  Lab lab(std::move(tuns), LineSwitch(std::move(addresses), packets, seed));
  std::printf("ready\n");
  std::fflush(stdout);
  lab.Run();
  return 0;
}

}  // namespace
}  // namespace decentral::netlab

int main(int argc, char** argv) {
  try {
    return decentral::netlab::Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "netlab: %s\n", error.what());
    return 1;
  }
}
