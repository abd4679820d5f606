// Codecs against slow, obvious scalar code, at every length and at the odd values.
#include "collective/codec.h"

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace decentral::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr Codec kAll[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8};

// Compiled for one value at a time: what the vectorized loops must equal.
float SlowBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return std::bit_cast<float>((bits | 0x400000u) & 0xFFFF0000u);
  const uint32_t low = bits & 0xFFFFu;
  bits &= 0xFFFF0000u;
  if (low > 0x8000u || (low == 0x8000u && (bits & 0x10000u))) bits += 0x10000u;
  return std::bit_cast<float>(bits);
}

std::vector<float> SlowInt8(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  for (size_t start = 0; start < x.size(); start += kInt8Block) {
    const size_t stop = std::min(x.size(), start + kInt8Block);
    float absmax = 0;
    bool finite = true;
    for (size_t i = start; i < stop; ++i) {
      finite &= std::isfinite(x[i]);
      absmax = std::max(absmax, std::fabs(x[i]));
    }
    for (size_t i = start; i < stop; ++i) {
      if (!finite) {
        out[i] = kNan;
      } else if (absmax < 127 * FLT_MIN) {
        out[i] = 0;
      } else {
        const float q = std::nearbyintf(x[i] * (127.0f / absmax));
        out[i] = q * (absmax / 127.0f);
      }
    }
  }
  return out;
}

std::vector<float> SlowRoundTrip(Codec codec, const std::vector<float>& x) {
  if (codec == Codec::kInt8) return SlowInt8(x);
  std::vector<float> out = x;
  if (codec == Codec::kBf16) {
    for (float& v : out) v = SlowBf16(v);
  }
  return out;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::bit_cast<uint32_t>(a[i] + 0.0f) != std::bit_cast<uint32_t>(b[i] + 0.0f)) return false;
  }
  return a.size() == b.size();
}

std::vector<float> Random(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(random) * std::exp(normal(random) * 4);
  return x;
}

std::vector<float> RoundTrip(Codec codec, const std::vector<float>& x, float weight = 1) {
  std::vector<uint8_t> wire(EncodedSize(codec, x.size()) + 1, 0xEE);
  Encode(codec, x.data(), x.size(), weight, wire.data());
  CHECK(wire.back() == 0xEE);  // not a byte too many
  std::vector<float> out(x.size() + 1, 42.0f);
  Decode(codec, wire.data(), x.size(), out.data());
  CHECK(out.back() == 42.0f);
  out.pop_back();
  return out;
}

TEST(sizes) {
  CHECK(EncodedSize(Codec::kFp32, 10) == 40);
  CHECK(EncodedSize(Codec::kBf16, 10) == 20);
  CHECK(EncodedSize(Codec::kInt8, 0) == 0);
  CHECK(EncodedSize(Codec::kInt8, 1) == 5);
  CHECK(EncodedSize(Codec::kInt8, 256) == 260);
  CHECK(EncodedSize(Codec::kInt8, 257) == 265);
}

TEST(every_length_rounds_like_the_scalar_code) {
  for (const Codec codec : kAll) {
    for (size_t count = 0; count < 700; ++count) {
      const auto x = Random(count, count);
      CHECK(SameBits(RoundTrip(codec, x), SlowRoundTrip(codec, x)));
    }
  }
}

TEST(every_bf16_neighbourhood_rounds_to_even) {
  std::vector<float> x;
  for (uint32_t high = 0; high < 0x10000; high += 7) {
    for (const uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  CHECK(SameBits(RoundTrip(Codec::kBf16, x), SlowRoundTrip(Codec::kBf16, x)));
}

TEST(int8_takes_what_is_not_finite_by_the_block) {
  for (const float odd : {kNan, -kNan, kInf, -kInf}) {
    auto x = Random(700, 3);
    x[300] = odd;
    const auto out = RoundTrip(Codec::kInt8, x);
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(std::isnan(out[i]) == (i >= 256 && i < 512));
    }
  }
}

TEST(int8_at_the_ends_of_the_range) {
  for (const float big : {FLT_MAX, 1e38f, 1.0f, 1e-30f, 127 * FLT_MIN}) {
    const std::vector<float> x = {big, -big, big / 2, 0, -0.0f, big / 1000};
    CHECK(SameBits(RoundTrip(Codec::kInt8, x), SlowRoundTrip(Codec::kInt8, x)));
  }
  for (const float tiny : {0.0f, FLT_TRUE_MIN, FLT_MIN, 126 * FLT_MIN}) {
    for (const float v : RoundTrip(Codec::kInt8, std::vector<float>(300, tiny))) CHECK(v == 0.0f);
  }
}

TEST(weights_apply_before_rounding) {
  for (const Codec codec : kAll) {
    const auto x = Random(1000, 5);
    auto weighted = x;
    for (float& v : weighted) v *= 0.37f;
    CHECK(SameBits(RoundTrip(codec, x, 0.37f), SlowRoundTrip(codec, weighted)));
    const std::vector<float> absent(1000, kNan);
    CHECK(RoundTrip(codec, absent, 0.0f) == std::vector<float>(1000, 0.0f));
  }
}

TEST(decode_add_adds_to_the_weighted_source_also_in_place) {
  for (const Codec codec : kAll) {
    for (const size_t count : {0, 1, 255, 256, 257, 1000}) {
      for (const float weight : {1.0f, 0.37f, 0.0f}) {
        const auto x = Random(count, 1), y = Random(count, 2);
        const auto received = SlowRoundTrip(codec, x);
        std::vector<float> expected(count);
        for (size_t i = 0; i < count; ++i) {
          expected[i] = weight == 0 ? received[i] : received[i] + weight * y[i];
        }
        std::vector<uint8_t> wire(EncodedSize(codec, count));
        Encode(codec, x.data(), count, 1.0f, wire.data());
        std::vector<float> out(count);
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
    std::vector<uint8_t> whole(EncodedSize(codec, x.size())), parts(whole.size());
    Encode(codec, x.data(), x.size(), 1.0f, whole.data());
    for (size_t at = 0; at < x.size(); at += 3 * kInt8Block) {
      const size_t n = std::min<size_t>(3 * kInt8Block, x.size() - at);
      Encode(codec, x.data() + at, n, 1.0f, parts.data() + EncodedSize(codec, at));
    }
    CHECK(whole == parts);
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
