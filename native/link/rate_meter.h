// What a direction of this machine's network can carry, seen from what it did carry: pure.
//
//   samples   |--|--|--|--|--|--|--|   every 20 ms while bytes move
//   window          |--------------|   five of them; the fastest window of a period is its peak
//   estimate  the higher one of the last two periods' peaks: a faster network shows at once, a
//             slower one after two operations
//
// The first sample after a pause is left out: it holds what a shaper or a queue had saved up.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace decentral {

class RateMeter {
 public:
  static constexpr int kSampleMs = 20;

  // Bytes so far. Call it every kSampleMs while there is traffic.
  void Sample(int64_t now_ms, uint64_t total_bytes) {
    const int64_t gap_ms = now_ms - last_ms_;
    last_ms_ = now_ms;
    if (gap_ms > 3 * kSampleMs || total_bytes == last_bytes_) {
      filled_ = 0;
      warm_ = false;
      last_bytes_ = total_bytes;
      return;
    }
    last_bytes_ = total_bytes;
    if (!warm_) {
      warm_ = true;
      return;
    }
    marks_[filled_ % marks_.size()] = {now_ms, total_bytes};
    ++filled_;
    if (filled_ < marks_.size()) return;
    const Mark& oldest = marks_[filled_ % marks_.size()];
    if (now_ms <= oldest.ms) return;
    const double rate = 1000.0 * static_cast<double>(total_bytes - oldest.bytes) /
                        static_cast<double>(now_ms - oldest.ms);
    peak_ = std::max(peak_, rate);
  }

  // Bytes per second; 0: not known.
  double estimate() const { return std::max(peak_, previous_); }

  // A period is over. One that saw too little to have an opinion leaves things as they are.
  void EndPeriod() {
    filled_ = 0;  // no window lies in two periods
    if (peak_ == 0) return;
    previous_ = peak_;
    peak_ = 0;
  }

 private:
  struct Mark {
    int64_t ms = 0;
    uint64_t bytes = 0;
  };
  std::array<Mark, 6> marks_{};  // five samples lie between six marks
  size_t filled_ = 0;
  bool warm_ = false;
  int64_t last_ms_ = -1000000;
  uint64_t last_bytes_ = 0;
  double peak_ = 0, previous_ = 0;
};

}  // namespace decentral
