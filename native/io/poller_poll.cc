// poll(2): for systems without epoll. Linear in the number of descriptors, which are few.
#include <poll.h>

#include <unordered_map>

#include "io/poller.h"
#include "io/reactor.h"

namespace decentral {
namespace {

class PollPoller : public Poller {
 public:
  void Add(int fd, uint32_t events, uint64_t token) override {
    index_[fd] = polls_.size();
    polls_.push_back({fd, Interest(events), 0});
    tokens_.push_back(token);
  }
  void Modify(int fd, uint32_t events, uint64_t token) override {
    const auto at = index_.find(fd);
    if (at == index_.end()) return;
    polls_[at->second].events = Interest(events);
    tokens_[at->second] = token;
  }
  void Remove(int fd) override {
    const auto at = index_.find(fd);
    if (at == index_.end()) return;
    const size_t hole = at->second;
    index_.erase(at);
    if (hole + 1 != polls_.size()) {
      polls_[hole] = polls_.back();
      tokens_[hole] = tokens_.back();
      index_[polls_[hole].fd] = hole;
    }
    polls_.pop_back();
    tokens_.pop_back();
  }

  void Wait(int timeout_ms, std::vector<Ready>* out) override {
    out->clear();
    if (poll(polls_.data(), polls_.size(), timeout_ms) <= 0) return;
    for (size_t i = 0; i < polls_.size(); ++i) {
      uint32_t what = 0;
      if (polls_[i].revents & (POLLIN | POLLERR | POLLHUP | POLLNVAL)) what |= Reactor::kRead;
      if (polls_[i].revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL)) what |= Reactor::kWrite;
      if (what != 0) out->push_back({tokens_[i], what});
    }
  }

 private:
  static short Interest(uint32_t events) {
    short interest = 0;
    if (events & Reactor::kRead) interest |= POLLIN;
    if (events & Reactor::kWrite) interest |= POLLOUT;
    return interest;
  }

  std::vector<pollfd> polls_;
  std::vector<uint64_t> tokens_;           // parallel to polls_
  std::unordered_map<int, size_t> index_;  // fd -> position in both
};

}  // namespace

std::unique_ptr<Poller> Poller::Poll() { return std::make_unique<PollPoller>(); }
std::unique_ptr<Poller> Poller::Best() {
#ifdef DECENTRAL_USE_POLL
  return Poll();
#else
  return Epoll();
#endif
}
#ifndef __linux__
std::unique_ptr<Poller> Poller::Epoll() { return Poll(); }
#endif

}  // namespace decentral
