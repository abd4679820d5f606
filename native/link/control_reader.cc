#include "link/control_reader.h"

#include <algorithm>
#include <cstring>

namespace decentral {

std::string Printable(const std::string& text) {
  std::string out;
  for (const char c : text.substr(0, 512)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == 0x7f ? ' ' : c;
  }
  return out;
}

// The header is complete: is it one that may stand here?
std::string ControlReader::Begin() {
  const auto header = DecodeHeader(header_, UINT32_MAX);
  if (!header || !IsControlType(header->type)) return "sent bytes that are no control frame";
  frame_ = *header;
  if (frame_.length > MaxControlLength(frame_.type)) {
    return "announced a control frame of " + std::to_string(frame_.length) +
           " bytes, over the limit of " + std::to_string(MaxControlLength(frame_.type));
  }
  if (frame_.type == FrameType::kMessage) {
    if (frame_.tag >= kPriorities) return "sent a message of unknown priority";
    if (partial_[frame_.tag].size() + frame_.length > max_message_bytes_) {
      return "sent a message over the limit of " + std::to_string(max_message_bytes_) + " bytes";
    }
    if (frame_.length == 0 && (frame_.flags & kFlagMore)) return "sent an empty slice";
  }
  return {};
}

std::string ControlReader::Finish(const Sink& sink) {
  header_bytes_ = 0;
  std::string whole;
  if (frame_.type == FrameType::kMessage) {
    std::string& partial = partial_[frame_.tag];
    partial += payload_;
    payload_.clear();
    if (frame_.flags & kFlagMore) return {};
    whole = std::move(partial);
    partial = std::string();
  } else {
    whole = std::move(payload_);
    payload_ = std::string();
  }
  if (!sink(frame_, std::move(whole))) stopped_ = true;
  return {};
}

std::string ControlReader::Feed(const uint8_t* data, size_t size, const Sink& sink) {
  while (!stopped_) {
    if (header_bytes_ < FrameHeader::kSize) {
      if (size == 0) break;
      const size_t take = std::min(size, FrameHeader::kSize - header_bytes_);
      std::memcpy(header_ + header_bytes_, data, take);
      header_bytes_ += take;
      data += take;
      size -= take;
      if (header_bytes_ < FrameHeader::kSize) break;
      if (std::string wrong = Begin(); !wrong.empty()) return wrong;
    }
    const size_t take = std::min<size_t>(size, frame_.length - payload_.size());
    payload_.append(reinterpret_cast<const char*>(data), take);
    data += take;
    size -= take;
    if (payload_.size() < frame_.length) break;
    if (std::string wrong = Finish(sink); !wrong.empty()) return wrong;
  }
  return {};
}

}  // namespace decentral
