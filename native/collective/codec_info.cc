// What is known of a codec without touching a value: its name, its rules and its size.
#include <iterator>

#include "collective/codec.h"

namespace decentral {
namespace {

constexpr CodecInfo kCodecs[] = {
    {.name = "fp32", .block = 1, .reencodes = true, .rides_ring = true, .final = Codec::kFp32},
    {.name = "bf16", .block = 1, .reencodes = true, .rides_ring = true, .final = Codec::kBf16},
    {.name = "int8",
     .block = kInt8Block,
     .reencodes = true,
     .rides_ring = true,
     .final = Codec::kInt8},
    {.name = "fp16", .block = 1, .reencodes = true, .rides_ring = true, .final = Codec::kFp16},
    {.name = "int4",
     .block = kInt4Block,
     .reencodes = true,
     .rides_ring = true,
     .final = Codec::kInt4},
    {.name = "fp4",
     .block = kFp4Block,
     .reencodes = true,
     .rides_ring = true,
     .final = Codec::kFp4},
    {.name = "sign",
     .block = kSignBlock,
     .reencodes = true,
     .rides_ring = false,
     .final = Codec::kInt8},
};

constexpr size_t Blocks(size_t count, size_t block) { return (count + block - 1) / block; }

}  // namespace

const CodecInfo* InfoOf(uint32_t codec) {
  return codec < std::size(kCodecs) ? &kCodecs[codec] : nullptr;
}

std::optional<Codec> CodecNamed(std::string_view name) {
  for (size_t i = 0; i < std::size(kCodecs); ++i) {
    if (name == kCodecs[i].name) return static_cast<Codec>(i);
  }
  return std::nullopt;
}

size_t EncodedSize(Codec codec, size_t count) {
  switch (codec) {
    case Codec::kFp32:
      return count * sizeof(float);
    case Codec::kBf16:
    case Codec::kFp16:
      return count * sizeof(uint16_t);
    case Codec::kInt8:
      return Blocks(count, 4) * sizeof(uint32_t) + Blocks(count, kInt8Block) * sizeof(float);
    case Codec::kInt4:
      return Blocks(count, 8) * sizeof(uint32_t) + Blocks(count, kInt4Block) * sizeof(uint16_t);
    case Codec::kFp4:
      return Blocks(count, 8) * sizeof(uint32_t) + Blocks(count, kFp4Block) * sizeof(uint16_t);
    case Codec::kSign:
      return (count + 7) / 8 + Blocks(count, kSignBlock) * sizeof(float);
  }
  return 0;
}

}  // namespace decentral
