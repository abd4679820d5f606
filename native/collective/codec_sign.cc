// sign: one bit per value, and the mean magnitude of each block of 256.
//
//   block of n, m = ceil(n / 8):  | f32 scale | byte 0 | ... | byte m-1 |
//                                   bit b of byte j: the sign of value b * m + j
//
// In planes, packing is shifts and ors of whole rows; bits in order would need a transposition.
#include "collective/codec.h"
#include "collective/codec_kernels.h"

namespace decentral {
namespace {

constexpr float kTiny = 0x1p-100f;
constexpr int32_t kTinyBits = std::bit_cast<int32_t>(kTiny);

constexpr uint32_t kUnits = 1u << 22;  // absmax is less than this, and at least half

// 2^exponent, of a normal float.
DECENTRAL_INLINE float PowerOfTwo(int32_t exponent) {
  return std::bit_cast<float>((exponent + 127) << 23);
}

// The mean magnitude, in integers of 22 bits below absmax: sums of integers come out the same in
// any order, so that every vector width gives these bits. It cannot overflow, and where all
// magnitudes are equal the mean is exactly that (which is why encoding what was decoded gives the
// same bytes).
DECENTRAL_INLINE float MeanMagnitude(const float* x, size_t n, float weight, int32_t top) {
  const int32_t exponent = (top >> 23) - 127;
  const float up = PowerOfTwo(21 - exponent);
  uint32_t sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const float value = weight * x[i];
    const float magnitude = std::bit_cast<float>(std::bit_cast<int32_t>(value) & 0x7FFFFFFF);
    sum += static_cast<uint32_t>(RoundToEven(magnitude * up));
  }
  const auto count = static_cast<uint32_t>(n);
  const uint32_t mean = (sum + count / 2) / count;
  // A mean that rounds up to the next power of two could be infinite.
  return static_cast<float>(mean < kUnits ? mean : kUnits - 1) * PowerOfTwo(exponent - 21);
}

DECENTRAL_INLINE uint32_t SignBit(float value) { return std::bit_cast<uint32_t>(value) >> 31; }

DECENTRAL_INLINE void EncodeBlock(const float* x, size_t n, float weight, uint8_t* out) {
  const int32_t top = TopBits(x, n, weight);
  const size_t rows = (n + 7) / 8;
  uint8_t* bits = out + sizeof(float);
  float scale = 0.0f;
  if (top >= kInfinityBits) {
    scale = kNan;
  } else if (top >= kTinyBits) {
    scale = MeanMagnitude(x, n, weight, top);
    if (scale < kTiny) scale = 0.0f;
  }
  std::memcpy(out, &scale, sizeof(scale));
  if (scale > 0.0f && n == kSignBlock) {
    constexpr size_t kRows = kSignBlock / 8;
    uint32_t packed[kRows] = {};
    for (size_t b = 0; b < 8; ++b) {
      for (size_t j = 0; j < kRows; ++j) packed[j] |= SignBit(weight * x[b * kRows + j]) << b;
    }
    DECENTRAL_ELEMENTWISE
    for (size_t j = 0; j < kRows; ++j) bits[j] = static_cast<uint8_t>(packed[j]);
    return;
  }
  std::memset(bits, 0, rows);
  if (scale > 0.0f) {
    for (size_t i = 0; i < n; ++i) {
      bits[i % rows] |= static_cast<uint8_t>(SignBit(weight * x[i]) << i / rows);
    }
  }
}

template <typename Sink>
DECENTRAL_INLINE void DecodeBlock(const uint8_t* in, size_t start, size_t n, Sink sink) {
  uint32_t scale;
  std::memcpy(&scale, in, sizeof(scale));
  const uint8_t* bits = in + sizeof(float);
  const size_t rows = (n + 7) / 8;
  for (size_t b = 0; b * rows < n; ++b) {
    const size_t first = b * rows, m = n - first < rows ? n - first : rows;
    DECENTRAL_ELEMENTWISE
    for (size_t j = 0; j < m; ++j) {
      const uint32_t sign = static_cast<uint32_t>(bits[j]) >> b << 31;
      sink(start + first + j, std::bit_cast<float>(scale ^ sign));
    }
  }
}

template <typename Sink>
DECENTRAL_INLINE void DecodeAll(const uint8_t* in, size_t count, Sink sink) {
  size_t start = 0;
  for (; count - start >= kSignBlock; start += kSignBlock) {
    DecodeBlock(in, start, kSignBlock, sink);
    in += sizeof(float) + kSignBlock / 8;
  }
  if (start < count) DecodeBlock(in, start, count - start, sink);
}

}  // namespace

DECENTRAL_PER_ISA void EncodeSign(const float* src, size_t count, float weight, uint8_t* out) {
  for (; count >= kSignBlock; count -= kSignBlock) {
    EncodeBlock(src, kSignBlock, weight, out);
    src += kSignBlock;
    out += sizeof(float) + kSignBlock / 8;
  }
  if (count > 0) EncodeBlock(src, count, weight, out);
}

DECENTRAL_PER_ISA void DecodeSign(const uint8_t* in, size_t count, float* out) {
  DecodeAll(in, count, Store{out});
}

DECENTRAL_PER_ISA void AddSign(const uint8_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DecodeAll(in, count, AddToScaled{src, weight, out});
}

}  // namespace decentral
