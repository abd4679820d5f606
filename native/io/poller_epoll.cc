#ifdef __linux__

#include <sys/epoll.h>

#include <cerrno>

#include "core/types.h"
#include "io/fd.h"
#include "io/poller.h"
#include "io/reactor.h"

namespace decentral {
namespace {

class EpollPoller : public Poller {
 public:
  EpollPoller() : epoll_(Fd::Open([] { return epoll_create1(EPOLL_CLOEXEC); })) {
    if (!epoll_) throw Error(ErrorKind::kConfig, "start", "cannot make an epoll descriptor");
  }
  void Add(int fd, uint32_t events, uint64_t token) override {
    Control(EPOLL_CTL_ADD, fd, events, token);
  }
  void Modify(int fd, uint32_t events, uint64_t token) override {
    Control(EPOLL_CTL_MOD, fd, events, token);
  }
  void Remove(int fd) override { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

  void Wait(int timeout_ms, std::vector<Ready>* out) override {
    epoll_event events[64];
    const int n = epoll_wait(epoll_.get(), events, 64, timeout_ms);
    out->clear();
    for (int i = 0; i < n; ++i) {
      uint32_t what = 0;
      if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) what |= Reactor::kRead;
      if (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) what |= Reactor::kWrite;
      out->push_back({events[i].data.u64, what});
    }
  }

 private:
  void Control(int operation, int fd, uint32_t events, uint64_t token) {
    epoll_event event{};
    if (events & Reactor::kRead) event.events |= EPOLLIN;
    if (events & Reactor::kWrite) event.events |= EPOLLOUT;
    event.data.u64 = token;
    epoll_ctl(epoll_.get(), operation, fd, &event);
  }

  Fd epoll_;
};

}  // namespace

std::unique_ptr<Poller> Poller::Epoll() { return std::make_unique<EpollPoller>(); }

}  // namespace decentral

#endif  // __linux__
