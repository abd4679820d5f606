// Top-k against sorting everything; its error; and bytes that no encoder makes.
#include "collective/topk.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"

namespace decentral::test {
namespace {

using Floats = std::vector<float>;
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Floats Random(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::student_t_distribution<float> heavy(3);
  Floats x(count);
  for (float& v : x) v = heavy(random);
  return x;
}

std::vector<uint8_t> Encoded(const Floats& x, uint32_t k) {
  std::vector<uint8_t> wire(TopkEncodedSize(x.size(), k) + 1, 0xEE);
  TopkEncode(x.data(), x.size(), k, wire.data());
  CHECK(wire.back() == 0xEE);
  wire.pop_back();
  return wire;
}

Floats Decoded(const std::vector<uint8_t>& wire, size_t count, uint32_t k) {
  Floats out(count);
  CHECK(!TopkDecodeAdd(wire.data(), wire.size(), k, 1.0f, out.data(), count));
  return out;
}

// Which values survive, by sorting all of them.
std::vector<size_t> SlowSelect(const float* x, size_t n, size_t c) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return std::fabs(x[a]) > std::fabs(x[b]); });
  order.resize(c);
  return order;  // the largest first
}

double Squares(const Floats& x, const std::vector<size_t>& which, size_t from, size_t to) {
  double sum = 0, squares = 0;
  for (size_t i = from; i < to; ++i) sum += std::fabs(x[which[i]]);
  const double mean = sum / static_cast<double>(to - from);
  for (size_t i = from; i < to; ++i) squares += std::pow(std::fabs(x[which[i]]) - mean, 2);
  return squares;
}

TEST(sizes) {
  CHECK(TopkEncodedSize(0, 64) == 0);
  CHECK(TopkEncodedSize(4096, 64) == 116);
  CHECK(TopkEncodedSize(4097, 64) == 116 + 4 + 2 + 1);  // one survives
  CHECK(TopkEncodedSize(2 * 4096 + 2048, 64) == 2 * 116 + 4 + 48 + 8);
  CHECK(TopkEncodedSize(4096, 4096) == 4 + 6144 + 1024);
}

TEST(the_largest_survive_with_their_signs_and_two_magnitudes) {
  for (const size_t count : {1, 2, 63, 64, 65, 1000, 4095, 4096, 4097, 9000}) {
    for (const uint32_t k : {1u, 2u, 63u, 64u, 1000u, 4096u}) {
      const auto x = Random(count, count + k);
      const auto out = Decoded(Encoded(x, k), count, k);
      for (size_t start = 0; start < count; start += kTopkChunk) {
        const size_t n = std::min(kTopkChunk, count - start), c = (n * k + 4095) / 4096;
        const auto largest = SlowSelect(&x[start], n, c);
        Floats magnitudes;
        std::vector<bool> survives(n);
        for (const size_t i : largest) {
          CHECK(out[start + i] * x[start + i] > 0);
          magnitudes.push_back(std::fabs(out[start + i]));
          survives[i] = true;
        }
        for (size_t i = 0; i < n; ++i) CHECK(survives[i] || out[start + i] == 0);
        CHECK(std::is_sorted(magnitudes.rbegin(), magnitudes.rend()));
        magnitudes.erase(std::unique(magnitudes.begin(), magnitudes.end()), magnitudes.end());
        CHECK(magnitudes.size() <= 2);
      }
    }
  }
}

TEST(no_other_cut_errs_less) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto x = Random(4096, seed);
    const auto out = Decoded(Encoded(x, 64), 4096, 64);
    const auto largest = SlowSelect(x.data(), 4096, 64);
    double error = 0, least = Squares(x, largest, 0, 64);
    for (const size_t i : largest) error += std::pow(out[i] - x[i], 2);
    for (size_t cut = 1; cut < 64; ++cut) {
      least = std::min(least, Squares(x, largest, 0, cut) + Squares(x, largest, cut, 64));
    }
    CHECK(error < least * 1.01 + 1e-3);  // the levels are bf16
  }
}

TEST(of_equal_magnitudes_the_first_survive) {
  Floats x(4096, 1.0f);
  for (size_t i = 1; i < x.size(); i += 2) x[i] = -1.0f;
  const auto out = Decoded(Encoded(x, 64), 4096, 64);
  for (size_t i = 0; i < x.size(); ++i) CHECK(out[i] == (i < 64 ? x[i] : 0.0f));
  const Floats zeros(5000);
  CHECK(Decoded(Encoded(zeros, 64), 5000, 64) == zeros);
}

TEST(what_is_not_finite_shows_in_its_chunk) {
  for (const float odd : {kNotANumber, -kNotANumber, kInf, -kInf}) {
    auto x = Random(9000, 1);
    x[5000] = odd;
    const auto out = Decoded(Encoded(x, 64), 9000, 64);
    CHECK(std::isnan(out[5000]));
    for (size_t i = 0; i < x.size(); ++i) CHECK(std::isfinite(out[i]) || i / 4096 == 1);
  }
}

TEST(contributions_are_added_with_their_weights) {
  const auto x = Random(5000, 1), y = Random(5000, 2);
  const auto wire = Encoded(x, 64);
  const auto decoded = Decoded(wire, 5000, 64);
  auto out = y;
  CHECK(!TopkDecodeAdd(wire.data(), wire.size(), 64, 0.37f, out.data(), 5000));
  for (size_t i = 0; i < y.size(); ++i) {
    CHECK(out[i] == (decoded[i] == 0 ? y[i] : y[i] + 0.37f * decoded[i]));
  }
  const auto before = out;
  auto poison = x;
  poison[0] = kNotANumber;
  const auto bad = Encoded(poison, 64);
  CHECK(!TopkDecodeAdd(bad.data(), bad.size(), 64, 0.0f, out.data(), 5000));  // an absence
  CHECK(out == before);
}

TEST(bytes_that_no_encoder_makes_are_refused_and_change_nothing) {
  const auto x = Random(5000, 1);
  const auto wire = Encoded(x, 64);
  const Floats untouched(5000, 3.0f);
  const auto refused = [&](const std::vector<uint8_t>& bytes, uint32_t k) {
    Floats out = untouched;
    const Error error = TopkDecodeAdd(bytes.data(), bytes.size(), k, 1.0f, out.data(), out.size());
    return error.kind == ErrorKind::kProtocol && out == untouched;
  };
  for (const size_t size : {size_t{0}, wire.size() - 1, wire.size() + 1}) {
    auto other = wire;
    other.resize(size);
    CHECK(refused(other, 64));
  }
  CHECK(refused(wire, 63) && refused(wire, 0) && refused(wire, 4097));
  auto twice = wire;
  std::memcpy(&twice[4 + 3], &twice[4], 3);  // indices 2 and 3 are 0 and 1 again
  CHECK(refused(twice, 64));
  auto outside = wire;  // the last chunk has 904 values and 15 survivors
  outside[116 + 4 + 21] = 0xFF;
  outside[116 + 4 + 22] = 0x0F;
  CHECK(refused(outside, 64));
  std::mt19937_64 random(3);
  for (int run = 0; run < 20000; ++run) {
    auto bytes = wire;
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
    }
    Floats out = untouched;
    if (TopkDecodeAdd(bytes.data(), bytes.size(), 64, 1.0f, out.data(), out.size())) {
      CHECK(out == untouched);
    }
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
