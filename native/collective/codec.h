// Codecs: fp32 values to wire bytes and back, portable kernels that the compiler vectorizes.
// Every decoded bit is canonical: the same bytes decode to the same floats on any machine
// (-ffp-contract=off, no reassociation).
#pragma once

#include <cstddef>
#include <cstdint>

namespace decentral {

enum class Codec : uint8_t {
  kFp32 = 0,  // as it is
  kBf16 = 1,  // round to nearest even; NaN stays NaN
  kInt8 = 2,  // blocks of kInt8Block: fp32 absmax/127 scale, then int8, round to nearest even
};

inline constexpr size_t kInt8Block = 256;

// int8 and non-finite input: a block that holds an infinity or a NaN is encoded with a NaN scale
// and decodes to NaN everywhere, for the layer above to refuse. A block whose absmax is below
// 127 * FLT_MIN (1.5e-36) is encoded as zeros, scale 0.

// Wire bytes for `count` values. Blocks never straddle a chunk: chunk sizes are multiples of
// kInt8Block elements, except the last chunk of a segment.
size_t EncodedSize(Codec, size_t count);
// Wire bytes are aligned like the values that they hold (fp32: 4, bf16: 2, int8: 1). A weight of
// zero is an absence, not a factor: the source is not read, so that 0 * NaN poisons nobody.
// `out` may be `src` itself, and with fp32 `in` itself.

// out = encode(weight * src)
void Encode(Codec, const float* src, size_t count, float weight, uint8_t* out);
// out = decode(in)
void Decode(Codec, const uint8_t* in, size_t count, float* out);
// acc = decode(in) + acc, where acc starts as weight * src: out = decode(in) + weight * src
void DecodeAdd(Codec, const uint8_t* in, size_t count, const float* src, float weight, float* out);

}  // namespace decentral
