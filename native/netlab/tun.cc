#include "netlab/tun.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace decentral::netlab {
namespace {

constexpr char kDevice[] = "wan0";
constexpr int kMtu = 1500;
// The device's own ring: only the lab's queues shall be what overflows.
constexpr int kRingPackets = 8192;

[[noreturn]] void Fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

class Descriptor {
 public:
  Descriptor(int fd, const std::string& what) : fd_(fd) {
    if (fd_ < 0) Fail(what);
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

void Configure(int fd, unsigned long request, ifreq* about, const char* what) {
  if (ioctl(fd, request, about) != 0) Fail(what);
}

sockaddr Inet(uint32_t address) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = address;
  sockaddr out;
  std::memcpy(&out, &in, sizeof out);
  return out;
}

int MakeDevice(uint32_t address) {
  Descriptor tun(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "cannot open /dev/net/tun");
  ifreq about{};
  std::strncpy(about.ifr_name, kDevice, IFNAMSIZ - 1);
  about.ifr_flags = IFF_TUN | IFF_NO_PI;
  Configure(tun.get(), TUNSETIFF, &about, "cannot make a TUN device");
  Descriptor any(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "cannot open a socket");
  about.ifr_mtu = kMtu;
  Configure(any.get(), SIOCSIFMTU, &about, "cannot set the MTU");
  about.ifr_qlen = kRingPackets;
  Configure(any.get(), SIOCSIFTXQLEN, &about, "cannot set the queue length");
  about.ifr_addr = Inet(address);
  Configure(any.get(), SIOCSIFADDR, &about, "cannot set the address");
  about.ifr_netmask = Inet(htonl(0xffffff00));
  Configure(any.get(), SIOCSIFNETMASK, &about, "cannot set the netmask");
  about.ifr_flags = IFF_UP | IFF_RUNNING;
  Configure(any.get(), SIOCSIFFLAGS, &about, "cannot bring the device up");
  return tun.release();
}

}  // namespace

uint32_t ParseAddress(const std::string& address) {
  in_addr parsed;
  if (inet_pton(AF_INET, address.c_str(), &parsed) != 1) {
    throw std::runtime_error("'" + address + "' is no IPv4 address");
  }
  return parsed.s_addr;
}

int OpenTun(const HostSpec& host) {
  const uint32_t address = ParseAddress(host.address);
  const std::string path =
      host.netns.find('/') == std::string::npos ? "/run/netns/" + host.netns : host.netns;
  Descriptor here(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "cannot open our namespace");
  Descriptor there(open(path.c_str(), O_RDONLY | O_CLOEXEC), "cannot open " + path);
  if (setns(there.get(), CLONE_NEWNET) != 0) Fail("cannot enter " + path);
  int tun = -1;
  std::string problem;
  try {
    tun = MakeDevice(address);
  } catch (const std::runtime_error& error) {
    problem = error.what();
  }
  if (setns(here.get(), CLONE_NEWNET) != 0) Fail("cannot leave " + path);
  if (!problem.empty()) throw std::runtime_error("in " + host.netns + " " + problem);
  return tun;
}

}  // namespace decentral::netlab
