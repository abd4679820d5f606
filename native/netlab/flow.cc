// One process of a ring of bare flows: what the kernel, or OpenSSL on top of it, can do alone.
//   _flow HOST tcp|tls [CONGESTION]
//
// Blocking calls, one thread at each end of each connection, nothing else. On stdin, with a JSON
// object as answer to each line (the first answer, {"port": …}, comes unasked):
//   connect HOST PORT          to the successor; and accepts the predecessor
//   run BYTES START            sends BYTES and receives BYTES, from START (seconds of the
//                              monotonic clock) on: {"seconds": …, "cpu_seconds": …}
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "netlab/flow_tls.h"

namespace decentral::netlab {
namespace {

constexpr size_t kBlock = 512 << 10;  // per call; a chunk of the collectives
constexpr size_t kSource = 64 << 20;  // sent over and over: not from the cache

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

void SleepUntil(double when) {
  timespec at;
  at.tv_sec = static_cast<time_t>(when);
  at.tv_nsec = static_cast<long>((when - static_cast<double>(at.tv_sec)) * 1e9);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) == EINTR) {
  }
}

void Check(bool worked, const char* what) {
  if (!worked) throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

sockaddr_in At(const std::string& host, uint16_t port) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  Check(inet_pton(AF_INET, host.c_str(), &at.sin_addr) == 1, "an IPv4 address is needed");
  return at;
}

class Flow {
 public:
  Flow(const std::string& host, bool tls, std::string congestion)
      : congestion_(std::move(congestion)), source_(kSource, 'x'), sink_(kBlock) {
    if (tls) context_ = MakeTlsContext();
    listener_ = NewSocket();
    sockaddr_in at = At(host, 0);
    socklen_t size = sizeof at;
    auto* address = reinterpret_cast<sockaddr*>(&at);
    Check(bind(listener_, address, sizeof at) == 0 && listen(listener_, 1) == 0, "listen");
    Check(getsockname(listener_, address, &size) == 0, "listen");
    std::printf("{\"port\": %d}\n", ntohs(at.sin_port));
  }

  void Connect(const std::string& host, uint16_t port) {
    const sockaddr_in at = At(host, port);
    out_ = NewSocket();
    Check(connect(out_, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0, "connect");
    in_ = accept(listener_, nullptr, nullptr);
    Check(in_ >= 0, "accept");
    if (context_) {
      // Both at once: the ring is a circle of clients that wait for servers.
      std::thread server([this] { ssl_in_ = Handshake(context_, in_, true); });
      ssl_out_ = Handshake(context_, out_, false);
      server.join();
    }
    std::printf("{\"connected\": true}\n");
  }

  void Run(size_t bytes, double start) {
    Check(in_ >= 0, "connect comes before run");
    SleepUntil(start);
    const double cpu = CpuSeconds();
    std::thread sender([&] {
      for (size_t sent = 0; sent < bytes;) sent += Send(sent, bytes - sent);
    });
    for (size_t got = 0; got < bytes;) got += Receive(bytes - got);
    sender.join();
    std::printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", Now() - start, CpuSeconds() - cpu);
  }

 private:
  int NewSocket() const {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    Check(fd >= 0, "socket");
    if (!congestion_.empty()) {
      Check(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion_.data(),
                       static_cast<socklen_t>(congestion_.size())) == 0,
            "this congestion control");
    }
    return fd;
  }

  size_t Send(size_t at, size_t left) {
    const char* from = source_.data() + at % kSource;
    const size_t size = std::min({kBlock, left, kSource - at % kSource});
    const ssize_t n = ssl_out_ ? SSL_write(ssl_out_, from, static_cast<int>(size))
                               : send(out_, from, size, MSG_NOSIGNAL);
    Check(n > 0, "send");
    return static_cast<size_t>(n);
  }

  size_t Receive(size_t left) {
    const size_t size = std::min(kBlock, left);
    const ssize_t n = ssl_in_ ? SSL_read(ssl_in_, sink_.data(), static_cast<int>(size))
                              : recv(in_, sink_.data(), size, 0);
    Check(n > 0, "receive");
    return static_cast<size_t>(n);
  }

  std::string congestion_;
  std::vector<char> source_, sink_;
  SSL_CTX* context_ = nullptr;  // these live as long as the process
  SSL *ssl_in_ = nullptr, *ssl_out_ = nullptr;
  int listener_ = -1, in_ = -1, out_ = -1;
};

int Main(const std::vector<std::string>& words) {
  if (words.size() < 2 || words.size() > 3 || (words[1] != "tcp" && words[1] != "tls")) {
    throw std::runtime_error("usage: _flow HOST tcp|tls [CONGESTION]");
  }
  Flow flow(words[0], words[1] == "tls", words.size() > 2 ? words[2] : "");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line); std::fflush(stdout)) {
    std::istringstream in(line);
    std::string verb, host;
    uint16_t port = 0;
    size_t bytes = 0;
    double start = 0;
    in >> verb;
    if (verb == "connect" && in >> host >> port) {
      flow.Connect(host, port);
    } else if (verb == "run" && in >> bytes >> start) {
      flow.Run(bytes, start);
    } else {
      throw std::runtime_error("what does '" + line + "' mean?");
    }
  }
  return 0;
}

}  // namespace
}  // namespace decentral::netlab

int main(int argc, char** argv) {
  try {
    return decentral::netlab::Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flow: %s\n", error.what());
    return 1;
  }
}
