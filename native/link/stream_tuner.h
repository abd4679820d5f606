// How many parallel connections a link needs, found by trying: pure, no clock of its own.
//
//   goodput at 2 ──▶ open 2 more ──▶ settle ──▶ goodput at 4 ── better? ──▶ open 4 more ──▶ …
//                                                            └─ not? stay, look again much later
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
    if (open != streams_) {
      streams_ = open;
      settle_until_ms_ =
          now_ms + std::max<int64_t>(kSettleMs, 6 * static_cast<int64_t>(rtt_us) / 1000);
    }
    if (now_ms < settle_until_ms_ || now_ms < rest_until_ms_) {
      Restart(now_ms, sent_bytes);
      return open;
    }
    const int64_t window_ms =
        std::max<int64_t>(kWindowMs, 12 * static_cast<int64_t>(rtt_us) / 1000);
    if (now_ms - since_ms_ < window_ms) return open;
    const double goodput =
        static_cast<double>(sent_bytes - since_bytes_) / static_cast<double>(now_ms - since_ms_);
    Restart(now_ms, sent_bytes);
    if (goodput > kWorthIt * best_) {
      best_ = goodput;
      return std::min(2 * open, limit_);
    }
    best_ = 0;  // the next look starts from what there is then
    rest_until_ms_ = now_ms + kRestMs;
    return open;
  }

 private:
  // Shorter paths recover from a loss before it costs anything.
  static constexpr uint64_t kShortPathUs = 5000;
  static constexpr int64_t kSettleMs = 300;
  static constexpr int64_t kWindowMs = 600;
  static constexpr int64_t kRestMs = 30000;
  static constexpr double kWorthIt = 1.15;

  void Restart(int64_t now_ms, uint64_t sent_bytes) {
    since_ms_ = now_ms;
    since_bytes_ = sent_bytes;
  }

  const int limit_;
  int streams_ = 0;
  double best_ = 0;  // bytes per millisecond
  int64_t since_ms_ = 0, settle_until_ms_ = 0, rest_until_ms_ = 0;
  uint64_t since_bytes_ = 0;
};

}  // namespace decentral
