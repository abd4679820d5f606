// TCP sockets: non-blocking, close-on-exec, in the fork table.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/fd.h"

namespace decentral {

struct SockAddr {
  sockaddr_storage storage{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  uint16_t port() const;
  void set_port(uint16_t port);
  // "192.0.2.1:4242", "[2001:db8::1]:4242"; an IPv4 address mapped into IPv6 prints as IPv4.
  std::string ToString() const;
  // Same host and port, mapped addresses included.
  bool operator==(const SockAddr& other) const { return ToString() == other.ToString(); }
};

std::string HostPort(const std::string& host, uint16_t port);

// An IPv4 or IPv6 literal ("::1", "[::1]", "fe80::1%eth0"); empty for a name.
std::optional<SockAddr> ParseLiteral(const std::string& host, uint16_t port);
// Asks the system's resolver and blocks. Empty: *why says so in words.
std::vector<SockAddr> Resolve(const std::string& host, uint16_t port, std::string* why);

// Listens, having probed without SO_REUSEPORT that nobody else does. Throws Error.
Fd OpenListener(const std::string& host, uint16_t port);
// A connection that waits to be accepted; empty with errno set where there is none.
Fd AcceptOne(int listener, SockAddr* from);
// Starts to connect, from local_port if that is not 0. Empty: errno says why.
Fd StartConnect(const SockAddr& to, uint16_t local_port);
// What a connect that reported "writable" came to: 0 or an errno.
int ConnectResult(int fd);

// Two connected stream sockets of this machine; both empty: errno says why.
std::pair<Fd, Fd> LocalPair();

SockAddr LocalAddress(int fd);
// Closing it resets the connection: what is unsent will not be, and its ports are free at once. A
// punch may need the very same pair.
void ResetOnClose(int fd);

// For send: no signal when the other end is gone.
#ifdef MSG_NOSIGNAL
inline constexpr int kNoSignal = MSG_NOSIGNAL;
#else
inline constexpr int kNoSignal = 0;  // SO_NOSIGPIPE is set, and our threads block signals
#endif

struct LinkSocketOptions {
  int silence_limit_ms;  // TCP_USER_TIMEOUT lies above it
  bool control;          // keep the kernel's queue short, so that priorities mean something
};
void TuneLinkSocket(int fd, const LinkSocketOptions& options);
// On top, for bulk: which congestion control (empty: the system's).
void TuneBulkSocket(int fd, const std::string& congestion);
std::string Congestion(int fd);  // "": this system does not say
// How much of what is not yet on the wire the kernel takes, of a TCP connection or a LocalPair.
// What it has not taken can still be overtaken, or take another stream.
void LimitUnsent(int fd, int bytes);
// Empty if this system has that congestion control; else why not, in a sentence.
std::string CongestionError(const std::string& congestion);

}  // namespace decentral
