// The one frame format; native/FORMAT.md is its specification and this file asserts it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace decentral {

enum class FrameType : uint8_t {
  // Control stream.
  kMessage = 1,     // opaque bytes for the layer above (msgpack)
  kProbe = 2,       // "are you alive?"; answered by native code
  kProbeAck = 3,    // incarnation and progress of the answering peer
  kRefuse = 4,      // a sentence, then the connection closes
  kBulkWanted = 5,  // "you dialled: please open the bulk streams"
  kOpReady = 6,     // collective: receiver is ready, with its idea of the operation
  kOpAbort = 7,     // collective: called off, with the reason
  // Bulk streams.
  kBulkHello = 16,  // binds a bulk connection to a link: one-time token
  kChunk = 17,      // a piece of a collective operation
  kBlob = 18,       // a piece of a state transfer
};

// 56 bytes on the wire, little-endian, in this order. A reader checks magic, version, type and
// length against the stream's limit before it allocates or trusts anything.
struct FrameHeader {
  static constexpr size_t kSize = 56;
  static constexpr uint16_t kMagic = 0xDC01;

  FrameType type = FrameType::kMessage;
  uint8_t flags = 0;
  uint32_t length = 0;   // payload bytes that follow
  uint64_t run = 0;      // first 8 bytes of the run id
  uint64_t lineage = 0;  // first 8 bytes of the lineage id
  uint64_t epoch = 0;
  uint64_t round = 0;
  uint32_t attempt = 0;
  uint32_t tag = 0;       // which of several concurrent operations
  uint64_t sequence = 0;  // position within (tag, attempt), or a blob's offset
};

void EncodeHeader(const FrameHeader&, uint8_t out[FrameHeader::kSize]);
// Empty: not ours, or longer than max_length.
std::optional<FrameHeader> DecodeHeader(const uint8_t in[FrameHeader::kSize], uint32_t max_length);

}  // namespace decentral
