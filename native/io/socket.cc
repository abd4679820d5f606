#include "io/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/types.h"

namespace decentral {
namespace {

void Set(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof value);  // tuning only: a refusal is no error
}

Fd NewSocket(int family) {
  return Fd::Open([family] {
#ifdef __linux__
    return socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
#else
    const int fd = socket(family, SOCK_STREAM, IPPROTO_TCP);
    if (fd >= 0) {
      fcntl(fd, F_SETFD, FD_CLOEXEC);
      fcntl(fd, F_SETFL, O_NONBLOCK);
    }
    return fd;
#endif
  });
}

// Bound and listening; empty: errno says why.
Fd BindAndListen(const SockAddr& address, bool reuse_port) {
  Fd fd = NewSocket(address.family());
  if (!fd) return fd;
  Set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (reuse_port) Set(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1);
  // "::" means every address, of both families.
  if (address.family() == AF_INET6) Set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(fd.get(), address.get(), address.size) != 0 || listen(fd.get(), 512) != 0) fd.reset();
  return fd;
}

}  // namespace

uint16_t SockAddr::port() const {
  if (family() == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(storage).sin6_port);
  return ntohs(reinterpret_cast<const sockaddr_in&>(storage).sin_port);
}

void SockAddr::set_port(uint16_t port) {
  if (family() == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(storage).sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in&>(storage).sin_port = htons(port);
  }
}

std::string HostPort(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos && host.front() != '[';
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string SockAddr::ToString() const {
  char text[INET6_ADDRSTRLEN] = "?";
  if (family() == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
      inet_ntop(AF_INET, v6.sin6_addr.s6_addr + 12, text, sizeof text);
    } else {
      inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    }
  } else if (family() == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(storage).sin_addr, text, sizeof text);
  }
  return HostPort(text, port());
}

static std::vector<SockAddr> Lookup(const std::string& host, uint16_t port, int flags,
                                    std::string* why) {
  std::string bare = host;
  if (bare.size() > 2 && bare.front() == '[' && bare.back() == ']') {
    bare = bare.substr(1, bare.size() - 2);
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(bare.c_str(), std::to_string(port).c_str(), &hints, &found);
  std::vector<SockAddr> out;
  if (rc != 0) {
    if (why) *why = gai_strerror(rc);
    return out;
  }
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    SockAddr address;
    std::memcpy(&address.storage, one->ai_addr, one->ai_addrlen);
    address.size = one->ai_addrlen;
    out.push_back(address);
  }
  freeaddrinfo(found);
  return out;
}

std::optional<SockAddr> ParseLiteral(const std::string& host, uint16_t port) {
  if (host.empty()) return std::nullopt;
  auto found = Lookup(host, port, AI_NUMERICHOST, nullptr);
  if (found.empty()) return std::nullopt;
  return found.front();
}

std::vector<SockAddr> Resolve(const std::string& host, uint16_t port, std::string* why) {
  return Lookup(host, port, AI_ADDRCONFIG, why);
}

Fd OpenListener(const std::string& host, uint16_t port) {
  std::string why = "no such host";
  std::vector<SockAddr> addresses;
  if (auto literal = ParseLiteral(host, port)) {
    addresses.push_back(*literal);
  } else {
    addresses = Resolve(host, port, &why);
  }
  if (addresses.empty()) {
    throw Error(ErrorKind::kConfig, "listen", "cannot listen on '" + host + "': " + why);
  }
  SockAddr address = addresses.front();
  // Punches need SO_REUSEPORT on the listener, but it would let a second process of this user
  // share the port, each getting some of the connections. A probe without it finds the other.
  Fd listener;
  for (int attempt = 0; attempt < 8 && !listener; ++attempt) {
    address.set_port(port);
    {
      const Fd probe = BindAndListen(address, false);
      if (!probe) break;
      address = LocalAddress(probe.get());  // port 0 became a free one
    }
    listener = BindAndListen(address, true);
    if (port != 0) break;
  }
  if (!listener) {
    const int error = errno;
    const std::string place = HostPort(host, port);
    throw Error(ErrorKind::kConfig, "listen",
                error == EADDRINUSE ? place + " is in use by another process"
                                    : "cannot listen on " + place + ": " + std::strerror(error));
  }
  return listener;
}

// A listener of both families shows IPv4 peers as ::ffff:a.b.c.d; everybody else calls them
// a.b.c.d.
static void Unmap(SockAddr* address) {
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address->storage);
  if (address->family() != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) return;
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = v6.sin6_port;
  std::memcpy(&v4.sin_addr, v6.sin6_addr.s6_addr + 12, sizeof v4.sin_addr);
  address->storage = {};
  std::memcpy(&address->storage, &v4, sizeof v4);
  address->size = sizeof v4;
}

Fd AcceptOne(int listener, SockAddr* from) {
  Fd fd = Fd::Open([listener, from] {
    from->size = sizeof from->storage;
    auto* address = reinterpret_cast<sockaddr*>(&from->storage);
#ifdef __linux__
    return accept4(listener, address, &from->size, SOCK_CLOEXEC | SOCK_NONBLOCK);
#else
    const int fd = accept(listener, address, &from->size);
    if (fd >= 0) {
      fcntl(fd, F_SETFD, FD_CLOEXEC);
      fcntl(fd, F_SETFL, O_NONBLOCK);
    }
    return fd;
#endif
  });
  if (fd) Unmap(from);
  return fd;
}

Fd StartConnect(const SockAddr& to, uint16_t local_port) {
  Fd fd = NewSocket(to.family());
  if (!fd) return fd;
  if (local_port != 0) {
    Set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    Set(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1);
    SockAddr any;
    any.storage.ss_family = static_cast<sa_family_t>(to.family());
    any.size = to.size;
    any.set_port(local_port);
    if (bind(fd.get(), any.get(), any.size) != 0) {
      fd.reset();
      return fd;
    }
  }
  if (connect(fd.get(), to.get(), to.size) != 0 && errno != EINPROGRESS) fd.reset();
  return fd;
}

int ConnectResult(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

std::pair<Fd, Fd> LocalPair() {
  auto pair = Fd::OpenPair([](int ends[2]) {
#ifdef __linux__
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends);
#else
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return -1;
    for (int i = 0; i < 2; ++i) {
      fcntl(ends[i], F_SETFD, FD_CLOEXEC);
      fcntl(ends[i], F_SETFL, O_NONBLOCK);
#ifdef SO_NOSIGPIPE
      Set(ends[i], SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
    }
    return 0;
#endif
  });
  if (!pair.first || !pair.second) return {};
  return pair;
}

SockAddr LocalAddress(int fd) {
  SockAddr address;
  address.size = sizeof address.storage;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.size);
  return address;
}

void ResetOnClose(int fd) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

void TuneLinkSocket(int fd, const LinkSocketOptions& options) {
  Set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  Set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  const int seconds = std::max(1, options.silence_limit_ms / 1000);
#ifdef TCP_KEEPIDLE
  Set(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds);
#endif
#ifdef TCP_KEEPINTVL
  Set(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds);
#endif
#ifdef TCP_KEEPCNT
  Set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
#endif
#ifdef TCP_USER_TIMEOUT
  Set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 2 * options.silence_limit_ms + 1000);
#endif
  // For the home router's queues, where they look: what is short goes before what is long.
  const int service = options.control ? IPTOS_LOWDELAY : IPTOS_THROUGHPUT;
  Set(fd, IPPROTO_IP, IP_TOS, service);
  Set(fd, IPPROTO_IPV6, IPV6_TCLASS, service);
  if (options.control) LimitUnsent(fd, 64 << 10);
#ifdef SO_NOSIGPIPE
  Set(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

void TuneBulkSocket(int fd, const std::string& congestion) {
#ifdef TCP_CONGESTION
  if (!congestion.empty()) {
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion.data(),
               static_cast<socklen_t>(congestion.size()));
  }
#endif
  (void)fd, (void)congestion;
}

std::string Congestion(int fd) {
#ifdef TCP_CONGESTION
  char name[32] = {};
  socklen_t size = sizeof name - 1;
  if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) == 0) return name;
#endif
  (void)fd;
  return "";
}

void LimitUnsent(int fd, int bytes) {
#ifdef TCP_NOTSENT_LOWAT
  if (setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof bytes) == 0) return;
#endif
  // A LocalPair's end: all that it holds is unsent. The kernel doubles what it is told.
  if (LocalAddress(fd).family() == AF_UNIX) {
    Set(fd, SOL_SOCKET, SO_SNDBUF, std::max(bytes, 64 << 10) / 2);
  }
}

std::string CongestionError(const std::string& congestion) {
  if (congestion.empty()) return "";
#ifdef TCP_CONGESTION
  const Fd probe = NewSocket(AF_INET);
  if (probe && setsockopt(probe.get(), IPPROTO_TCP, TCP_CONGESTION, congestion.data(),
                          static_cast<socklen_t>(congestion.size())) == 0) {
    return "";
  }
  return "this system has no congestion control '" + congestion +
         "' (see net.ipv4.tcp_available_congestion_control)";
#else
  return "this system does not let a program choose its congestion control";
#endif
}

}  // namespace decentral
