// What waits to be sent on a control stream.
//
//   priority 0 │ probe │ op │                 a frame of priority 0 waits for the slice that is
//   priority 1 │ m m m m m │ m m │  ──▶ wire  being written, never for the rest of a message
//   priority 2 │ m m m m m m m m m │
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "link/format.h"
#include "wire/frame.h"

namespace decentral {

class ControlQueue {
 public:
  // kMessage of any length is cut into slices; other frames go out whole.
  void Push(const FrameHeader& header, std::string payload, int priority);
  // Appends the next frame; false when nothing waits.
  bool Next(std::string* out);
  bool empty() const;
  uint64_t bytes() const { return bytes_; }  // that wait; of headers, one per message

 private:
  struct Item {
    FrameHeader header;
    std::string payload;
    size_t sent = 0;
  };
  std::deque<Item> queues_[kPriorities];
  uint64_t bytes_ = 0;
};

}  // namespace decentral
