// The numbers of native/FORMAT.md that are not in the frame header itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "wire/frame.h"

namespace decentral {

// The first byte of a connection that wants to be relayed; a token and a side follow.
inline constexpr uint8_t kRelayByte = 0x03;
inline constexpr uint32_t kRelayTokenBytes = 32;
// The first byte of a connection that wants to know the caller's address, which is followed by
// zeros: no shorter than a small answer, so that nobody makes us send more than they did.
inline constexpr uint8_t kTellAddressByte = 0x04;
inline constexpr uint32_t kTellAddressBytes = 16;
inline constexpr uint32_t kMaxAddressText = 63;

// kMessage: further slices of this message follow. The tag is the priority.
inline constexpr uint8_t kFlagMore = 1;
// kProbe, kProbeAck: a heartbeat, of no interest to the layer above.
inline constexpr uint8_t kFlagHeartbeat = 1;
// kRefuse: not a refusal but a goodbye, with its reason.
inline constexpr uint8_t kFlagGoodbye = 1;
// kBulkWanted: "I would take bulk in the clear" / "it could not be opened".
inline constexpr uint8_t kFlagPlain = 1;
inline constexpr uint8_t kFlagFailed = 2;
// kBlob: the sender called it off.
inline constexpr uint8_t kFlagCancelled = 1;

inline constexpr int kPriorities = 3;
inline constexpr uint32_t kMessageSlice = 16 << 10;  // one TLS record
inline constexpr uint32_t kMaxOpBytes = 64 << 10;    // kOpReady, kOpAbort
inline constexpr uint32_t kMaxRefusal = 1024;        // kRefuse's sentence
inline constexpr uint32_t kTokenBytes = 32;          // kBulkWanted, kBulkHello
inline constexpr uint32_t kProbeBytes = 8;           // the asker's clock, echoed
inline constexpr uint32_t kBlobSlice = 256 << 10;
inline constexpr int kMaxBulkStreams = 64;

// What a frame on a control stream may announce; 0 also for types that do not belong there.
inline uint32_t MaxControlLength(FrameType type) {
  switch (type) {
    case FrameType::kMessage:
      return kMessageSlice;
    case FrameType::kProbe:
    case FrameType::kProbeAck:
      return kProbeBytes;
    case FrameType::kRefuse:
      return kMaxRefusal;
    case FrameType::kBulkWanted:
      return kTokenBytes;
    case FrameType::kOpReady:
    case FrameType::kOpAbort:
      return kMaxOpBytes;
    default:
      return 0;
  }
}
inline bool IsControlType(FrameType type) {
  return static_cast<uint8_t>(type) <= static_cast<uint8_t>(FrameType::kOpAbort);
}

// Text from the network, fit for a terminal and a log line.
std::string Printable(const std::string& text);

}  // namespace decentral
