#include "io/fd.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>

namespace decentral {
namespace {

std::atomic<bool> open_fds[Fd::kMaxFd];
std::atomic<int> highest_fd{-1};
std::atomic<uint32_t> generation{0};

std::mutex& TheForkMutex() {
  static auto* mutex = new std::mutex;  // outlives every static destructor
  return *mutex;
}

void BeforeFork() { TheForkMutex().lock(); }
void InParent() { TheForkMutex().unlock(); }

// Only async-signal-safe calls: other threads of the parent may have held any lock. close() on a
// copy says nothing to the other end; the parent's own descriptor keeps the connection alive.
void InChild() {
  const int last = highest_fd.load();
  for (int fd = 0; fd <= last; ++fd) {
    if (open_fds[fd].exchange(false)) close(fd);
  }
  generation.fetch_add(1);
  TheForkMutex().unlock();
}

const int registered = pthread_atfork(BeforeFork, InParent, InChild);

}  // namespace

uint32_t ForkGeneration() { return generation.load(); }

std::mutex& Fd::ForkMutex() {
  (void)registered;
  return TheForkMutex();
}

Fd Fd::Adopt(int fd) {
  if (fd >= kMaxFd) {
    close(fd);
    errno = EMFILE;
    return Fd();
  }
  if (fd < 0) return Fd();
  open_fds[fd].store(true);
  int highest = highest_fd.load();
  while (fd > highest && !highest_fd.compare_exchange_weak(highest, fd)) {
  }
  return Fd(fd);
}

void Fd::reset() {
  if (fd_ < 0) return;
  const int saved = errno;
  // Out of the table before it is closed, so that a fork between the two closes nobody else's.
  std::lock_guard<std::mutex> no_fork(TheForkMutex());
  open_fds[fd_].store(false);
  close(fd_);
  fd_ = -1;
  errno = saved;
}

}  // namespace decentral
