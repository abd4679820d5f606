// One thread's event loop: descriptors, timers, and work posted from other threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "io/poller.h"
#include "io/wakeup.h"

namespace decentral {

using Clock = std::chrono::steady_clock;

class Reactor {
 public:
  static constexpr uint32_t kRead = 1;
  static constexpr uint32_t kWrite = 2;
  using Io = std::function<void(uint32_t events)>;
  using TimerId = uint64_t;  // never 0

  explicit Reactor(std::unique_ptr<Poller> poller = Poller::Best());
  ~Reactor();
  Reactor(const Reactor&) = delete;

  // Any thread.
  void Start();  // runs the loop on a thread of its own, with all signals blocked
  void Stop();   // ends the loop and joins its thread; what is still posted is dropped
  void Post(std::function<void()> work);
  void RunSync(const std::function<void()>& work);  // posts and waits; direct when in the loop
  bool InLoop() const { return std::this_thread::get_id() == loop_thread_.load(); }

  // The loop's thread only.
  void Add(int fd, uint32_t events, Io callback);
  void Modify(int fd, uint32_t events);
  void Remove(int fd);  // before the descriptor is closed; no callback comes after it
  TimerId After(int delay_ms, std::function<void()> work);
  void Cancel(TimerId id);

 private:
  struct Watch {
    uint32_t generation = 0;  // tells a reused descriptor number from its predecessor
    uint32_t events = 0;
    std::shared_ptr<Io> callback;
  };

  void Loop();
  void RunPosted();
  int RunTimers();  // returns milliseconds until the next one, -1: none
  static uint64_t Token(int fd, uint32_t generation) {
    return uint64_t{generation} << 32 | static_cast<uint32_t>(fd);
  }

  std::unique_ptr<Poller> poller_;
  Wakeup wakeup_;
  std::thread thread_;
  std::atomic<std::thread::id> loop_thread_{};
  std::atomic<bool> stop_{false};

  // Loop's thread only.
  std::unordered_map<int, Watch> watches_;
  uint32_t next_generation_ = 1;
  std::map<std::pair<Clock::time_point, TimerId>, std::function<void()>> timers_;
  std::unordered_map<TimerId, Clock::time_point> deadlines_;
  TimerId next_timer_ = 1;

  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_
  bool wake_pending_ = false;                  // guarded by mutex_
};

}  // namespace decentral
