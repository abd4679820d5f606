// Descriptors that a forked child does not keep.
//
// A DataLoader worker is a fork of the trainer. Had it copies of our sockets, the kernel would
// send no FIN when the trainer is killed, and the other peers would take the dead for slow. So
// every descriptor is in a table that pthread_atfork's child handler walks, closing all.
#pragma once

#include <cerrno>
#include <cstdint>
#include <mutex>
#include <utility>

namespace decentral {

// Grows by one in a process each time that it is born by fork.
uint32_t ForkGeneration();

class Fd {
 public:
  static constexpr int kMaxFd = 65536;  // the table's size; beyond, Open fails with EMFILE

  Fd() = default;
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  // Runs `open` (which returns a new descriptor or -1) so that no fork falls between the
  // descriptor's birth and its entry in the table. errno is kept.
  template <typename F>
  static Fd Open(F&& open) {
    std::lock_guard<std::mutex> no_fork(ForkMutex());
    return Adopt(open());
  }

  // The same for calls that make two: `open` fills both and returns 0, or -1.
  template <typename F>
  static std::pair<Fd, Fd> OpenPair(F&& open) {
    int ends[2] = {-1, -1};
    std::lock_guard<std::mutex> no_fork(ForkMutex());
    if (open(ends) != 0) return {};
    return {Adopt(ends[0]), Adopt(ends[1])};
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();  // closes

 private:
  static std::mutex& ForkMutex();
  static Fd Adopt(int fd);
  explicit Fd(int fd) : fd_(fd) {}

  int fd_ = -1;
};

}  // namespace decentral
