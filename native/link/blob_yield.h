// State transfer gives way to collectives, whichever links they run on: a machine's uplink is one.
//
//   collective frames   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓             ▓▓▓▓▓▓
//   blob slices       ░░  ░       ░       ░░░░░░░░░░░      ░
//                       └ 1 byte in 50 ┘  └ quiet: all
//
// Rounds of a small model may follow each other faster than a collective counts as quiet: so the
// end of the last one counts, too.
//
// Within a stream priorities are enough; between streams TCP would share fairly, and a joiner's
// download would take half of what a round needs. Pure, no clock of its own; data thread only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace decentral {

class BlobYield {
 public:
  // A frame of a collective was queued, or has left, or one is announced.
  void Collective(int64_t now_ms, uint64_t bytes_left) {
    if (now_ms >= quiet_at_ms_) credit_ = 0;
    quiet_at_ms_ = now_ms + kQuietMs;
    credit_ = std::min<int64_t>(credit_ + static_cast<int64_t>(bytes_left / kShare), kMaxCredit);
  }
  // No collective runs here any more: nothing is waited for but what the kernel still holds.
  void Over(int64_t now_ms) { quiet_at_ms_ = std::min(quiet_at_ms_, now_ms + kDrainMs); }
  // May a slice of a blob leave?
  bool MayGo(int64_t now_ms) const { return now_ms >= quiet_at_ms_ || credit_ > 0; }
  void Went(uint64_t bytes) { credit_ -= static_cast<int64_t>(bytes); }
  int64_t quiet_at_ms() const { return quiet_at_ms_; }

 private:
  static constexpr int64_t kQuietMs = 100;  // a collective waits so long for a distant member
  static constexpr int64_t kDrainMs = 20;   // its last frames leave the machine meanwhile
  static constexpr uint64_t kShare = 50;    // nobody starves, however busy the rounds
  static constexpr int64_t kMaxCredit = 1 << 20;

  int64_t quiet_at_ms_ = 0;
  int64_t credit_ = 0;  // bytes of blobs that may go beside the collective
};

}  // namespace decentral
