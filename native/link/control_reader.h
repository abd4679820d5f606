// Cuts the bytes of a control stream into frames, and messages out of their slices. Holds at most
// one frame and, per priority, one message under its limit; memory grows as bytes arrive, never
// because a header announces them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "link/format.h"
#include "wire/frame.h"

namespace decentral {

class ControlReader {
 public:
  // Returns false to stop: the connection is going down.
  using Sink = std::function<bool(const FrameHeader& header, std::string payload)>;

  explicit ControlReader(uint32_t max_message_bytes) : max_message_bytes_(max_message_bytes) {}

  // Empty: all is well. Otherwise what broke the format, for a sentence; feed no more.
  std::string Feed(const uint8_t* data, size_t size, const Sink& sink);
  bool in_frame() const { return header_bytes_ > 0; }

 private:
  std::string Begin();
  std::string Finish(const Sink& sink);

  const uint32_t max_message_bytes_;
  uint8_t header_[FrameHeader::kSize];
  size_t header_bytes_ = 0;
  FrameHeader frame_;
  std::string payload_;
  std::string partial_[kPriorities];
  bool stopped_ = false;
};

}  // namespace decentral
