// Endpoints in one process, and the waiting that tests of them need: for an event, never for a
// fixed time.
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "link/endpoint.h"
#include "tests/check.h"

namespace decentral::test {

// Some tests are built a second time, with every link on a carrier.
#ifdef DECENTRAL_TEST_OVER_CARRIERS
inline constexpr bool kOverCarriers = true;
#else
inline constexpr bool kOverCarriers = false;
#endif
// The first carrier starts a thread, which stays.
inline constexpr int kCarrierThreadFds = kOverCarriers ? 2 : 0;

inline EndpointOptions Options(uint8_t seed) {
  EndpointOptions options;
  options.seed.fill(seed);
  return options;
}

// An endpoint with its events in order.
class Node {
 public:
  explicit Node(EndpointOptions options) : endpoint(options) {}
  explicit Node(uint8_t seed) : endpoint(Options(seed)) {}

  // The next event of one of these types; others are kept for later. Aborts after the limit.
  Event Wait(Event::Type type, int limit_ms = 10'000) {
    Event event;
    if (!WaitFor(type, limit_ms, &event)) {
      std::fprintf(stderr, "no event of type %d; pending:", static_cast<int>(type));
      for (auto& e : pending) {
        std::fprintf(stderr, " [%d %s]", static_cast<int>(e.type), e.error.text.c_str());
      }
      std::fprintf(stderr, "\n");
      CHECK(false);
    }
    return event;
  }
  bool WaitFor(Event::Type type, int limit_ms, Event* out) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
    while (true) {
      for (auto& event : endpoint.TakeEvents()) pending.push_back(std::move(event));
      for (auto at = pending.begin(); at != pending.end(); ++at) {
        if (at->type == type) {
          *out = std::move(*at);
          pending.erase(at);
          return true;
        }
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                            deadline - std::chrono::steady_clock::now())
                            .count();
      if (left <= 0) return false;
      pollfd waiter{endpoint.event_fd(), POLLIN, 0};
      poll(&waiter, 1, static_cast<int>(left));
    }
  }
  uint64_t Dial(uint16_t port, const std::string& host = "127.0.0.1") {
    return endpoint.Dial({.host = host, .port = port, .carrier = kOverCarriers});
  }

  Endpoint endpoint;
  std::deque<Event> pending;
};

// A link between two nodes, seen from both.
struct Pair {
  LinkId a = 0, b = 0;  // a dialled b
};
inline Pair Connect(Node& a, Node& b, uint16_t port, bool admit = true) {
  a.Dial(port);
  const Event up_a = a.Wait(Event::Type::kLinkUp);
  const Event up_b = b.Wait(Event::Type::kLinkUp);
  if (admit) {
    b.endpoint.Admit(up_b.link);
    a.endpoint.Admit(up_a.link);
  }
  return {up_a.link, up_b.link};
}

// Spins on a condition that another thread makes true.
template <typename F>
bool Eventually(F condition, int limit_ms = 10'000) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    poll(nullptr, 0, 2);
  }
  return true;
}

// A plain blocking socket that knows nothing of our protocol.
class RawSocket {
 public:
  explicit RawSocket(int fd) : fd_(fd) {}
  RawSocket(RawSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~RawSocket() { Close(); }
  static RawSocket Connect(uint16_t port) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to = Loopback(port);
    CHECK(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
    return RawSocket(fd);
  }
  static RawSocket Listen(uint16_t* port, int backlog = 16) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at = Loopback(0);
    CHECK(bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
    CHECK(listen(fd, backlog) == 0);
    socklen_t size = sizeof at;
    getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size);
    *port = ntohs(at.sin_port);
    return RawSocket(fd);
  }
  static sockaddr_in Loopback(uint16_t port) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(port);
    return at;
  }
  RawSocket Accept() { return RawSocket(accept(fd_, nullptr, nullptr)); }
  void Write(const std::string& bytes) {
    (void)!send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // True if the other end closes within the limit (whatever it sends first is dropped).
  bool SeesClose(int limit_ms = 5000) {
    char waste[4096];
    while (true) {
      pollfd waiter{fd_, POLLIN, 0};
      if (poll(&waiter, 1, limit_ms) <= 0) return false;
      if (recv(fd_, waste, sizeof waste, 0) <= 0) return true;
    }
  }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

inline int OpenFds() {
  int count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

}  // namespace decentral::test
