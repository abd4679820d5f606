// How many parallel connections a link needs, found by trying: pure, no clock of its own.
//
//   goodput at 2 ──▶ open 2 more ──▶ settle ──▶ goodput at 4 ── better? ──▶ open more ──▶ …
//                                                            └─ not? stay, until it changes
//
// Over a long path with loss one connection carries mss/rtt · 1.2/√loss, whatever the pipe holds;
// more of them carry more, until the pipe is full. The product of bandwidth and delay does not
// tell: it knows nothing of loss, nor of the congestion control at work.
#pragma once

#include <algorithm>
#include <cstdint>

namespace decentral {

class StreamTuner {
 public:
  explicit StreamTuner(int limit) : limit_(limit) {}

  // A sample, some 50 times a second. `sent_bytes`: in all, so far. `blocked`: data waited for the
  // network all the time since the last sample. `rtt_us`: of the path without load. Returns how
  // many streams there should be: `open`, or more.
  int Sample(int64_t now_ms, uint64_t sent_bytes, bool blocked, uint64_t rtt_us, int open) {
    if (!blocked || rtt_us < kShortPathUs || open >= limit_) {
      Restart(now_ms, sent_bytes);
      return open;
    }
    const int64_t rtt_ms = static_cast<int64_t>(rtt_us / 1000);
    if (open != streams_) {
      // The very first streams also have to come down from where their slow start took them.
      settle_until_ms_ =
          now_ms + (streams_ == 0 ? kFirstSettleMs + 20 * rtt_ms : kSettleMs + 6 * rtt_ms);
      streams_ = open;
    }
    if (now_ms < settle_until_ms_) {
      Restart(now_ms, sent_bytes);
      return open;
    }
    if (now_ms - since_ms_ < kWindowMs + 15 * rtt_ms) return open;
    const double goodput =
        static_cast<double>(sent_bytes - since_bytes_) / static_cast<double>(now_ms - since_ms_);
    Restart(now_ms, sent_bytes);
    if (resting_) {
      resting_ = goodput > best_ / kChanged && goodput < best_ * kChanged;
      if (resting_) return open;
      best_ = 0;
    }
    // Twice the streams with twice the goodput: the end is far away.
    const double gain = best_ > 0 ? goodput / best_ : 0;
    if (best_ > 0 && gain < kWorthIt) {
      resting_ = true;
      best_ = std::max(best_, goodput);
      return open;
    }
    const int factor = best_ > 0 && gain > kNearlyAll * open / tried_ ? 4 : 2;
    best_ = goodput;
    tried_ = open;
    return std::min(factor * open, limit_);
  }

 private:
  // Shorter paths recover from a loss before it costs anything.
  static constexpr uint64_t kShortPathUs = 5000;
  static constexpr int64_t kFirstSettleMs = 1000;
  static constexpr int64_t kSettleMs = 300;
  static constexpr int64_t kWindowMs = 400;
  static constexpr double kWorthIt = 1.15;    // to go on
  static constexpr double kNearlyAll = 0.75;  // of what more streams could bring at best
  static constexpr double kChanged = 1.4;     // to look again

  void Restart(int64_t now_ms, uint64_t sent_bytes) {
    since_ms_ = now_ms;
    since_bytes_ = sent_bytes;
  }

  const int limit_;
  int streams_ = 0;
  int tried_ = 0;    // streams that best_ was measured with
  double best_ = 0;  // bytes per millisecond; 0: none yet
  bool resting_ = false;
  int64_t since_ms_ = 0, settle_until_ms_ = 0;
  uint64_t since_bytes_ = 0;
};

}  // namespace decentral
