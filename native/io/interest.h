// One descriptor in a reactor, and what it waits for: for pumps, which often wait for neither.
//
// A hang-up is always reported, wanted or not, again and again. Where nothing can be done about it
// yet, Park: nothing on such a descriptor blocks any more, so there is nothing to wait for.
#pragma once

#include <poll.h>

#include <functional>
#include <utility>

#include "io/reactor.h"

namespace decentral {

class Interest {
 public:
  using Callback = std::function<void(uint32_t events, bool hung_up)>;

  // The callback may destroy the Interest.
  Interest(Reactor* loop, int fd, Callback callback) : loop_(loop), fd_(fd) {
    loop_->Add(fd, 0, [this, callback = std::move(callback)](uint32_t events) {
      // More than was asked for: a hang-up, or an earlier callback of this turn has asked for less.
      const bool hung_up = (events & ~wanted_) != 0 && HungUp();
      events &= wanted_;
      if (events != 0 || hung_up) callback(events, hung_up);
    });
  }
  ~Interest() { Park(); }
  Interest(const Interest&) = delete;

  void Set(uint32_t events) {
    if (parked_ || events == wanted_) return;
    wanted_ = events;
    loop_->Modify(fd_, events);
  }
  void Park() {
    if (!parked_) loop_->Remove(fd_);
    parked_ = true;
  }
  bool parked() const { return parked_; }

 private:
  bool HungUp() const {
    pollfd waiter{fd_, 0, 0};
    return poll(&waiter, 1, 0) > 0 && (waiter.revents & (POLLHUP | POLLERR)) != 0;
  }

  Reactor* const loop_;
  const int fd_;
  uint32_t wanted_ = 0;
  bool parked_ = false;
};

}  // namespace decentral
