// Connected sockets and the bytes in them, for tests of what pumps bytes.
#pragma once

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "io/socket.h"
#include "tests/endpoint_helper.h"

namespace decentral::test {

inline std::string Pattern(size_t size, uint32_t seed) {
  std::string out(size, '\0');
  uint32_t x = seed * 2654435761u + 1;
  for (char& c : out) {
    x = x * 1664525u + 1013904223u;
    c = static_cast<char>(x >> 24);
  }
  return out;
}

inline void WriteAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      pollfd waiter{fd, POLLOUT, 0};
      CHECK(poll(&waiter, 1, 10'000) == 1);
      continue;
    }
    CHECK(n > 0);
    at += n;
  }
}

// Up to `size` bytes, or less at the end.
inline std::string ReadUpTo(int fd, size_t size) {
  std::string out;
  std::string buffer(64 << 10, '\0');
  while (out.size() < size) {
    pollfd waiter{fd, POLLIN, 0};
    CHECK(poll(&waiter, 1, 10'000) == 1);
    const ssize_t n = recv(fd, buffer.data(), std::min(buffer.size(), size - out.size()), 0);
    if (n < 0 && errno == EAGAIN) continue;
    if (n <= 0) break;
    out.append(buffer, 0, n);
  }
  return out;
}

inline bool Ends(int fd) { return ReadUpTo(fd, SIZE_MAX).empty(); }

inline std::pair<Fd, Fd> TcpPair() {
  const Fd listener = OpenListener("127.0.0.1", 0);
  const SockAddr at = LocalAddress(listener.get());
  Fd near = StartConnect(at, 0);
  Fd far;
  SockAddr from;
  CHECK(Eventually([&] { return static_cast<bool>(far = AcceptOne(listener.get(), &from)); }));
  return {std::move(near), std::move(far)};
}

}  // namespace decentral::test
