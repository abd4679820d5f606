// int8: blocks of 256 behind an fp32 scale, round to nearest even in [-127, 127].
#include "collective/codec.h"
#include "collective/codec_kernels.h"

namespace decentral {
namespace {

constexpr int32_t kTinyBits = std::bit_cast<int32_t>(127 * kSmallestScale);

// 17 significant bits: q * scale is exact then, and encoding what was decoded finds the same scale.
// Cut, not rounded: 127 * scale never exceeds absmax, nor the range of floats; and absmax / scale
// is below 127.01, which still rounds to 127.
DECENTRAL_INLINE float Scale(int32_t top) {
  return std::bit_cast<float>(std::bit_cast<int32_t>(std::bit_cast<float>(top) / 127.0f) & ~0x7F);
}

DECENTRAL_INLINE void EncodeBlock(const float* x, size_t n, float weight, uint8_t* out) {
  const int32_t top = TopBits(x, n, weight);
  float scale = 0.0f;
  if (top >= kInfinityBits || top < kTinyBits) {
    if (top >= kInfinityBits) scale = kNan;
    std::memset(out + sizeof(float), 0, n);
  } else {
    scale = Scale(top);
    const float inverse = 1.0f / scale;
    auto* q = reinterpret_cast<int8_t*>(out + sizeof(float));
    DECENTRAL_ELEMENTWISE
    for (size_t i = 0; i < n; ++i) {
      q[i] = static_cast<int8_t>(RoundToEven(weight * x[i] * inverse));
    }
  }
  std::memcpy(out, &scale, sizeof(scale));
}

template <typename Sink>
DECENTRAL_INLINE void ForEachDecoded(const uint8_t* in, size_t count, Sink sink) {
  for (size_t start = 0; start < count; start += kInt8Block) {
    const size_t n = count - start < kInt8Block ? count - start : kInt8Block;
    float scale;
    std::memcpy(&scale, in, sizeof(scale));
    const auto* q = reinterpret_cast<const int8_t*>(in + sizeof(float));
    DECENTRAL_ELEMENTWISE
    for (size_t i = 0; i < n; ++i) sink(start + i, static_cast<float>(q[i]) * scale);
    in += sizeof(float) + kInt8Block;
  }
}

}  // namespace

DECENTRAL_PER_ISA void EncodeInt8(const float* src, size_t count, float weight, uint8_t* out) {
  for (; count >= kInt8Block; count -= kInt8Block) {
    EncodeBlock(src, kInt8Block, weight, out);
    src += kInt8Block;
    out += sizeof(float) + kInt8Block;
  }
  if (count > 0) EncodeBlock(src, count, weight, out);
}

DECENTRAL_PER_ISA void DecodeInt8(const uint8_t* in, size_t count, float* out) {
  ForEachDecoded(in, count, Store{out});
}

DECENTRAL_PER_ISA void AddInt8(const uint8_t* in, size_t count, const float* src, float weight,
                               float* out) {
  ForEachDecoded(in, count, AddToScaled{src, weight, out});
}

}  // namespace decentral
