// int8, int4 and fp4 (E3M0): blocks behind scales, values packed into 32-bit words. They differ in
// how a value becomes bits, in the size of a block and in the precision of its scale.
//
//   group of n <= 256:  | scale of each block | word 0 | word 1 | ... | word m-1 |
//
//     with r = 32 / bits values per word and m = ceil(n / r):
//     the p-th field of word j, from the low end, is value p * m + j
//
//   4 bits:  word 0    word 1  ...  word 31    A whole group is r rows of m values: packing is
//      p=0    x[0]      x[1]         x[31]     shifts and ors of whole rows, in lanes of the width
//      p=1    x[32]     x[33]        x[63]     that the arithmetic has anyway. Narrowing lanes to
//       :                                      bytes in the order of the values takes twice the
//      p=7    x[224]    x[225]       x[255]    time (three times for pairs of 4 bits).
#include "collective/codec.h"
#include "collective/codec_kernels.h"

namespace decentral {
namespace {

constexpr size_t kGroup = kCodecBlock;

// Round to nearest even in [-127, 127].
struct Int8 {
  static constexpr size_t kBlock = kInt8Block;
  static constexpr size_t kBits = 8;
  using WireScale = uint32_t;                     // the upper part of a float
  static constexpr uint32_t kScaleMask = ~0x7Fu;  // 17 significant bits
  static constexpr float kTop = 127.0f;           // absmax / scale
  static DECENTRAL_INLINE uint32_t ToBits(float y) { return static_cast<uint32_t>(RoundToEven(y)); }
  static DECENTRAL_INLINE float FromBits(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(bits << 24) >> 24);  // extends the sign
  }
};

// Round to nearest even in [-7, 7].
struct Int4 {
  static constexpr size_t kBlock = kInt4Block;
  static constexpr size_t kBits = 4;
  using WireScale = uint16_t;
  static constexpr uint32_t kScaleMask = ~0xFFFFu;  // bf16: 8 significant bits
  static constexpr float kTop = 7.0f;
  static DECENTRAL_INLINE uint32_t ToBits(float y) { return static_cast<uint32_t>(RoundToEven(y)); }
  static DECENTRAL_INLINE float FromBits(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(bits << 28) >> 28);
  }
};

// Sign, then 0 for zero and e for 2^(e - 1): round to the nearer value, ties away from zero.
struct Fp4 {
  static constexpr size_t kBlock = kFp4Block;
  static constexpr size_t kBits = 4;
  using WireScale = uint16_t;
  static constexpr uint32_t kScaleMask = ~0xFFFFu;
  static constexpr float kTop = 64.0f;
  static DECENTRAL_INLINE uint32_t ToBits(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    // Half a mantissa carries 1.5 * 2^k and more into the next exponent. From 1/2 on, 1 is nearer
    // than 0, although the exponent of values below 3/4 says 1/2.
    const auto code = static_cast<int32_t>((magnitude + 0x400000) >> 23) - 126;
    const int32_t at_least = magnitude >= std::bit_cast<uint32_t>(0.5f) ? 1 : 0;
    return static_cast<uint32_t>(code > at_least ? code : at_least) | bits >> 31 << 3;
  }
  static DECENTRAL_INLINE float FromBits(uint32_t bits) {
    const uint32_t code = bits & 7;
    return std::bit_cast<float>((code == 0 ? 0 : (code + 126) << 23) | (bits & 8) << 28);
  }
};

template <typename Rule>
constexpr uint32_t kField = (1u << Rule::kBits) - 1;
template <typename Rule>
constexpr size_t kRows = 32 / Rule::kBits;
template <typename Rule>
constexpr size_t kWords = kGroup / kRows<Rule>;
template <typename Rule>
constexpr size_t kBlocks = kGroup / Rule::kBlock;

// A block's scale, and what its values are multiplied with and kept of.
struct Step {
  uint32_t scale_bits;
  float inverse;
  uint32_t keep;  // 0: the block travels as zeros
};

// The scale keeps so few bits that value * scale is exact (24 in all), and encoding what was
// decoded finds the same scale. Cut, not rounded: kTop * scale never exceeds absmax, nor the range
// of floats; absmax / scale is at most 1 % above kTop (int8: 0.002 %) and still rounds to it.
template <typename Rule>
DECENTRAL_INLINE Step StepOf(int32_t top) {
  constexpr int32_t kTinyBits = std::bit_cast<int32_t>(Rule::kTop * kSmallestScale);
  const uint32_t cut =
      std::bit_cast<uint32_t>(std::bit_cast<float>(top) / Rule::kTop) & Rule::kScaleMask;
  const bool finite = top < kInfinityBits, good = finite && top >= kTinyBits;
  const uint32_t odd = finite ? 0 : std::bit_cast<uint32_t>(kNan);
  return {good ? cut : odd, 1.0f / std::bit_cast<float>(cut), good ? kField<Rule> : 0};
}

template <typename Rule>
constexpr int kScaleShift = 8 * (sizeof(float) - sizeof(typename Rule::WireScale));

template <typename Rule>
DECENTRAL_INLINE typename Rule::WireScale ToWire(uint32_t scale_bits) {
  return static_cast<typename Rule::WireScale>(scale_bits >> kScaleShift<Rule>);
}

template <typename Rule>
DECENTRAL_INLINE float FromWire(typename Rule::WireScale scale) {
  return std::bit_cast<float>(static_cast<uint32_t>(scale) << kScaleShift<Rule>);
}

template <typename Rule>
DECENTRAL_INLINE void EncodeGroup(const float* x, float weight, uint8_t* out) {
  typename Rule::WireScale scales[kBlocks<Rule>];
  int32_t top[kBlocks<Rule>];
  float inverse[kBlocks<Rule>];
  uint32_t keep[kBlocks<Rule>], words[kWords<Rule>];
  for (size_t b = 0; b < kBlocks<Rule>; ++b) {
    top[b] = TopBits(x + b * Rule::kBlock, Rule::kBlock, weight);
  }
  for (size_t b = 0; b < kBlocks<Rule>; ++b) {  // the divisions of all blocks at once
    const Step step = StepOf<Rule>(top[b]);
    scales[b] = ToWire<Rule>(step.scale_bits);
    inverse[b] = step.inverse;
    keep[b] = step.keep;
  }
  DECENTRAL_ELEMENTWISE
  for (size_t j = 0; j < kWords<Rule>; ++j) {
    uint32_t word = 0;
    for (size_t p = 0; p < kRows<Rule>; ++p) {
      const size_t row = p * kWords<Rule>, b = row / Rule::kBlock;
      word |= (Rule::ToBits(weight * x[row + j] * inverse[b]) & keep[b]) << (Rule::kBits * p);
    }
    words[j] = word;
  }
  std::memcpy(out, scales, sizeof(scales));
  std::memcpy(out + sizeof(scales), words, sizeof(words));
}

template <typename Rule>
constexpr size_t kGroupBytes =
    kBlocks<Rule> * sizeof(typename Rule::WireScale) + kWords<Rule> * sizeof(uint32_t);

// What is left: shorter than a group, and rare.
template <typename Rule>
void EncodeRest(const float* x, size_t n, float weight, uint8_t* out) {
  const size_t m = (n + kRows<Rule> - 1) / kRows<Rule>;
  uint32_t words[kWords<Rule>] = {};
  for (size_t first = 0; first < n; first += Rule::kBlock) {
    const size_t last = n - first < Rule::kBlock ? n : first + Rule::kBlock;
    const Step step = StepOf<Rule>(TopBits(x + first, last - first, weight));
    const auto scale = ToWire<Rule>(step.scale_bits);
    std::memcpy(out, &scale, sizeof(scale));
    out += sizeof(scale);
    for (size_t i = first; i < last; ++i) {
      const uint32_t field = Rule::ToBits(weight * x[i] * step.inverse) & step.keep;
      words[i % m] |= field << (Rule::kBits * (i / m));
    }
  }
  std::memcpy(out, words, m * sizeof(uint32_t));
}

template <typename Rule>
DECENTRAL_INLINE void EncodeAll(const float* src, size_t count, float weight, uint8_t* out) {
  for (; count >= kGroup; count -= kGroup) {
    EncodeGroup<Rule>(src, weight, out);
    src += kGroup;
    out += kGroupBytes<Rule>;
  }
  if (count > 0) EncodeRest<Rule>(src, count, weight, out);
}

template <typename Rule, typename Sink>
DECENTRAL_INLINE void DecodeAll(const uint8_t* in, size_t count, Sink sink) {
  typename Rule::WireScale scales[kBlocks<Rule>];
  uint32_t words[kWords<Rule>];
  size_t start = 0;
  for (; count - start >= kGroup; start += kGroup) {
    std::memcpy(scales, in, sizeof(scales));
    std::memcpy(words, in + sizeof(scales), sizeof(words));
    for (size_t p = 0; p < kRows<Rule>; ++p) {
      const size_t row = p * kWords<Rule>;
      const float scale = FromWire<Rule>(scales[row / Rule::kBlock]);
      DECENTRAL_ELEMENTWISE
      for (size_t j = 0; j < kWords<Rule>; ++j) {
        sink(start + row + j, Rule::FromBits(words[j] >> (Rule::kBits * p)) * scale);
      }
    }
    in += kGroupBytes<Rule>;
  }
  const size_t n = count - start, blocks = (n + Rule::kBlock - 1) / Rule::kBlock;
  const size_t m = (n + kRows<Rule> - 1) / kRows<Rule>;
  std::memcpy(scales, in, blocks * sizeof(scales[0]));
  std::memcpy(words, in + blocks * sizeof(scales[0]), m * sizeof(uint32_t));
  for (size_t i = 0; i < n; ++i) {
    const float scale = FromWire<Rule>(scales[i / Rule::kBlock]);
    sink(start + i, Rule::FromBits(words[i % m] >> (Rule::kBits * (i / m))) * scale);
  }
}

}  // namespace

DECENTRAL_PER_ISA void EncodeInt8(const float* src, size_t count, float weight, uint8_t* out) {
  EncodeAll<Int8>(src, count, weight, out);
}

DECENTRAL_PER_ISA void DecodeInt8(const uint8_t* in, size_t count, float* out) {
  DecodeAll<Int8>(in, count, Store{out});
}

DECENTRAL_PER_ISA void AddInt8(const uint8_t* in, size_t count, const float* src, float weight,
                               float* out) {
  DecodeAll<Int8>(in, count, AddToScaled{src, weight, out});
}

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
