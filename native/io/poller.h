// Which descriptors are ready: the part of the reactor that differs between systems.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace decentral {

struct Ready {
  uint64_t token;
  uint32_t events;  // Reactor::kRead | Reactor::kWrite; an error or hang-up sets both
};

// Level-triggered. Throws Error(kConfig) where the system runs out of descriptors.
class Poller {
 public:
  virtual ~Poller() = default;
  virtual void Add(int fd, uint32_t events, uint64_t token) = 0;
  virtual void Modify(int fd, uint32_t events, uint64_t token) = 0;
  virtual void Remove(int fd) = 0;
  // timeout_ms < 0: until something is ready.
  virtual void Wait(int timeout_ms, std::vector<Ready>* out) = 0;

  static std::unique_ptr<Poller> Epoll();  // Linux only; elsewhere the same as Poll()
  static std::unique_ptr<Poller> Poll();
  // Epoll where there is one, unless built with DECENTRAL_USE_POLL.
  static std::unique_ptr<Poller> Best();
};

}  // namespace decentral
