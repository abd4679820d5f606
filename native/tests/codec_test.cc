// Codecs against slow, obvious scalar code, at every length and at the odd values; their error and
// bias; and that encoding what was decoded gives the same bytes.
#include "collective/codec.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace decentral::test {
namespace {

constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kSmallest = 2 * FLT_MIN;  // of scales
constexpr Codec kAll[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kFp16,
                          Codec::kInt4, Codec::kFp4,  Codec::kSign};

using Floats = std::vector<float>;

// One value or block at a time, in double where that is exact: what the vectorized loops must
// equal, bit for bit.

float SlowBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return std::bit_cast<float>((bits | 0x400000u) & 0xFFFF0000u);
  const uint32_t low = bits & 0xFFFFu;
  bits &= 0xFFFF0000u;
  if (low > 0x8000u || (low == 0x8000u && (bits & 0x10000u))) bits += 0x10000u;
  return std::bit_cast<float>(bits);
}

float SlowFp16(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  if (std::fabs(x) >= 65520) return std::copysign(kInf, x);
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
  return static_cast<float>(std::nearbyint(x / unit) * unit);
}

// `x` without what is below its first `bits` significant bits.
float Cut(float x, int bits) {
  int exponent;
  const double fraction = std::frexp(static_cast<double>(x), &exponent);
  return static_cast<float>(std::ldexp(std::trunc(std::ldexp(fraction, bits)), exponent - bits));
}

float NearestPower(float y) {  // of 0, 1, 2 ... 64; the larger one when two are as near
  float best = 0;
  for (float level = 1; level <= 64; level *= 2) {
    if (std::fabs(std::fabs(y) - level) <= std::fabs(std::fabs(y) - best)) best = level;
  }
  return std::copysign(best, y);
}

Floats SlowBlock(Codec codec, const Floats& x) {
  float absmax = 0;
  for (const float v : x) {
    if (!std::isfinite(v)) return Floats(x.size(), kNotANumber);
    absmax = std::max(absmax, std::fabs(v));
  }
  Floats out(x.size());
  if (codec == Codec::kSign) {
    if (absmax < 0x1p-100f) return out;
    const int exponent = std::ilogb(absmax);
    double sum = 0;
    for (const float v : x) sum += std::nearbyint(std::ldexp(std::fabs(v), 21 - exponent));
    const double n = static_cast<double>(x.size());
    const double mean = std::min(std::floor((sum + std::floor(n / 2)) / n), 4194303.0);
    const auto scale = static_cast<float>(std::ldexp(mean, exponent - 21));
    if (scale < 0x1p-100f) return out;
    for (size_t i = 0; i < x.size(); ++i) out[i] = std::copysign(scale, x[i]);
    return out;
  }
  const float top = codec == Codec::kInt8 ? 127.0f : codec == Codec::kInt4 ? 7.0f : 64.0f;
  if (absmax < top * kSmallest) return out;
  const float scale = Cut(absmax / top, codec == Codec::kInt8 ? 17 : 8);
  for (size_t i = 0; i < x.size(); ++i) {
    const float y = x[i] * (1.0f / scale);
    out[i] = (codec == Codec::kFp4 ? NearestPower(y) : std::nearbyintf(y) + 0.0f) * scale;
  }
  return out;
}

Floats SlowRoundTrip(Codec codec, const Floats& x) {
  Floats out;
  const size_t block = InfoOf(codec).block;
  for (size_t start = 0; start < x.size(); start += block) {
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(start);
    const auto n = static_cast<std::ptrdiff_t>(std::min(block, x.size() - start));
    const Floats part = codec == Codec::kFp32   ? Floats{*first}
                        : codec == Codec::kBf16 ? Floats{SlowBf16(*first)}
                        : codec == Codec::kFp16 ? Floats{SlowFp16(*first)}
                                                : SlowBlock(codec, Floats(first, first + n));
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

bool SameBits(const Floats& a, const Floats& b) {
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      std::printf("[%zu of %zu]: %a, not %a\n", i, a.size(), static_cast<double>(a[i]),
                  static_cast<double>(b[i]));
      return false;
    }
  }
  return a.size() == b.size();
}

// Magnitudes over some sixteen powers of ten, and whole stretches alike, so that every code is
// used.
Floats Random(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Floats x(count);
  float spread = 1, shift = 1;
  for (size_t i = 0; i < count; ++i) {
    if (i % 300 == 0)
      spread = static_cast<float>(random() % 5), shift = std::exp(8 * normal(random));
    x[i] = shift * normal(random) * std::exp(normal(random) * spread);
  }
  return x;
}

// Values where rounding, overflow and flushing go wrong, in blocks that stay finite.
Floats Odd(size_t count, uint64_t seed) {
  constexpr float kOdd[] = {
      0.0f,          -0.0f,         FLT_TRUE_MIN, -FLT_TRUE_MIN, FLT_MIN / 2,      FLT_MIN,
      -FLT_MIN,      FLT_MAX,       -FLT_MAX,     3.3e38f,       65504.0f,         65519.99f,
      65520.0f,      65536.0f,      0x1p-14f,     0x1p-15f,      0x1p-24f,         0x1p-25f,
      0x1.8p-25f,    0x1p-26f,      1.0f,         0x1p-100f,     0x1.FFFFFEp-101f, 127 * kSmallest,
      7 * kSmallest, 64 * kSmallest};
  std::mt19937_64 random(seed);
  Floats x(count);
  for (size_t i = 0; i < count; ++i) {
    // Few kinds in a block: FLT_MAX would outweigh all others.
    const size_t kind = (i / 32 * 7 + random() % 3) % std::size(kOdd);
    x[i] = kOdd[kind] * (random() % 4 == 0 ? 0.75f : random() % 2 == 0 ? -1.0f : 1.0f);
  }
  return x;
}

std::vector<uint8_t> Encoded(Codec codec, const Floats& x, float weight = 1) {
  std::vector<uint8_t> wire(EncodedSize(codec, x.size()) + 1, 0xEE);
  Encode(codec, x.data(), x.size(), weight, wire.data());
  CHECK(wire.back() == 0xEE);  // not a byte too many
  wire.pop_back();
  return wire;
}

Floats Decoded(Codec codec, const std::vector<uint8_t>& wire, size_t count) {
  Floats out(count + 1, 42.0f);
  Decode(codec, wire.data(), count, out.data());
  CHECK(out.back() == 42.0f);
  out.pop_back();
  return out;
}

Floats RoundTrip(Codec codec, const Floats& x, float weight = 1) {
  return Decoded(codec, Encoded(codec, x, weight), x.size());
}

TEST(codecs_are_found_by_name_and_number) {
  for (const Codec codec : kAll) {
    CHECK(CodecNamed(InfoOf(codec).name) == codec);
    CHECK(kCodecBlock % InfoOf(codec).block == 0);
    CHECK(InfoOf(InfoOf(codec).final).rides_ring);  // a sum fits into it
  }
  CHECK(InfoOf(7) == nullptr && InfoOf(UINT32_MAX) == nullptr);
  CHECK(!CodecNamed("int16") && !CodecNamed(""));
}

TEST(sizes) {
  const struct {
    Codec codec;
    size_t one, block, more;  // bytes for 1, 256 and 257 values
  } expected[] = {{Codec::kFp32, 4, 1024, 1028}, {Codec::kBf16, 2, 512, 514},
                  {Codec::kFp16, 2, 512, 514},   {Codec::kInt8, 8, 260, 268},
                  {Codec::kInt4, 6, 144, 150},   {Codec::kFp4, 6, 132, 138},
                  {Codec::kSign, 5, 36, 41}};
  for (const auto& [codec, one, block, more] : expected) {
    CHECK(EncodedSize(codec, 0) == 0);
    CHECK(EncodedSize(codec, 1) == one);
    CHECK(EncodedSize(codec, 256) == block);
    CHECK(EncodedSize(codec, 257) == more);
    for (size_t tail = 0; tail < 600; ++tail) {
      CHECK(EncodedSize(codec, 768 + tail) == EncodedSize(codec, 768) + EncodedSize(codec, tail));
    }
  }
}

TEST(every_length_rounds_like_the_scalar_code) {
  for (const Codec codec : kAll) {
    for (size_t count = 0; count < 700; ++count) {
      const auto x = Random(count, count);
      CHECK(SameBits(RoundTrip(codec, x), SlowRoundTrip(codec, x)));
    }
  }
}

TEST(odd_values_round_like_the_scalar_code) {
  for (const Codec codec : kAll) {
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const auto x = Odd(1000 + seed, seed);
      CHECK(SameBits(RoundTrip(codec, x), SlowRoundTrip(codec, x)));
    }
  }
}

// What lets an engine pass finals on without keeping their bytes.
TEST(encoding_what_was_decoded_gives_the_same_bytes) {
  for (const Codec codec : kAll) {
    if (!InfoOf(codec).reencodes) continue;
    for (uint64_t seed = 0; seed < 300; ++seed) {
      for (auto x : {Random(1000 + seed, seed), Odd(1000 + seed, seed)}) {
        if (seed % 3 == 0) x[seed] = seed % 2 ? kNotANumber : -kInf;
        const auto wire = Encoded(codec, x);
        CHECK(Encoded(codec, Decoded(codec, wire, x.size())) == wire);
      }
    }
  }
}

TEST(every_16_bit_neighbourhood_rounds_to_even) {
  Floats x;
  for (uint32_t high = 0; high < 0x10000; high += 7) {
    for (const uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  CHECK(SameBits(RoundTrip(Codec::kBf16, x), SlowRoundTrip(Codec::kBf16, x)));
  for (uint32_t bits = 0; bits < 0x80000000u - 0x800;
       bits += 0x800) {  // fp16 drops 13 bits or more
    for (const uint32_t low : {0u, 1u, 0x7FFu}) {
      x.push_back(std::bit_cast<float>(bits + low));
      x.push_back(-x.back());
    }
  }
  CHECK(SameBits(RoundTrip(Codec::kFp16, x), SlowRoundTrip(Codec::kFp16, x)));
}

TEST(every_fp16_survives_and_there_is_one_nan) {
  std::vector<uint16_t> halves(0x10000);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  Floats x(halves.size());
  Decode(Codec::kFp16, reinterpret_cast<const uint8_t*>(halves.data()), x.size(), x.data());
  std::vector<uint16_t> again(halves.size());
  Encode(Codec::kFp16, x.data(), x.size(), 1.0f, reinterpret_cast<uint8_t*>(again.data()));
  for (size_t i = 0; i < halves.size(); ++i) {
    const bool nan = (i & 0x7FFF) > 0x7C00;
    CHECK(std::isnan(x[i]) == nan);
    CHECK(again[i] == (nan ? 0x7E00 : halves[i]));
    if (nan || (i & 0x7FFF) == 0x7C00) continue;
    const double fraction = static_cast<double>(i & 0x3FF);
    const int exponent = static_cast<int>(i >> 10 & 0x1F);
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    CHECK(x[i] == (i & 0x8000 ? -magnitude : magnitude));
  }
}

TEST(blocks_take_what_is_not_finite_as_a_whole) {
  for (const Codec codec : kAll) {
    const size_t block = InfoOf(codec).block;
    for (const float odd : {kNotANumber, -kNotANumber, kInf, -kInf}) {
      auto x = Random(700, 3);
      x[300] = odd;
      const auto out = RoundTrip(codec, x);
      for (size_t i = 0; i < x.size(); ++i) {
        if (i / block != 300 / block) {
          CHECK(std::isfinite(out[i]) || codec == Codec::kFp16);
        } else {
          CHECK(block == 1 ? SameBits({out[i]}, {odd}) : std::isnan(out[i]));
        }
      }
    }
  }
}

TEST(blocks_at_the_ends_of_the_range) {
  for (const Codec codec : {Codec::kInt8, Codec::kInt4, Codec::kFp4, Codec::kSign}) {
    for (const float big : {FLT_MAX, 1e38f, 1.0f, 1e-29f}) {
      const Floats x = {big, -big, big / 2, 0, -0.0f, big / 1000};
      const auto out = RoundTrip(codec, x);
      CHECK(SameBits(out, SlowRoundTrip(codec, x)));
      for (const float v : out) CHECK(std::fabs(v) <= big);  // the largest stay finite
      const Floats alike(300, -big);
      CHECK(SameBits(RoundTrip(codec, alike), SlowRoundTrip(codec, alike)));
      CHECK(std::isfinite(RoundTrip(codec, alike)[0]));
    }
    for (const float tiny : {0.0f, -0.0f, FLT_TRUE_MIN, FLT_MIN, 7 * FLT_MIN}) {
      CHECK(Encoded(codec, Floats(300, tiny)) == std::vector<uint8_t>(EncodedSize(codec, 300)));
    }
  }
  CHECK(RoundTrip(Codec::kInt8, {127 * kSmallest})[0] == 127 * kSmallest);
  CHECK(RoundTrip(Codec::kInt8, {126 * kSmallest})[0] == 0);
}

// Means over many draws with known expectation 0: a codec that truncates shows here at once.
TEST(rounding_has_no_bias_and_a_bounded_error) {
  const struct {
    Codec codec;
    double rms;  // of the error, relative to the input's
  } bounds[] = {{Codec::kBf16, 0.0017}, {Codec::kFp16, 0.00022}, {Codec::kInt8, 0.0075},
                {Codec::kInt4, 0.1},    {Codec::kFp4, 0.195},    {Codec::kSign, 0.61}};
  constexpr size_t kCount = 1 << 18;
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  Floats x(kCount);
  for (float& v : x) v = normal(random);
  for (const auto& [codec, rms] : bounds) {
    const auto out = RoundTrip(codec, x);
    double error = 0, squares = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const double e = static_cast<double>(out[i]) - static_cast<double>(x[i]);
      error += e;
      squares += e * e;
    }
    const double spread = std::sqrt(squares / kCount);
    CHECK(spread < rms && spread > rms / 2);
    CHECK(std::fabs(error / kCount) < 4 * spread / std::sqrt(kCount));
  }
}

#if defined(__SSE2__)
TEST(flushing_subnormals_changes_no_wire_byte) {
  constexpr unsigned kFlushAndTreatAsZero = 0x8040;
  for (const Codec codec : {Codec::kFp16, Codec::kInt8, Codec::kInt4, Codec::kFp4, Codec::kSign}) {
    for (uint64_t seed = 0; seed < 100; ++seed) {
      auto x = Random(1000, seed);
      const float shift = std::ldexp(1.0f, -static_cast<int>(seed) - 40);  // down to the smallest
      for (float& v : x) v *= shift;
      for (const auto& values : {x, Odd(1000, seed)}) {
        const auto kept = Encoded(codec, values);
        _mm_setcsr(_mm_getcsr() | kFlushAndTreatAsZero);
        const auto flushed = Encoded(codec, values);
        _mm_setcsr(_mm_getcsr() & ~kFlushAndTreatAsZero);
        CHECK(flushed == kept);
      }
    }
  }
}
#endif

TEST(any_bytes_decode) {
  std::mt19937_64 random(12);
  for (const Codec codec : kAll) {
    for (const size_t count : {1, 31, 256, 700}) {
      std::vector<uint8_t> wire(EncodedSize(codec, count));
      for (int run = 0; run < 50; ++run) {
        for (uint8_t& byte : wire) byte = static_cast<uint8_t>(random());
        const auto out = Decoded(codec, wire, count);
        CHECK(out.size() == count);
      }
    }
  }
}

TEST(weights_apply_before_rounding) {
  for (const Codec codec : kAll) {
    const auto x = Random(1000, 5);
    auto weighted = x;
    for (float& v : weighted) v *= 0.37f;
    CHECK(SameBits(RoundTrip(codec, x, 0.37f), SlowRoundTrip(codec, weighted)));
    const Floats absent(1000, kNotANumber);
    CHECK(SameBits(RoundTrip(codec, absent, 0.0f), Floats(1000, 0.0f)));
  }
}

TEST(decode_add_adds_to_the_weighted_source_also_in_place) {
  for (const Codec codec : kAll) {
    for (const size_t count : {0, 1, 33, 255, 256, 257, 1000}) {
      for (const float weight : {1.0f, 0.37f, 0.0f}) {
        const auto x = Random(count, 1), y = Random(count, 2);
        const auto received = SlowRoundTrip(codec, x);
        Floats expected(count);
        for (size_t i = 0; i < count; ++i) {
          expected[i] = weight == 0 ? received[i] : received[i] + weight * y[i];
        }
        const auto wire = Encoded(codec, x);
        Floats out(count);
        DecodeAdd(codec, wire.data(), count, y.data(), weight, out.data());
        CHECK(SameBits(out, expected));
        auto in_place = y;
        DecodeAdd(codec, wire.data(), count, in_place.data(), weight, in_place.data());
        CHECK(SameBits(in_place, expected));
      }
    }
  }
}

TEST(pieces_of_whole_blocks_encode_like_the_whole) {
  for (const Codec codec : kAll) {
    const auto x = Random(3000, 9);
    const auto whole = Encoded(codec, x);
    std::vector<uint8_t> parts(whole.size());
    for (size_t at = 0; at < x.size(); at += 3 * kCodecBlock) {
      const size_t n = std::min<size_t>(3 * kCodecBlock, x.size() - at);
      Encode(codec, x.data() + at, n, 1.0f, parts.data() + EncodedSize(codec, at));
    }
    CHECK(whole == parts);
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
