// The kernels behind Encode, Decode and DecodeAdd (codec.h), and the pieces that they share.
// Private to codec*.cc.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/vectorize.h"

// Loop bodies are inlined into the functions that DECENTRAL_PER_ISA compiles several times, or they
// would be compiled for the baseline only.
#if defined(__GNUC__)
#define DECENTRAL_INLINE inline __attribute__((always_inline))
#else
#define DECENTRAL_INLINE inline
#endif

namespace decentral {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");
static_assert(std::numeric_limits<float>::is_iec559);

inline constexpr int32_t kInfinityBits = 0x7F800000;
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Scales below this travel as zero (codec.h).
inline constexpr float kSmallestScale = 2 * std::numeric_limits<float>::min();

// Adding 1.5 * 2^23 leaves round-to-nearest-even(x) in the low mantissa bits, for |x| < 2^22.
inline constexpr float kRoundMagic = 12582912.0f;
inline constexpr int32_t kRoundMagicBits = 0x4B400000;

DECENTRAL_INLINE int32_t RoundToEven(float value) {
  return std::bit_cast<int32_t>(value + kRoundMagic) - kRoundMagicBits;
}

// The largest magnitude of weight * x as bits. As integers, magnitudes order like floats, with
// infinity and NaN on top: one max finds the absmax and whether anything is not finite, and needs
// no reassociation to vectorize.
DECENTRAL_INLINE int32_t TopBits(const float* x, size_t n, float weight) {
  int32_t top = 0;
  for (size_t i = 0; i < n; ++i) {
    const int32_t magnitude = std::bit_cast<int32_t>(weight * x[i]) & 0x7FFFFFFF;
    top = magnitude > top ? magnitude : top;
  }
  return top;
}

// What a decoded value does to `out`: replaces it, or is added to weight * src. Functors, so that
// one loop serves Decode and DecodeAdd.
struct Store {
  float* out;
  DECENTRAL_INLINE void operator()(size_t i, float value) const { out[i] = value; }
};
struct AddToScaled {
  const float* src;
  float weight;
  float* out;
  DECENTRAL_INLINE void operator()(size_t i, float value) const {
    out[i] = value + weight * src[i];
  }
};

void EncodeBf16(const float* src, size_t count, float weight, uint16_t* out);
void DecodeBf16(const uint16_t* in, size_t count, float* out);
void AddBf16(const uint16_t* in, size_t count, const float* src, float weight, float* out);

void EncodeFp16(const float* src, size_t count, float weight, uint16_t* out);
void DecodeFp16(const uint16_t* in, size_t count, float* out);
void AddFp16(const uint16_t* in, size_t count, const float* src, float weight, float* out);

void EncodeInt8(const float* src, size_t count, float weight, uint8_t* out);
void DecodeInt8(const uint8_t* in, size_t count, float* out);
void AddInt8(const uint8_t* in, size_t count, const float* src, float weight, float* out);

void EncodeInt4(const float* src, size_t count, float weight, uint8_t* out);
void DecodeInt4(const uint8_t* in, size_t count, float* out);
void AddInt4(const uint8_t* in, size_t count, const float* src, float weight, float* out);

void EncodeFp4(const float* src, size_t count, float weight, uint8_t* out);
void DecodeFp4(const uint8_t* in, size_t count, float* out);
void AddFp4(const uint8_t* in, size_t count, const float* src, float weight, float* out);

void EncodeSign(const float* src, size_t count, float weight, uint8_t* out);
void DecodeSign(const uint8_t* in, size_t count, float* out);
void AddSign(const uint8_t* in, size_t count, const float* src, float weight, float* out);

}  // namespace decentral
