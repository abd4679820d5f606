// Chunked top-k with 2-bit values, the wire form of SparseLoCo (Covenant AI / Templar,
// arXiv:2508.15706): of every 4096 values (64 x 64) the k largest by magnitude survive, as a sign
// and one of two magnitudes. Not a Codec: a sum of sparse vectors has other indices than its parts,
// so that these travel by all-gather, and everybody adds them up in the order of the members.
//
//   chunk of n <= 4096, c = ceil(k * n / 4096) of its values survive:
//
//   | bf16 low | bf16 high | c x 12 bit index, ascending | c x 2 bits: sign, high |
//     4 bytes                 ceil(3c / 2) bytes            ceil(c / 4) bytes
//
// Fields lie in order from the low bits on; bits that are left over are zero. With k = 64 a full
// chunk takes 116 bytes: 141 times fewer than fp32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace decentral {

inline constexpr size_t kTopkChunk = 4096;

// Wire bytes for `count` values. k (1..4096) is per full chunk, and an agreement of the members.
size_t TopkEncodedSize(size_t count, uint32_t k);

// The k largest of each chunk; of equal magnitudes, those that come first. The two magnitudes are
// the means of the smaller and the larger survivors, parted where the squared error is least. A
// chunk that holds a NaN or an infinity gets NaN for both, so that the sum shows it.
void TopkEncode(const float* src, size_t count, uint32_t k, uint8_t* out);

// out += weight * decode(in). Any bytes will do: what no TopkEncode makes (another size, indices
// that do not ascend or lie outside of their chunk) is an error, and leaves `out` as it was. A
// weight of zero is an absence: nothing is added.
Error TopkDecodeAdd(const uint8_t* in, size_t size, uint32_t k, float weight, float* out,
                    size_t count);

}  // namespace decentral
