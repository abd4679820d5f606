#include "collective/topk.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <string>

#include "core/vectorize.h"

namespace decentral {
namespace {

constexpr uint32_t kInfinityBits = 0x7F800000u;
constexpr uint16_t kNanHalf = 0x7FC0;

size_t Survivors(size_t n, uint32_t k) { return (n * k + kTopkChunk - 1) / kTopkChunk; }
size_t IndexBytes(size_t survivors) { return (3 * survivors + 1) / 2; }
size_t ChunkBytes(size_t survivors) { return 4 + IndexBytes(survivors) + (survivors + 3) / 4; }
size_t ChunkSize(size_t count, size_t start) { return std::min(kTopkChunk, count - start); }

uint32_t MagnitudeBits(float x) { return std::bit_cast<uint32_t>(x) & 0x7FFFFFFFu; }

// Larger magnitudes first, then smaller indices; no two are equal.
using Key = uint64_t;
Key KeyOf(float x, size_t index) {
  return static_cast<Key>(MagnitudeBits(x)) << 12 | (kTopkChunk - 1 - index);
}
size_t IndexOf(Key key) { return kTopkChunk - 1 - (key & 0xFFF); }
double MagnitudeOf(Key key) { return std::bit_cast<float>(static_cast<uint32_t>(key >> 12)); }

constexpr size_t kLanes = 256;

// The largest magnitude in each of kLanes columns, of whole rows of kLanes values.
DECENTRAL_PER_ISA void LaneMaxima(const float* x, size_t rows, int32_t* lanes) {
  for (size_t r = 0; r < rows; ++r, x += kLanes) {
    DECENTRAL_ELEMENTWISE
    for (size_t j = 0; j < kLanes; ++j) {
      const int32_t magnitude = std::bit_cast<int32_t>(x[j]) & 0x7FFFFFFF;
      lanes[j] = magnitude > lanes[j] ? magnitude : lanes[j];
    }
  }
}

// Keys of at least the c largest of n values; how many.
//
//   row 0    x[0]     x[1]    ...  x[255]      The c-th largest of the lanes' maxima bounds the
//    :                                         c-th largest value from below, for these are c
//   row 15   x[3840]  x[3841] ...  x[4095]     different values. Few lanes reach it: with c = 64,
//            -------  -------      -------     64 of 256, and in them little more than 64 values.
//            max      max          max
size_t Candidates(const float* x, size_t n, size_t c, Key* out) {
  size_t found = 0;
  if (c > kLanes / 2 || n < 4 * kLanes) {  // few lanes would be left out
    for (; found < n; ++found) out[found] = KeyOf(x[found], found);
    return found;
  }
  std::array<int32_t, kLanes> lanes{}, ranked;
  const size_t rows = n / kLanes;
  LaneMaxima(x, rows, lanes.data());
  for (size_t i = rows * kLanes; i < n; ++i) {
    int32_t& lane = lanes[i % kLanes];
    lane = std::max(lane, static_cast<int32_t>(MagnitudeBits(x[i])));
  }
  ranked = lanes;
  const auto nth = ranked.begin() + static_cast<std::ptrdiff_t>(c - 1);
  std::nth_element(ranked.begin(), nth, ranked.end(), std::greater<>());
  const int32_t bound = *nth;
  for (size_t j = 0; j < kLanes; ++j) {
    if (lanes[j] < bound) continue;
    for (size_t i = j; i < n; i += kLanes) {
      if (MagnitudeBits(x[i]) >= static_cast<uint32_t>(bound)) out[found++] = KeyOf(x[i], i);
    }
  }
  return found;
}

// The `c` largest of n values, the largest first.
void Select(const float* x, size_t n, size_t c, Key* out) {
  std::array<Key, kTopkChunk> candidates;
  const auto begin = candidates.begin();
  const auto found = static_cast<std::ptrdiff_t>(Candidates(x, n, c, candidates.data()));
  const auto end = begin + static_cast<std::ptrdiff_t>(c);
  if (end < begin + found) std::nth_element(begin, end, begin + found, std::greater<>());
  std::sort(begin, end, std::greater<>());
  std::copy(begin, end, out);
}

struct Levels {
  uint16_t low, high;  // bf16
  Key split;           // keys from here on are high
};

uint16_t ToBf16(double value) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Two magnitudes for the survivors. Of all ways to cut the sorted magnitudes in two, the one that
// leaves the least squared error around both means: the largest sum of (sum of part)^2 / its size.
Levels Fit(const Key* sorted, size_t c) {
  if (sorted[0] >> 12 >= kInfinityBits) return {kNanHalf, kNanHalf, 0};
  double total = 0;
  for (size_t i = 0; i < c; ++i) total += MagnitudeOf(sorted[i]);
  double best = -1, above = 0, best_above = 0;
  size_t cut = 0;
  for (size_t i = 1; i <= c; ++i) {  // the first i are high
    above += MagnitudeOf(sorted[i - 1]);
    const double below = total - above;
    const double score = above * above / static_cast<double>(i) +
                         (i == c ? 0 : below * below / static_cast<double>(c - i));
    if (score > best) best = score, cut = i, best_above = above;
  }
  const double high = best_above / static_cast<double>(cut);
  const double low = cut == c ? high : (total - best_above) / static_cast<double>(c - cut);
  return {ToBf16(low), ToBf16(high), sorted[cut - 1]};
}

void PutIndex(uint8_t* bytes, size_t i, size_t index) {
  uint8_t* at = bytes + i / 2 * 3;
  if (i % 2 == 0) {
    at[0] = static_cast<uint8_t>(index);
    at[1] = static_cast<uint8_t>(index >> 8);
  } else {
    at[1] = static_cast<uint8_t>(at[1] | index << 4);
    at[2] = static_cast<uint8_t>(index >> 4);
  }
}

size_t GetIndex(const uint8_t* bytes, size_t i) {
  const uint8_t* at = bytes + i / 2 * 3;
  return i % 2 == 0 ? at[0] | (at[1] & 0xF) << 8 : at[1] >> 4 | at[2] << 4;
}

Error Wrong(const std::string& text) { return Error(ErrorKind::kProtocol, "top-k", text); }

}  // namespace

size_t TopkEncodedSize(size_t count, uint32_t k) {
  const size_t rest = count % kTopkChunk;
  return count / kTopkChunk * ChunkBytes(k) + (rest == 0 ? 0 : ChunkBytes(Survivors(rest, k)));
}

void TopkEncode(const float* src, size_t count, uint32_t k, uint8_t* out) {
  std::array<Key, kTopkChunk> keys;
  for (size_t start = 0; start < count; start += kTopkChunk) {
    const float* x = src + start;
    const size_t n = ChunkSize(count, start), c = Survivors(n, k);
    Select(x, n, c, keys.data());
    const Levels levels = Fit(keys.data(), c);
    std::array<uint64_t, kTopkChunk / 64> survives{};  // in the order of indices, without sorting
    for (size_t i = 0; i < c; ++i) survives[IndexOf(keys[i]) / 64] |= 1ull << IndexOf(keys[i]) % 64;
    std::memset(out, 0, ChunkBytes(c));
    std::memcpy(out, &levels.low, sizeof(levels.low));
    std::memcpy(out + 2, &levels.high, sizeof(levels.high));
    uint8_t* values = out + 4 + IndexBytes(c);
    size_t i = 0;
    for (size_t word = 0; word < survives.size(); ++word) {
      for (uint64_t bits = survives[word]; bits != 0; bits &= bits - 1, ++i) {
        const size_t index = word * 64 + static_cast<size_t>(std::countr_zero(bits));
        const uint32_t sign = std::bit_cast<uint32_t>(x[index]) >> 31;
        const uint32_t high = KeyOf(x[index], index) >= levels.split ? 2 : 0;
        PutIndex(out + 4, i, index);
        values[i / 4] = static_cast<uint8_t>(values[i / 4] | (sign | high) << (2 * (i % 4)));
      }
    }
    out += ChunkBytes(c);
  }
}

Error TopkDecodeAdd(const uint8_t* in, size_t size, uint32_t k, float weight, float* out,
                    size_t count) {
  if (k == 0 || k > kTopkChunk) return Wrong("k must be 1 to 4096, not " + std::to_string(k));
  if (size != TopkEncodedSize(count, k)) {
    return Wrong(std::to_string(size) + " bytes came for " + std::to_string(count) +
                 " values, not " + std::to_string(TopkEncodedSize(count, k)));
  }
  const uint8_t* at = in;
  for (size_t start = 0; start < count; start += kTopkChunk) {  // before anything is added
    const size_t n = ChunkSize(count, start), c = Survivors(n, k);
    for (size_t i = 0, least = 0; i < c; ++i) {
      const size_t index = GetIndex(at + 4, i);
      if (index < least || index >= n) {
        return Wrong("index " + std::to_string(index) + " is out of order or outside of the " +
                     std::to_string(n) + " values from " + std::to_string(start) + " on");
      }
      least = index + 1;
    }
    at += ChunkBytes(c);
  }
  if (weight == 0.0f) return {};
  for (size_t start = 0; start < count; start += kTopkChunk) {
    const size_t n = ChunkSize(count, start), c = Survivors(n, k);
    uint16_t halves[2];
    std::memcpy(halves, in, sizeof(halves));
    float levels[4];  // by sign and magnitude
    for (uint32_t v = 0; v < 4; ++v) {
      const float level = std::bit_cast<float>(static_cast<uint32_t>(halves[v >> 1]) << 16);
      levels[v] = weight * (v & 1 ? -level : level);
    }
    const uint8_t* values = in + 4 + IndexBytes(c);
    for (size_t i = 0; i < c; ++i) {
      out[start + GetIndex(in + 4, i)] += levels[values[i / 4] >> (2 * (i % 4)) & 3];
    }
    in += ChunkBytes(c);
  }
  return {};
}

}  // namespace decentral
