// Plain loops that gcc and clang vectorize at -O3, for the baseline and, where the toolchain can,
// for wider registers too (core/vectorize.h).
#include "collective/codec.h"

#include <bit>
#include <cstring>
#include <limits>

#include "core/vectorize.h"

namespace decentral {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");
static_assert(std::numeric_limits<float>::is_iec559);

constexpr uint32_t kInfinityBits = 0x7F800000u;
constexpr size_t kInt8BlockBytes = sizeof(float) + kInt8Block;

// Below this absmax a block is sent as zeros: 127/absmax must stay finite, and results must not
// depend on whether a machine flushes subnormals. 127 * FLT_MIN is 1.5e-36.
constexpr float kInt8Tiny = 127.0f * std::numeric_limits<float>::min();

// Adding 1.5 * 2^23 leaves round-to-nearest-even(x) in the low mantissa bits, for |x| < 2^22.
constexpr float kRoundMagic = 12582912.0f;
constexpr int32_t kRoundMagicBits = 0x4B400000;

inline uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;  // quiet, and never rounded into infinity
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > kInfinityBits ? nan : rounded);
}

inline float FromBf16(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

// ---- fp32 -------------------------------------------------------------------------------------

DECENTRAL_PER_ISA void ScaleFp32(const float* src, size_t count, float weight, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = weight * src[i];
}

DECENTRAL_PER_ISA void AddFp32(const float* in, size_t count, const float* src, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = in[i] + src[i];
}

DECENTRAL_PER_ISA void AddScaledFp32(const float* in, size_t count, const float* src, float weight,
                                     float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = in[i] + weight * src[i];
}

// ---- bf16 -------------------------------------------------------------------------------------

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

// ---- int8 -------------------------------------------------------------------------------------
// A block: fp32 scale, then up to 256 int8. All-zero bytes behind scale 0 (a zero block) or a NaN
// scale (a block that held a non-finite value).

DECENTRAL_PER_ISA void EncodeInt8(const float* src, size_t count, float weight, uint8_t* out) {
  for (size_t start = 0; start < count; start += kInt8Block) {
    const size_t n = count - start < kInt8Block ? count - start : kInt8Block;
    const float* x = src + start;
    // As integers, magnitudes order like floats, with infinity and NaN on top: one max finds the
    // absmax and whether anything is not finite, and needs no reassociation to vectorize.
    uint32_t top = 0;
    for (size_t i = 0; i < n; ++i) {
      const uint32_t magnitude = std::bit_cast<uint32_t>(weight * x[i]) & 0x7FFFFFFFu;
      top = magnitude > top ? magnitude : top;
    }
    const float absmax = std::bit_cast<float>(top);
    auto* q = reinterpret_cast<int8_t*>(out + sizeof(float));
    if (top >= kInfinityBits || absmax < kInt8Tiny) {
      const float scale = top >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      std::memcpy(out, &scale, sizeof(scale));
      std::memset(q, 0, n);
    } else {
      const float scale = absmax / 127.0f;
      const float inverse = 127.0f / absmax;
      std::memcpy(out, &scale, sizeof(scale));
      for (size_t i = 0; i < n; ++i) {
        const float shifted = weight * x[i] * inverse + kRoundMagic;
        q[i] = static_cast<int8_t>(std::bit_cast<int32_t>(shifted) - kRoundMagicBits);
      }
    }
    out += sizeof(float) + n;
  }
}

DECENTRAL_PER_ISA void DecodeInt8(const uint8_t* in, size_t count, float* out) {
  for (size_t start = 0; start < count; start += kInt8Block) {
    const size_t n = count - start < kInt8Block ? count - start : kInt8Block;
    float scale;
    std::memcpy(&scale, in, sizeof(scale));
    const auto* q = reinterpret_cast<const int8_t*>(in + sizeof(float));
    DECENTRAL_ELEMENTWISE
    for (size_t i = 0; i < n; ++i) out[start + i] = static_cast<float>(q[i]) * scale;
    in += kInt8BlockBytes;
  }
}

DECENTRAL_PER_ISA void AddInt8(const uint8_t* in, size_t count, const float* src, float weight,
                               float* out) {
  for (size_t start = 0; start < count; start += kInt8Block) {
    const size_t n = count - start < kInt8Block ? count - start : kInt8Block;
    float scale;
    std::memcpy(&scale, in, sizeof(scale));
    const auto* q = reinterpret_cast<const int8_t*>(in + sizeof(float));
    DECENTRAL_ELEMENTWISE
    for (size_t i = 0; i < n; ++i) {
      out[start + i] = static_cast<float>(q[i]) * scale + weight * src[start + i];
    }
    in += kInt8BlockBytes;
  }
}

}  // namespace

size_t EncodedSize(Codec codec, size_t count) {
  switch (codec) {
    case Codec::kFp32:
      return count * sizeof(float);
    case Codec::kBf16:
      return count * sizeof(uint16_t);
    case Codec::kInt8:
      return count + (count + kInt8Block - 1) / kInt8Block * sizeof(float);
  }
  return 0;
}

void Encode(Codec codec, const float* src, size_t count, float weight, uint8_t* out) {
  if (count == 0) return;  // empty arrays may come without memory
  if (weight == 0.0f) {    // not a factor but an absence: 0 * NaN must not reach anybody
    std::memset(out, 0, EncodedSize(codec, count));
    return;
  }
  switch (codec) {
    case Codec::kFp32:
      if (weight == 1.0f) {
        std::memcpy(out, src, count * sizeof(float));
      } else {
        ScaleFp32(src, count, weight, reinterpret_cast<float*>(out));
      }
      return;
    case Codec::kBf16:
      return EncodeBf16(src, count, weight, reinterpret_cast<uint16_t*>(out));
    case Codec::kInt8:
      return EncodeInt8(src, count, weight, out);
  }
}

void Decode(Codec codec, const uint8_t* in, size_t count, float* out) {
  if (count == 0) return;
  switch (codec) {
    case Codec::kFp32:
      std::memcpy(out, in, count * sizeof(float));
      return;
    case Codec::kBf16:
      return DecodeBf16(reinterpret_cast<const uint16_t*>(in), count, out);
    case Codec::kInt8:
      return DecodeInt8(in, count, out);
  }
}

void DecodeAdd(Codec codec, const uint8_t* in, size_t count, const float* src, float weight,
               float* out) {
  if (weight == 0.0f) return Decode(codec, in, count, out);
  switch (codec) {
    case Codec::kFp32:
      if (weight == 1.0f) return AddFp32(reinterpret_cast<const float*>(in), count, src, out);
      return AddScaledFp32(reinterpret_cast<const float*>(in), count, src, weight, out);
    case Codec::kBf16:
      return AddBf16(reinterpret_cast<const uint16_t*>(in), count, src, weight, out);
    case Codec::kInt8:
      return AddInt8(in, count, src, weight, out);
  }
}

}  // namespace decentral
