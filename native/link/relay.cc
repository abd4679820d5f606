#include "link/relay.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/socket.h"

namespace decentral {
namespace {

constexpr int kUnsentBytes = 128 << 10;  // so that little waits here that could still be overtaken
constexpr size_t kBudget = 1 << 20;      // per wake-up: other sessions want their turn
constexpr int kTickMs = 250;
constexpr size_t kTokenPrefix = 8;

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Relay::Relay(uint64_t max_bytes_s, OnEnd on_end, int idle_limit_ms)
    : on_end_(std::move(on_end)), idle_limit_ms_(idle_limit_ms), max_bytes_s_(max_bytes_s) {}

Relay::~Relay() { Stop(); }

Reactor* Relay::Loop() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stopped_ ? nullptr : loop_.get();
}

Reactor* Relay::StartedLoop() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!loop_ && !stopped_) {
    loop_ = std::make_unique<Reactor>();
    loop_->Start();
  }
  return stopped_ ? nullptr : loop_.get();
}

void Relay::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
  }
  if (!loop_) return;
  loop_->RunSync([this] { sessions_.clear(); });
  loop_->Stop();
}

void Relay::Offer(const std::string& token, uint64_t max_bytes_s, int ttl_ms) {
  Reactor* const loop = StartedLoop();
  if (loop == nullptr) return;
  loop->Post([this, token, max_bytes_s, ttl_ms] {
    if (sessions_.count(token) != 0) return;  // offered already
    auto s = std::make_shared<Session>();
    s->token = token;
    s->max_bytes_s = max_bytes_s;
    s->ttl = loop_->After(ttl_ms, [this, weak = std::weak_ptr<Session>(s)] {
      const SessionPtr late = weak.lock();
      if (!late) return;
      late->ttl = 0;
      Finish(late, Error(ErrorKind::kUnreachable, "relay",
                         "the two peers to be relayed did not both come in time"));
    });
    sessions_[token] = s;
  });
}

void Relay::End(const std::string& token) {
  Reactor* const loop = Loop();
  if (loop == nullptr) return;
  loop->Post([this, token] {
    const auto at = sessions_.find(token);
    if (at == sessions_.end()) return;
    Finish(at->second, Error(ErrorKind::kAborted, "relay", "this peer ended the relaying"));
  });
}

void Relay::Limit(uint64_t max_bytes_s) {
  Reactor* const loop = StartedLoop();
  if (loop == nullptr) return;
  loop->Post([this, max_bytes_s] {
    max_bytes_s_ = max_bytes_s;
    Share();
  });
}

std::vector<RelaySession> Relay::Stats() const {
  std::vector<RelaySession> out;
  Reactor* const loop = Loop();
  if (loop == nullptr) return out;
  loop->RunSync([&] {
    for (const auto& [token, s] : sessions_) {
      RelaySession one;
      one.token = token.substr(0, kTokenPrefix);
      for (int side = 0; side < 2; ++side) one.bytes[side] = s->sides[side].bytes;
      one.age_s = std::chrono::duration<double>(Clock::now() - s->born).count();
      one.spliced = s->spliced();
      out.push_back(one);
    }
  });
  return out;
}

bool Relay::Join(const std::string& token, int side, Fd fd, std::function<void()> refused) {
  Reactor* const loop = Loop();
  if (loop == nullptr) return false;
  auto holder = std::make_shared<Fd>(std::move(fd));
  loop->Post([this, token, side, holder, refused = std::move(refused)] {
    const auto at = sessions_.find(token);
    // The token serves one pair.
    if (at == sessions_.end() || at->second->spliced()) return refused();
    Joined(at->second, side, std::move(*holder));
  });
  return true;
}

// Whoever comes again before its twin has come takes its own place.
void Relay::Joined(const SessionPtr& s, int side, Fd fd) {
  s->sides[side].fd = std::move(fd);
  if (!s->sides[1 - side].fd) return;
  loop_->Cancel(s->ttl);
  s->ttl = 0;
  for (auto& one : s->sides) {
    one.hose = std::make_unique<Hose>();
    if (!one.hose->ready()) {
      return Finish(s, Error(ErrorKind::kConfig, "relay", "the system has no descriptor left"));
    }
    LimitUnsent(one.fd.get(), kUnsentBytes);
  }
  for (auto& one : s->sides) {
    one.interest = std::make_unique<Interest>(
        loop_.get(), one.fd.get(),
        [this, weak = std::weak_ptr<Session>(s), &one](uint32_t, bool hung_up) {
          const SessionPtr keep = weak.lock();
          if (!keep) return;
          if (hung_up) one.interest->Park();  // its last bytes are read all the same
          Move(keep);
        });
  }
  s->moved_at = Clock::now();
  Share();
  TickSoon();
  Move(s);
}

// ---- bytes

void Relay::Move(const SessionPtr& s) {
  s->throttled = s->again = false;
  for (int side = 0; side < 2; ++side) {
    if (const Error why = MoveFrom(*s, side)) return Finish(s, why);
  }
  if (s->sides[0].passed_on && s->sides[1].passed_on) return Finish(s, Error());
  UpdateInterest(*s);
  if (s->throttled) RetrySoon();
  if (s->again) {
    loop_->Post([this, weak = std::weak_ptr<Session>(s)] {
      const SessionPtr keep = weak.lock();
      if (keep && keep->again && sessions_.count(keep->token) != 0) Move(keep);
    });
  }
}

Error Relay::MoveFrom(Session& s, int side) {
  Session::Side& from = s.sides[side];
  const int to = s.sides[1 - side].fd.get();
  from.blocked = false;
  size_t budget = kBudget;
  for (bool moved = true; moved && !from.passed_on;) {
    moved = false;
    size_t most = Hose::kMost - from.hose->held();
    if (s.gate.capped() && most > 0 && !from.ended) {
      most = std::min(most, s.gate.Allowance(Clock::now()));
      if (most == 0) s.throttled = true;
    }
    if (most > 0 && budget > 0 && !from.ended) {
      const ssize_t n = from.hose->Fill(from.fd.get(), std::min(most, budget));
      if (n < 0 && !WouldBlock()) {
        return Error(ErrorKind::kClosed, "relay", "one of the two relayed peers broke off");
      }
      if (n == 0) from.ended = true;
      if (n > 0) {
        budget -= n;
        from.bytes += n;
        s.gate.Spend(n);
      }
      moved = n >= 0;
    }
    if (from.hose->held() > 0) {
      const ssize_t n = from.hose->Drain(to);
      if (n < 0 && !WouldBlock()) {
        return Error(ErrorKind::kClosed, "relay", "one of the two relayed peers is gone");
      }
      from.blocked = n < 0;
      moved = moved || n > 0;
      if (n > 0) s.moved_at = Clock::now();
    }
    if (from.ended && from.hose->held() == 0) {
      shutdown(to, SHUT_WR);
      from.passed_on = true;
    }
  }
  s.again = s.again || budget == 0;
  return Error();
}

void Relay::UpdateInterest(Session& s) {
  for (int side = 0; side < 2; ++side) {
    const Session::Side &out = s.sides[side], &in = s.sides[1 - side];
    const bool read = !out.ended && !out.blocked && !s.throttled;
    out.interest->Set((read ? Reactor::kRead : 0) | (in.blocked ? Reactor::kWrite : 0));
  }
}

void Relay::RetrySoon() {
  if (retrying_) return;
  retrying_ = true;
  loop_->After(UploadGate::kRetryMs, [this] {
    retrying_ = false;
    const auto all = sessions_;
    for (const auto& [token, s] : all) {
      if (s->throttled) Move(s);
    }
  });
}

// ---- sessions

void Relay::Finish(SessionPtr s, const Error& why) {
  if (sessions_.erase(s->token) == 0) return;
  if (s->ttl != 0) loop_->Cancel(s->ttl);
  const uint64_t bytes = s->bytes();
  for (auto& side : s->sides) side.interest.reset();
  for (auto& side : s->sides) side.fd.reset();
  Share();
  on_end_(s->token, bytes, why);
}

// An even part of the cap for each session that moves bytes; who begins to is given one at once.
void Relay::Share() {
  uint64_t busy = 0;
  for (const auto& [token, s] : sessions_) busy += s->bytes() != s->bytes_seen || s->throttled;
  for (const auto& [token, s] : sessions_) {
    const bool counted = s->bytes() != s->bytes_seen || s->throttled;
    uint64_t rate = s->max_bytes_s;
    if (max_bytes_s_ > 0) {
      const uint64_t part = std::max<uint64_t>(1, max_bytes_s_ / (busy + (counted ? 0 : 1)));
      rate = rate == 0 ? part : std::min(rate, part);
    }
    s->gate.SetRate(rate);
  }
}

void Relay::TickSoon() {
  if (ticking_) return;
  ticking_ = true;
  loop_->After(kTickMs, [this] {
    ticking_ = false;
    Tick();
  });
}

void Relay::Tick() {
  Share();
  const auto now = Clock::now();
  bool any = false;
  const auto all = sessions_;
  for (const auto& [token, s] : all) {
    s->bytes_seen = s->bytes();
    if (!s->spliced()) continue;
    any = true;
    if (now - s->moved_at > std::chrono::milliseconds(idle_limit_ms_)) {
      Finish(s, Error(ErrorKind::kSilent, "relay",
                      "nothing was relayed for " + std::to_string(idle_limit_ms_) + " ms"));
    }
  }
  if (any) TickSoon();
}

}  // namespace decentral
