// A network in one process. Every delivery is an event of its own (a frame leaves, OnSent, a
// header arrives, its payload lands, a control frame, a posted task), and a seed picks which comes
// next: streams overtake each other, peers dawdle, and the same seed replays the same run.
//
// FakeWorld::Step runs everything on the caller's thread with a virtual clock, which moves only
// when nothing else can. RunThreads gives every peer a thread instead, for the thread sanitizer.
#pragma once

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "link/bulk_transport.h"

namespace decentral::test {

class FakeWorld;

class FakeTransport final : public BulkTransport {
 public:
  FakeTransport(FakeWorld& world, int index, uint64_t seed)
      : world_(world), index_(index), random_(seed) {}

  int Streams(const PeerId&) const override;
  void WantStreams(const PeerId& peer) override;
  void Send(const PeerId& to, int stream, const FrameHeader& header, const void* payload,
            uint64_t cookie, int priority) override;
  void SendControl(const PeerId& to, const FrameHeader& header, const void* payload) override;
  void Post(std::function<void()> task) override {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  void Quiet() override { ++quiets; }
  void PostAfter(int delay_ms, std::function<void()> task) override;

  BulkHandler* handler = nullptr;
  bool frozen = false;                       // SIGSTOP: nothing of ours happens
  bool deaf = false;                         // control frames to us are lost
  uint64_t sent_chunks = 0, sent_bytes = 0;  // what really left
  int quiets = 0;                            // how often the last operation was over

 private:
  friend class FakeWorld;
  using Channel = std::pair<int, int>;  // (other peer, stream)
  struct Outgoing {
    FrameHeader header;
    const void* payload;
    uint64_t cookie;
    bool left = false;
  };
  struct Arrival {
    FrameHeader header;
    std::vector<uint8_t> bytes;
    bool announced = false;
    uint8_t* into = nullptr;
  };

  bool RunOne();  // one random event; false: there is none
  void Leave(Channel);
  void Land(Channel);

  FakeWorld& world_;
  const int index_;
  std::mt19937_64 random_;
  std::map<Channel, std::deque<Outgoing>> out_;
  std::mutex mutex_;  // guards what follows
  std::map<Channel, std::deque<Arrival>> in_;
  std::map<int, std::deque<Arrival>> control_;
  std::deque<std::function<void()>> tasks_;
  std::multimap<int64_t, std::function<void()>> timers_;
};

class FakeWorld {
 public:
  FakeWorld(int n, int streams, uint64_t seed) : streams(streams), random_(seed) {
    for (int i = 0; i < n; ++i) {
      peers_.push_back(std::make_unique<FakeTransport>(*this, i, seed * 1000 + i));
      alive_.push_back(true);
    }
  }

  static PeerId Id(int i) {
    PeerId id{};
    id[0] = static_cast<uint8_t>(i + 1);
    id[31] = 0xAA;
    return id;
  }
  static int Index(const PeerId& id) { return id[0] - 1; }
  FakeTransport& at(int i) { return *peers_[i]; }
  int size() const { return static_cast<int>(peers_.size()); }
  bool alive(int i) const { return alive_[i]; }
  int64_t now_ms() const {
    if (!threaded_) return virtual_ms_;
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // One event of a random peer. False: nothing will ever happen again.
  bool Step() {
    const int n = size();
    const int start = static_cast<int>(random_() % n);
    for (int k = 0; k < n; ++k) {
      FakeTransport& peer = at((start + k) % n);
      if (alive_[(start + k) % n] && !peer.frozen && peer.RunOne()) return true;
    }
    int64_t next = INT64_MAX;
    for (int i = 0; i < n; ++i) {
      if (!alive_[i] || at(i).frozen || at(i).timers_.empty()) continue;
      next = std::min(next, at(i).timers_.begin()->first);
    }
    if (next == INT64_MAX) return false;
    virtual_ms_ = std::max(virtual_ms_, next);
    return true;
  }

  // SIGKILL: what it had sent may still arrive, then everyone else learns that it is gone.
  void Kill(int dead) {
    alive_[dead] = false;
    for (int i = 0; i < size(); ++i) {
      if (!alive_[i]) continue;
      at(i).Post([this, i, dead] {
        FakeTransport& peer = at(i);
        {
          std::lock_guard lock(peer.mutex_);
          std::erase_if(peer.in_, [&](auto& entry) { return entry.first.first == dead; });
          peer.control_.erase(dead);
        }
        std::erase_if(peer.out_, [&](auto& entry) { return entry.first.first == dead; });
        if (peer.handler != nullptr) {
          peer.handler->OnBulkDown(Id(dead), Error(ErrorKind::kClosed, "link", "it is gone"));
        }
      });
    }
  }

  // Every peer on a thread of its own until `body` returns.
  void RunThreads(const std::function<void()>& body) {
    threaded_ = true;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (auto& peer : peers_) {
      threads.emplace_back([&stop, p = peer.get()] {
        while (!stop) {
          if (!p->RunOne()) std::this_thread::yield();
        }
      });
    }
    body();
    stop = true;
    for (auto& thread : threads) thread.join();
  }

  const int streams;

 private:
  friend class FakeTransport;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<FakeTransport>> peers_;
  std::vector<bool> alive_;
  int64_t virtual_ms_ = 1000;
  bool threaded_ = false;
};

inline int FakeTransport::Streams(const PeerId& peer) const {
  return world_.alive_[FakeWorld::Index(peer)] ? world_.streams : 0;
}

inline void FakeTransport::WantStreams(const PeerId& peer) {
  if (world_.alive_[FakeWorld::Index(peer)]) {
    handler->OnBulkUp(peer, world_.streams);
  } else {
    handler->OnBulkDown(peer, Error(ErrorKind::kClosed, "link", "there is no link"));
  }
}

inline void FakeTransport::Send(const PeerId& to, int stream, const FrameHeader& header,
                                const void* payload, uint64_t cookie, int) {
  if (!world_.alive_[FakeWorld::Index(to)]) return;  // its end is on its way to us
  ++sent_chunks;
  sent_bytes += header.length;
  out_[{FakeWorld::Index(to), stream}].push_back({header, payload, cookie});
}

inline void FakeTransport::SendControl(const PeerId& to, const FrameHeader& header,
                                       const void* payload) {
  const int other = FakeWorld::Index(to);
  if (!world_.alive_[other] || !world_.alive_[index_] || world_.at(other).deaf) return;
  const auto* bytes = static_cast<const uint8_t*>(payload);
  FakeTransport& peer = world_.at(other);
  std::lock_guard lock(peer.mutex_);
  peer.control_[index_].push_back({header, {bytes, bytes + header.length}});
}

inline void FakeTransport::PostAfter(int delay_ms, std::function<void()> task) {
  std::lock_guard lock(mutex_);
  timers_.emplace(world_.now_ms() + delay_ms, std::move(task));
}

inline bool FakeTransport::RunOne() {
  enum class What { kTask, kTimer, kLeave, kLand, kControl };
  std::vector<std::pair<What, Channel>> ready;
  std::function<void()> task;
  Arrival control;
  std::pair<What, Channel> choice;
  {
    std::lock_guard lock(mutex_);
    if (!tasks_.empty()) ready.push_back({What::kTask, {}});
    if (!timers_.empty() && timers_.begin()->first <= world_.now_ms()) {
      ready.push_back({What::kTimer, {}});
    }
    for (auto& [channel, frames] : out_) {
      if (!frames.empty()) ready.push_back({What::kLeave, channel});
    }
    for (auto& [channel, frames] : in_) {
      if (!frames.empty()) ready.push_back({What::kLand, channel});
    }
    for (auto& [from, frames] : control_) {
      if (!frames.empty()) ready.push_back({What::kControl, {from, 0}});
    }
    if (ready.empty()) return false;
    choice = ready[random_() % ready.size()];
    if (choice.first == What::kTask) {
      task = std::move(tasks_.front());
      tasks_.pop_front();
    } else if (choice.first == What::kTimer) {
      task = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
    } else if (choice.first == What::kControl) {
      control = std::move(control_[choice.second.first].front());
      control_[choice.second.first].pop_front();
    }
  }
  if (task) {
    task();
  } else if (choice.first == What::kControl) {
    handler->OnControl(FakeWorld::Id(choice.second.first), control.header, control.bytes.data());
  } else if (choice.first == What::kLeave) {
    Leave(choice.second);
  } else {
    Land(choice.second);
  }
  return true;
}

// A frame leaves in two events: its bytes are copied, and later its sender is told.
inline void FakeTransport::Leave(Channel channel) {
  Outgoing& frame = out_[channel].front();
  if (!frame.left) {
    frame.left = true;
    const auto* bytes = static_cast<const uint8_t*>(frame.payload);
    FakeTransport& peer = world_.at(channel.first);
    std::lock_guard lock(peer.mutex_);
    peer.in_[{index_, channel.second}].push_back(
        {frame.header, {bytes, bytes + frame.header.length}});
    return;
  }
  const uint64_t cookie = frame.cookie;
  out_[channel].pop_front();
  handler->OnSent(FakeWorld::Id(channel.first), channel.second, cookie);
}

// A frame arrives in two events: the header, and later the payload.
inline void FakeTransport::Land(Channel channel) {
  Arrival* arrival;
  {
    std::lock_guard lock(mutex_);  // only we pop, and a deque's elements stay where they are
    arrival = &in_[channel].front();
  }
  const PeerId from = FakeWorld::Id(channel.first);
  if (!arrival->announced) {
    arrival->announced = true;
    arrival->into = handler->OnHeader(from, channel.second, arrival->header);
    return;
  }
  Arrival whole = std::move(*arrival);
  {
    std::lock_guard lock(mutex_);
    in_[channel].pop_front();
  }
  if (whole.into == nullptr) return;
  std::memcpy(whole.into, whole.bytes.data(), whole.bytes.size());
  handler->OnPayload(from, channel.second, whole.header);
}

}  // namespace decentral::test
