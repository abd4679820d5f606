#include "wire/frame.h"

#include <type_traits>

namespace decentral {
namespace {

// Byte by byte, so that the wire is little-endian on any machine; compilers make one move of it.
template <typename T>
void Put(uint8_t*& at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) *at++ = static_cast<uint8_t>(uint64_t{value} >> (8 * i));
}

template <typename T>
T Get(const uint8_t*& at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= uint64_t{*at++} << (8 * i);
  return static_cast<T>(value);
}

bool Known(uint8_t type) { return (type >= 1 && type <= 7) || (type >= 16 && type <= 18); }

static_assert(FrameHeader::kSize == 2 + 1 + 1 + 4 + 4 * 8 + 2 * 4 + 8,
              "the table in native/FORMAT.md");

}  // namespace

void EncodeHeader(const FrameHeader& header, uint8_t out[FrameHeader::kSize]) {
  uint8_t* at = out;
  Put<uint16_t>(at, FrameHeader::kMagic);
  Put<uint8_t>(at, static_cast<uint8_t>(header.type));
  Put<uint8_t>(at, header.flags);
  Put<uint32_t>(at, header.length);
  Put<uint64_t>(at, header.run);
  Put<uint64_t>(at, header.lineage);
  Put<uint64_t>(at, header.epoch);
  Put<uint64_t>(at, header.round);
  Put<uint32_t>(at, header.attempt);
  Put<uint32_t>(at, header.tag);
  Put<uint64_t>(at, header.sequence);
}

std::optional<FrameHeader> DecodeHeader(const uint8_t in[FrameHeader::kSize], uint32_t max_length) {
  const uint8_t* at = in;
  if (Get<uint16_t>(at) != FrameHeader::kMagic) return std::nullopt;
  const uint8_t type = Get<uint8_t>(at);
  if (!Known(type)) return std::nullopt;
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.flags = Get<uint8_t>(at);
  header.length = Get<uint32_t>(at);
  if (header.length > max_length) return std::nullopt;
  header.run = Get<uint64_t>(at);
  header.lineage = Get<uint64_t>(at);
  header.epoch = Get<uint64_t>(at);
  header.round = Get<uint64_t>(at);
  header.attempt = Get<uint32_t>(at);
  header.tag = Get<uint32_t>(at);
  header.sequence = Get<uint64_t>(at);
  return header;
}

}  // namespace decentral
