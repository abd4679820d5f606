// bf16 and fp16: each value on its own, rounded to nearest even. Plain integer arithmetic, so that
// every machine gives the same bits, with or without conversion instructions.
#include "collective/codec_kernels.h"

namespace decentral {
namespace {

DECENTRAL_INLINE uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;  // quiet, and never rounded into infinity
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > kInfinityBits ? nan : rounded);
}

DECENTRAL_INLINE float FromBf16(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

// Exponents are biased by 127 in fp32 and by 15 in fp16.
constexpr int32_t kRebias = (127 - 15) << 23;
constexpr int32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
constexpr int32_t kOverflow = 0x477FF000;              // 65520 rounds to infinity
constexpr float kUnitOfSubnormals = 0.5f;              // its last bit is 2^-24, fp16's smallest

DECENTRAL_INLINE uint16_t ToFp16(float value) {
  const int32_t bits = std::bit_cast<int32_t>(value);
  const int32_t magnitude = bits & 0x7FFFFFFF;
  const int32_t normal = (magnitude - kRebias + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  const int32_t subnormal =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) + kUnitOfSubnormals) -
      std::bit_cast<int32_t>(kUnitOfSubnormals);
  int32_t half = magnitude < kSmallestNormal ? subnormal : normal;
  half = magnitude >= kOverflow ? 0x7C00 : half;
  half |= (bits >> 16) & 0x8000;
  half = magnitude > kInfinityBits ? 0x7E00 : half;  // one NaN: signs of NaN differ by machine
  return static_cast<uint16_t>(half);
}

DECENTRAL_INLINE float FromFp16(uint16_t half) {
  const int32_t magnitude = (half & 0x7FFF) << 13;
  // Infinity and NaN take the rest of the way to the top exponent.
  const int32_t normal = magnitude + kRebias + (magnitude >= 0x7C00 << 13 ? kRebias : 0);
  // An fp32 subnormal would be at the mercy of flushing: borrow an exponent, and subtract it again.
  const int32_t subnormal = std::bit_cast<int32_t>(
      std::bit_cast<float>(magnitude + kSmallestNormal) - std::bit_cast<float>(kSmallestNormal));
  const uint32_t bits =
      static_cast<uint32_t>(magnitude < 0x400 << 13 ? subnormal : normal) | (half & 0x8000u) << 16;
  return std::bit_cast<float>(bits);
}

}  // namespace

DECENTRAL_PER_ISA void EncodeBf16(const float* src, size_t count, float weight, uint16_t* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = ToBf16(weight * src[i]);
}

DECENTRAL_PER_ISA void DecodeBf16(const uint16_t* in, size_t count, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = FromBf16(in[i]);
}

DECENTRAL_PER_ISA void AddBf16(const uint16_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = FromBf16(in[i]) + weight * src[i];
}

DECENTRAL_PER_ISA void EncodeFp16(const float* src, size_t count, float weight, uint16_t* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = ToFp16(weight * src[i]);
}

DECENTRAL_PER_ISA void DecodeFp16(const uint16_t* in, size_t count, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = FromFp16(in[i]);
}

DECENTRAL_PER_ISA void AddFp16(const uint16_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = FromFp16(in[i]) + weight * src[i];
}

}  // namespace decentral
