#include "io/reactor.h"

#include <signal.h>

#include <algorithm>
#include <condition_variable>

namespace decentral {

Reactor::Reactor(std::unique_ptr<Poller> poller) : poller_(std::move(poller)) {
  poller_->Add(wakeup_.fd(), kRead, Token(wakeup_.fd(), 0));
}

Reactor::~Reactor() { Stop(); }

void Reactor::Start() {
  // A new thread inherits the mask: signals belong to the program's own threads, not to ours.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Loop(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Reactor::Stop() {
  stop_.store(true);
  wakeup_.Set();
  if (thread_.joinable()) thread_.join();
}

void Reactor::Post(std::function<void()> work) {
  bool wake = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    posted_.push_back(std::move(work));
    wake = !wake_pending_ && !InLoop();  // the loop looks at posted_ before it waits
    if (wake) wake_pending_ = true;
  }
  if (wake) wakeup_.Set();
}

void Reactor::RunSync(const std::function<void()>& work) {
  if (InLoop()) return work();
  std::mutex mutex;
  std::condition_variable finished;
  bool done = false;
  Post([&] {
    work();
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
    finished.notify_one();
  });
  std::unique_lock<std::mutex> lock(mutex);
  finished.wait(lock, [&] { return done; });
}

void Reactor::Add(int fd, uint32_t events, Io callback) {
  Watch& watch = watches_[fd];
  watch = {next_generation_++, events, std::make_shared<Io>(std::move(callback))};
  poller_->Add(fd, events, Token(fd, watch.generation));
}

void Reactor::Modify(int fd, uint32_t events) {
  const auto at = watches_.find(fd);
  if (at == watches_.end() || at->second.events == events) return;
  at->second.events = events;
  poller_->Modify(fd, events, Token(fd, at->second.generation));
}

void Reactor::Remove(int fd) {
  if (watches_.erase(fd) != 0) poller_->Remove(fd);
}

Reactor::TimerId Reactor::After(int delay_ms, std::function<void()> work) {
  const TimerId id = next_timer_++;
  const auto deadline = Clock::now() + std::chrono::milliseconds(delay_ms);
  timers_.emplace(std::pair(deadline, id), std::move(work));
  deadlines_.emplace(id, deadline);
  return id;
}

void Reactor::Cancel(TimerId id) {
  const auto at = deadlines_.find(id);
  if (at == deadlines_.end()) return;
  timers_.erase({at->second, id});
  deadlines_.erase(at);
}

void Reactor::RunPosted() {
  std::vector<std::function<void()>> batch;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    batch.swap(posted_);
    wake_pending_ = false;
  }
  for (auto& work : batch) work();
}

int Reactor::RunTimers() {
  const auto now = Clock::now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    deadlines_.erase(node.key().second);
    node.mapped()();
  }
  if (timers_.empty()) return -1;
  const auto left = timers_.begin()->first.first - Clock::now();
  const auto left_ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return left_ms < 0 ? 0 : static_cast<int>(std::min<int64_t>(left_ms, 60'000));
}

void Reactor::Loop() {
  loop_thread_.store(std::this_thread::get_id());
  std::vector<Ready> ready;
  while (!stop_.load()) {
    RunPosted();
    int timeout_ms = RunTimers();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!posted_.empty()) timeout_ms = 0;
    }
    poller_->Wait(timeout_ms, &ready);
    for (const Ready& one : ready) {
      const int fd = static_cast<int>(one.token & 0xffffffff);
      if (fd == wakeup_.fd()) {
        wakeup_.Clear();
        continue;
      }
      const auto at = watches_.find(fd);
      // Removed, perhaps replaced, by an earlier callback of this very batch.
      if (at == watches_.end() || Token(fd, at->second.generation) != one.token) continue;
      const std::shared_ptr<Io> callback = at->second.callback;  // may remove itself
      (*callback)(one.events);
    }
  }
  loop_thread_.store({});
}

}  // namespace decentral
