// int4 and fp4 (E3M0): blocks behind a bf16 scale, two values per byte. They differ in how a value
// becomes four bits, and in the size of a block.
//
//   block of n:  | u16 scale | v0 v(h) | v1 v(h+1) | ... |   h = ceil(n / 2), low half of a byte
//                                                            first
#include "collective/codec.h"
#include "collective/codec_kernels.h"

namespace decentral {
namespace {

// Round to nearest even in [-7, 7].
struct Int4 {
  static constexpr size_t kBlock = kInt4Block;
  static constexpr float kTop = 7.0f;  // absmax / scale
  static DECENTRAL_INLINE uint32_t ToBits(float y) {
    return static_cast<uint32_t>(RoundToEven(y)) & 0xF;
  }
  static DECENTRAL_INLINE float FromBits(uint32_t bits) {
    // Sign extension without a signed shift of what was narrowed: 0..15 -> -8..7.
    return static_cast<float>(static_cast<int32_t>(bits ^ 8) - 8);
  }
};

// Sign, then 0 for zero and e for 2^(e - 1): round to the nearer value, ties away from zero.
struct Fp4 {
  static constexpr size_t kBlock = kFp4Block;
  static constexpr float kTop = 64.0f;
  static DECENTRAL_INLINE uint32_t ToBits(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    const int32_t magnitude = static_cast<int32_t>(bits & 0x7FFFFFFF);
    // Half a mantissa carries 1.5 * 2^k and more into the next exponent. From 1/2 on, 1 is nearer
    // than 0, although the exponent of values below 3/4 says 1/2.
    int32_t code = ((magnitude + 0x400000) >> 23) - 126;
    const int32_t at_least = magnitude >= std::bit_cast<int32_t>(0.5f) ? 1 : 0;
    code = code > at_least ? code : at_least;
    return static_cast<uint32_t>(code) | bits >> 31 << 3;
  }
  static DECENTRAL_INLINE float FromBits(uint32_t bits) {
    const uint32_t code = bits & 7;
    return std::bit_cast<float>((code == 0 ? 0 : (code + 126) << 23) | bits >> 3 << 31);
  }
};

// The rules have 4 bits of significance at most, bf16 has 8: value * scale is exact, and encoding
// what was decoded finds the same scale. Cut, not rounded: kTop * scale never exceeds absmax, nor
// the range of floats; absmax / scale is at most 1 % above kTop and still rounds to it.
template <typename Rule>
DECENTRAL_INLINE void EncodeBlock(const float* x, size_t n, float weight, uint8_t* out) {
  constexpr int32_t kTinyBits = std::bit_cast<int32_t>(Rule::kTop * kSmallestScale);
  const int32_t top = TopBits(x, n, weight);
  const size_t half = (n + 1) / 2;
  uint8_t* packed = out + sizeof(uint16_t);
  uint32_t scale_bits = 0;
  if (top >= kInfinityBits || top < kTinyBits) {
    if (top >= kInfinityBits) scale_bits = std::bit_cast<uint32_t>(kNan);
    std::memset(packed, 0, half);
  } else {
    scale_bits = std::bit_cast<uint32_t>(std::bit_cast<float>(top) / Rule::kTop) & 0xFFFF0000u;
    const float inverse = 1.0f / std::bit_cast<float>(scale_bits);
    const size_t pairs = n / 2;
    DECENTRAL_ELEMENTWISE
    for (size_t j = 0; j < pairs; ++j) {
      const uint32_t low = Rule::ToBits(weight * x[j] * inverse);
      const uint32_t high = Rule::ToBits(weight * x[half + j] * inverse);
      packed[j] = static_cast<uint8_t>(low | high << 4);
    }
    if (pairs < half)
      packed[pairs] = static_cast<uint8_t>(Rule::ToBits(weight * x[pairs] * inverse));
  }
  const auto scale = static_cast<uint16_t>(scale_bits >> 16);
  std::memcpy(out, &scale, sizeof(scale));
}

template <typename Rule>
DECENTRAL_INLINE void EncodeAll(const float* src, size_t count, float weight, uint8_t* out) {
  for (; count >= Rule::kBlock; count -= Rule::kBlock) {
    EncodeBlock<Rule>(src, Rule::kBlock, weight, out);
    src += Rule::kBlock;
    out += sizeof(uint16_t) + Rule::kBlock / 2;
  }
  if (count > 0) EncodeBlock<Rule>(src, count, weight, out);
}

template <typename Rule, typename Sink>
DECENTRAL_INLINE void DecodeBlock(const uint8_t* in, size_t start, size_t n, Sink sink) {
  uint16_t scale_bits;
  std::memcpy(&scale_bits, in, sizeof(scale_bits));
  const float scale = std::bit_cast<float>(static_cast<uint32_t>(scale_bits) << 16);
  const uint8_t* packed = in + sizeof(uint16_t);
  const size_t half = (n + 1) / 2;
  DECENTRAL_ELEMENTWISE
  for (size_t j = 0; j < half; ++j) sink(start + j, Rule::FromBits(packed[j] & 0xF) * scale);
  DECENTRAL_ELEMENTWISE
  for (size_t j = 0; j < n / 2; ++j) {
    sink(start + half + j, Rule::FromBits(packed[j] >> 4) * scale);
  }
}

template <typename Rule, typename Sink>
DECENTRAL_INLINE void DecodeAll(const uint8_t* in, size_t count, Sink sink) {
  size_t start = 0;
  for (; count - start >= Rule::kBlock; start += Rule::kBlock) {
    DecodeBlock<Rule>(in, start, Rule::kBlock, sink);
    in += sizeof(uint16_t) + Rule::kBlock / 2;
  }
  if (start < count) DecodeBlock<Rule>(in, start, count - start, sink);
}

}  // namespace

DECENTRAL_PER_ISA void EncodeInt4(const float* src, size_t count, float weight, uint8_t* out) {
  EncodeAll<Int4>(src, count, weight, out);
}

DECENTRAL_PER_ISA void DecodeInt4(const uint8_t* in, size_t count, float* out) {
  DecodeAll<Int4>(in, count, Store{out});
}

DECENTRAL_PER_ISA void AddInt4(const uint8_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DecodeAll<Int4>(in, count, AddToScaled{src, weight, out});
}

DECENTRAL_PER_ISA void EncodeFp4(const float* src, size_t count, float weight, uint8_t* out) {
  EncodeAll<Fp4>(src, count, weight, out);
}

DECENTRAL_PER_ISA void DecodeFp4(const uint8_t* in, size_t count, float* out) {
  DecodeAll<Fp4>(in, count, Store{out});
}

DECENTRAL_PER_ISA void AddFp4(const uint8_t* in, size_t count, const float* src, float weight,
                              float* out) {
  DecodeAll<Fp4>(in, count, AddToScaled{src, weight, out});
}

}  // namespace decentral
