// Codecs: fp32 values to wire bytes and back, portable kernels that the compiler vectorizes.
// Every decoded bit is canonical: the same bytes decode to the same floats on any machine
// (-ffp-contract=off, no reassociation).
//
// Wire forms. Blocks share a scale; groups of 256 values hold their blocks' scales, then words.
//
//   fp32   | f32 f32 ...                                   as it is
//   bf16   | u16 u16 ...                                   round to nearest even
//   fp16   | u16 u16 ...                                   round to nearest even, with subnormals
//   int8   | f32 scale    | 64 words of 4 x i8     |       scale = absmax / 127
//   int4   | 8 bf16 scales | 32 words of 8 x i4    |       scale = absmax / 7
//   fp4    | 2 bf16 scales | 32 words of 8 x E3M0  |       +-scale * (0, 1, 2, 4 ... 64)
//   sign   | f32 scale    | 32 bytes of 8 x 1 bit  |       scale = mean magnitude, set: negative
//
// Of a group of n values with r values per word (sign: per byte) there are m = ceil(n / r) words,
// and the p-th field of word j is value p * m + j; fields that are left over are zero. Packing is
// elementwise that way: codec_packed.cc.
//
// Why these blocks. int4 spends its error on the step that the block's absmax dictates: 32 values
// per scale (4.5 bits) against 64 (4.25 bits) err 10 % less on gaussian input and 20 % less on
// heavy-tailed input, for 6 % more bytes. fp4's steps are relative, so that 128 (4.125 bits) err
// only 7 and 14 % more than 32. The scale is bf16 there: its error is far below the step's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace decentral {

enum class Codec : uint8_t {
  kFp32 = 0,
  kBf16 = 1,
  kInt8 = 2,
  kFp16 = 3,
  kInt4 = 4,
  kFp4 = 5,
  kSign = 6,
};

struct CodecInfo {
  const char* name;
  size_t block;  // values that share a scale; 1: each stands alone
  // encode(decode(b)) == b for all bytes b that Encode makes, so that finals need not be kept to be
  // passed on. True even of blockwise codecs: scales are cut to so few bits that the decoded
  // values are exact, and give the same scale again.
  bool reencodes;
  bool rides_ring;  // partial sums may be encoded again; a sum of signs has magnitudes
  Codec final;      // what finals travel as: wide enough for a sum
};

const CodecInfo* InfoOf(uint32_t codec);  // nullptr: unknown
inline const CodecInfo& InfoOf(Codec codec) { return *InfoOf(static_cast<uint32_t>(codec)); }
std::optional<Codec> CodecNamed(std::string_view name);

// Every block size divides this: chunks whose sizes are multiples of it never cut a block, and
// EncodedSize is additive over them.
inline constexpr size_t kCodecBlock = 256;
inline constexpr size_t kInt8Block = kCodecBlock;
inline constexpr size_t kInt4Block = 32;
inline constexpr size_t kFp4Block = 128;
inline constexpr size_t kSignBlock = kCodecBlock;

// What is not finite: bf16 and fp16 carry infinities and NaN (fp16 has one NaN, and becomes
// infinite from 65520 on; bf16 from just below FLT_MAX on). A block of a blockwise codec that holds
// any is encoded as a NaN scale and zeros, and decodes to NaN everywhere, for the layer above to
// refuse. A block whose scale would be below 2 * FLT_MIN (sign: 2^-100) travels as zeros, scale 0:
// a subnormal input is then always nearer to zero than to a step, and no result depends on whether
// a machine flushes subnormals.

// Wire bytes for `count` values. Blocks never straddle a chunk: chunk sizes are multiples of
// kCodecBlock elements, except the last chunk of a segment.
size_t EncodedSize(Codec, size_t count);
// Wire bytes are aligned like the values that they hold (fp32: 4, bf16 and fp16: 2, others: 1). A
// weight of zero is an absence, not a factor: the source is not read, so that 0 * NaN poisons
// nobody. Decoding takes any bytes. `out` may be `src` itself where it holds floats (DecodeAdd, and
// Encode to fp32), and with fp32 `in` itself.

// out = encode(weight * src)
void Encode(Codec, const float* src, size_t count, float weight, uint8_t* out);
// out = decode(in)
void Decode(Codec, const uint8_t* in, size_t count, float* out);
// acc = decode(in) + acc, where acc starts as weight * src: out = decode(in) + weight * src
void DecodeAdd(Codec, const uint8_t* in, size_t count, const float* src, float weight, float* out);

}  // namespace decentral
