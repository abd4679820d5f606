// Throws bytes at everything that parses the wire before a peer is trusted: the frame header and
// the control stream's reader.
//   input: u8 step, then bytes of a control stream, which arrive in pieces of step + 1
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "link/control_reader.h"
#include "wire/frame.h"

using namespace decentral;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint32_t kMaxMessage = 64 << 10;
  if (size == 0) return 0;
  // The first byte says how the rest is cut, so that every boundary is tried.
  const size_t step = 1 + data[0];
  ControlReader reader(kMaxMessage);
  size_t delivered = 0;
  for (size_t at = 1; at < size; at += step) {
    const std::string wrong = reader.Feed(
        data + at, std::min(step, size - at), [&](const FrameHeader& header, std::string payload) {
          if (!IsControlType(header.type) || payload.size() > kMaxMessage) std::abort();
          delivered += FrameHeader::kSize + payload.size();
          return true;
        });
    if (!wrong.empty()) break;
  }
  if (delivered > size) std::abort();  // more came out than went in
  if (size > FrameHeader::kSize) {
    if (const auto header = DecodeHeader(data + 1, 1000)) {
      uint8_t again[FrameHeader::kSize];
      EncodeHeader(*header, again);
      if (header->length > 1000 || !std::equal(again, again + sizeof again, data + 1)) std::abort();
    }
  }
  return 0;
}
