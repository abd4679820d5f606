// The blind relay: splices two connections that show the same token, and sees ciphertext only.
//
//   side 0 ══ socket ─▶ hose ─▶ socket ══ side 1        nothing is read from one side
//             socket ◀─ hose ◀─ socket                  before the other is there
//
// A thread of its own, started by the first offer. Tokens come from the layer above, which knows
// whom it relays for; whoever shows another one is closed. One cap holds for all sessions, shared
// evenly among those that move bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/types.h"
#include "io/fd.h"
#include "io/interest.h"
#include "io/reactor.h"
#include "link/hose.h"
#include "link/upload_gate.h"

namespace decentral {

struct RelaySession {
  std::string token;           // its first 8 bytes: enough to tell them apart, not to use it
  uint64_t bytes[2] = {0, 0};  // taken from side 0, from side 1
  double age_s = 0;            // since the offer
  bool spliced = false;        // both sides have come
};

class Relay {
 public:
  // The relay's thread. `bytes`: both ways together. kNone: both sides had said all.
  using OnEnd = std::function<void(const std::string& token, uint64_t bytes, const Error& why)>;
  static constexpr int kIdleLimitMs = 60'000;

  Relay(uint64_t max_bytes_s, OnEnd on_end, int idle_limit_ms = kIdleLimitMs);
  ~Relay();

  // Any thread.
  void Offer(const std::string& token, uint64_t max_bytes_s, int ttl_ms);
  void End(const std::string& token);
  void Limit(uint64_t max_bytes_s);
  std::vector<RelaySession> Stats() const;
  // False: nothing is offered here. Later, whoever has a wrong token is closed, and `refused` runs.
  bool Join(const std::string& token, int side, Fd fd, std::function<void()> refused);
  void Stop();

 private:
  struct Session {
    std::string token;
    Clock::time_point born = Clock::now(), moved_at = born;
    Reactor::TimerId ttl = 0;  // until both sides have come
    uint64_t max_bytes_s = 0;
    UploadGate gate{0};
    bool throttled = false;
    bool again = false;       // there may be more to move
    uint64_t bytes_seen = 0;  // at the last tick
    struct Side {
      Fd fd;
      std::unique_ptr<Interest> interest;
      std::unique_ptr<Hose> hose;  // of what comes from this side
      uint64_t bytes = 0;
      bool ended = false;      // it has said all
      bool passed_on = false;  // and the other side was told
      bool blocked = false;    // the other side takes no more for now
    } sides[2];
    bool spliced() const { return sides[0].interest != nullptr; }
    uint64_t bytes() const { return sides[0].bytes + sides[1].bytes; }
  };
  using SessionPtr = std::shared_ptr<Session>;

  Reactor* Loop() const;   // nullptr: not started
  Reactor* StartedLoop();  // starts it
  void Joined(const SessionPtr& s, int side, Fd fd);
  void Move(const SessionPtr& s);
  Error MoveFrom(Session& s, int side);
  void UpdateInterest(Session& s);
  void Finish(SessionPtr s, const Error& why);
  void Share();
  void TickSoon();
  void Tick();
  void RetrySoon();

  const OnEnd on_end_;
  const int idle_limit_ms_;

  mutable std::mutex mutex_;
  std::unique_ptr<Reactor> loop_;  // guarded by mutex_, until it is there
  bool stopped_ = false;           // guarded by mutex_

  // The loop's thread.
  std::map<std::string, SessionPtr> sessions_;
  uint64_t max_bytes_s_;
  bool ticking_ = false, retrying_ = false;
};

}  // namespace decentral
