// What members of an operation tell each other on the control stream. Payloads, little-endian:
//
//   kOpReady, flags 0: "I have started; send me my chunks" (receiver to each of its senders, and
//   again as a sign of life)
//      0 u32 ticket        goes into the upper half of every chunk's sequence: a chunk of an
//                          operation that is over, whatever its key, finds no buffer
//      4 u32 granted       the sender may send chunks with sequence < granted
//      8 u32 chunk_bytes   the receiver's pipeline grain; rules for this pair
//     12 u8 what, u8 dtype, u8 codec of partial sums, u8 codec of final values
//     16 u32 member count
//     20 f32 scale
//     24 u64 count
//     32 char[16] the schedule's name, zero-padded
//     48 u8[32] SHA-256 of the members' ids in rank order
//     80 u8[32] SHA-256 of the segments
//
//   kOpReady, flags 1: "go on" or "I am still at it" (to any neighbour)
//      0 u32 ticket        of the kOpReady that this extends; 0: none
//      4 u32 granted
//
//   kOpAbort: "called off"
//      0 u8 kind           ErrorKind
//      1 u8[32] culprit    all zero: nobody in particular
//     33 u8 n, n bytes     phase
//        the rest          one sentence
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>

#include "collective/engine.h"
#include "core/types.h"

namespace decentral {

// Names an operation among all that a run ever does. A key is used once: a retry has another
// attempt number.
struct OpKey {
  uint64_t round = 0;
  uint32_t attempt = 0;
  uint32_t tag = 0;
  auto operator<=>(const OpKey&) const = default;
};

inline constexpr uint8_t kReadyFlag = 0;
inline constexpr uint8_t kProgressFlag = 1;

struct ReadyFrame {
  static constexpr size_t kSize = 112;
  uint32_t ticket = 0;
  uint32_t granted = 0;
  uint32_t chunk_bytes = 0;
  uint8_t kind = 0, dtype = 0, codec = 0, final_codec = 0;
  uint32_t member_count = 0;
  float scale = 0;
  uint64_t count = 0;
  std::array<char, kMaxScheduleName> schedule{};
  Hash256 members{};
  Hash256 segments{};
};

struct ProgressFrame {
  static constexpr size_t kSize = 8;
  uint32_t ticket = 0;
  uint32_t granted = 0;
};

std::string EncodeReady(const ReadyFrame&);
std::optional<ReadyFrame> DecodeReady(const uint8_t* payload, size_t size);
std::string EncodeProgress(const ProgressFrame&);
std::optional<ProgressFrame> DecodeProgress(const uint8_t* payload, size_t size);
// The Error's peer is the culprit.
std::string EncodeAbort(const Error&);
std::optional<Error> DecodeAbort(const uint8_t* payload, size_t size);

// Our side of the comparison, but for ticket and granted.
ReadyFrame Describe(const OpSpec&);
// What differs, as "count 10, <us> has count 12"; empty: nothing that matters.
std::string Difference(const ReadyFrame& theirs, const ReadyFrame& ours, const PeerId& us);

const char* CodecName(uint32_t codec);
// "peer:" and the first eight characters, as people see it elsewhere (decentral.types.short).
std::string ShortName(const PeerId&);

// Elements per chunk: whole int8 blocks, so that the grain never changes a bit.
inline uint64_t ChunkElements(uint32_t chunk_bytes) {
  const uint64_t elements = chunk_bytes / sizeof(float) / kInt8Block * kInt8Block;
  return elements == 0 ? kInt8Block : elements;
}

}  // namespace decentral
