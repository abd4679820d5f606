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

constexpr uint32_t kOneBit = 1u << 23;  // of an fp32 exponent
// Exponents are biased by 127 in fp32 and by 15 in fp16.
constexpr uint32_t kRebias = (127 - 15) * kOneBit;
constexpr uint32_t kSmallestNormal = kRebias + kOneBit;  // 2^-14
constexpr uint32_t kOverflow = 0x477FF000;               // 65520 rounds to infinity

DECENTRAL_INLINE uint16_t ToFp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu;
  // Adding 2^13 times its power of two to a value leaves it rounded to fp16's 11 bits. Below the
  // smallest normal all share one power, as fp16's subnormals do.
  uint32_t power = magnitude & kInfinityBits;
  power = power < kSmallestNormal ? kSmallestNormal : power;
  const uint32_t magic = power + 13 * kOneBit;
  const uint32_t significand =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(magic)) -
      magic;
  uint32_t half = significand + ((power - kSmallestNormal) >> 13);  // 2^10 carries into it
  half = magnitude >= kOverflow ? 0x7C00 : half;
  half |= (bits >> 16) & 0x8000;
  half = magnitude > kInfinityBits ? 0x7E00 : half;  // one NaN: signs of NaN differ by machine
  return static_cast<uint16_t>(half);
}

DECENTRAL_INLINE float FromFp16(uint32_t half) {
  const uint32_t magnitude = (half & 0x7FFFu) << 13;
  // Infinity and NaN take the rest of the way to the top exponent.
  const uint32_t normal = magnitude + kRebias + (magnitude >= 0x7C00u << 13 ? kRebias : 0);
  // An fp32 subnormal would be at the mercy of flushing: borrow an exponent, and subtract it again.
  const uint32_t subnormal = std::bit_cast<uint32_t>(
      std::bit_cast<float>(magnitude + kSmallestNormal) - std::bit_cast<float>(kSmallestNormal));
  const uint32_t sign = (half & 0x8000u) << 16;
  return std::bit_cast<float>((magnitude < 0x400u << 13 ? subnormal : normal) | sign);
}

// Two values per 32-bit word: lanes stay as wide as the arithmetic, which takes half the time of
// narrowing them.
template <typename Round>
DECENTRAL_INLINE void EncodePairs(const float* src, size_t count, float weight, uint16_t* out,
                                  Round round) {
  const size_t pairs = count / 2;
  DECENTRAL_ELEMENTWISE
  for (size_t j = 0; j < pairs; ++j) {
    const uint32_t low = round(weight * src[2 * j]), high = round(weight * src[2 * j + 1]);
    const uint32_t pair = low | high << 16;
    std::memcpy(out + 2 * j, &pair, sizeof(pair));
  }
  if (count % 2 != 0) out[count - 1] = round(weight * src[count - 1]);
}

template <typename Widen, typename Sink>
DECENTRAL_INLINE void DecodePairs(const uint16_t* in, size_t count, Widen widen, Sink sink) {
  const size_t pairs = count / 2;
  DECENTRAL_ELEMENTWISE
  for (size_t j = 0; j < pairs; ++j) {
    uint32_t pair;
    std::memcpy(&pair, in + 2 * j, sizeof(pair));
    sink(2 * j, widen(pair & 0xFFFF));
    sink(2 * j + 1, widen(pair >> 16));
  }
  if (count % 2 != 0) sink(count - 1, widen(in[count - 1]));
}

}  // namespace

DECENTRAL_PER_ISA void EncodeBf16(const float* src, size_t count, float weight, uint16_t* out) {
  EncodePairs(src, count, weight, out, [](float x) { return ToBf16(x); });
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
  EncodePairs(src, count, weight, out, [](float x) { return ToFp16(x); });
}

DECENTRAL_PER_ISA void DecodeFp16(const uint16_t* in, size_t count, float* out) {
  DecodePairs(in, count, [](uint32_t half) { return FromFp16(half); }, Store{out});
}

DECENTRAL_PER_ISA void AddFp16(const uint16_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DecodePairs(
      in, count, [](uint32_t half) { return FromFp16(half); }, AddToScaled{src, weight, out});
}

}  // namespace decentral
