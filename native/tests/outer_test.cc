// The outer optimizer: its paper's formulas, the same bits as scalar code, in place or not.
#include "optim/outer.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace decentral::test {
namespace {

std::vector<float> Random(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

// One rounding per operation, in the order of the header's formulas.
float Rounded(float x) {
  volatile float y = x;
  return y;
}

TEST(nesterov_is_the_formula_one_rounding_at_a_time) {
  const float lr = 0.7f, mu = 0.9f;
  for (const size_t n : {0, 1, 3, 8, 17, 1000}) {
    const auto theta = Random(n, 1), b = Random(n, 2), delta = Random(n, 3);
    std::vector<float> theta_out(n), b_out(n);
    OuterNesterov(theta.data(), b.data(), delta.data(), lr, mu, n, theta_out.data(), b_out.data());
    for (size_t i = 0; i < n; ++i) {
      const float next_b = Rounded(Rounded(mu * b[i]) + delta[i]);
      const float step = Rounded(delta[i] + Rounded(mu * next_b));
      CHECK(b_out[i] == next_b);
      CHECK(theta_out[i] == Rounded(theta[i] - Rounded(lr * step)));
    }
    auto theta_in = theta, b_in = b;
    OuterNesterov(theta_in.data(), b_in.data(), delta.data(), lr, mu, n, theta_in.data(),
                  b_in.data());
    CHECK(theta_in == theta_out && b_in == b_out);
  }
}

TEST(sgd_and_subtract) {
  const auto theta = Random(1000, 1), delta = Random(1000, 2);
  std::vector<float> out(1000), difference(1000);
  OuterSgd(theta.data(), delta.data(), 0.3f, 1000, out.data());
  Subtract(theta.data(), delta.data(), 1000, difference.data());
  for (size_t i = 0; i < 1000; ++i) {
    CHECK(out[i] == Rounded(theta[i] - Rounded(0.3f * delta[i])));
    CHECK(difference[i] == Rounded(theta[i] - delta[i]));
  }
}

TEST(one_value_that_is_not_finite_is_found_anywhere) {
  std::vector<float> x(200001, std::numeric_limits<float>::max());
  CHECK(AllFinite(x.data(), x.size()) && AllFinite(nullptr, 0));
  for (const size_t at : {0, 1, 65535, 65536, 200000}) {
    for (const float odd : {NAN, INFINITY, -INFINITY}) {
      const float was = x[at];
      x[at] = odd;
      CHECK(!AllFinite(x.data(), x.size()));
      x[at] = was;
    }
  }
}

TEST(the_norm_is_exact_enough_and_its_order_is_fixed) {
  for (const size_t n : {0, 1, 7, 8, 9, 4095, 4096, 4097, 100001}) {
    const auto x = Random(n, n);
    long double exact = 0;
    for (const float v : x) exact += static_cast<long double>(v) * v;
    CHECK(std::abs(Norm(x.data(), n) - std::sqrt(static_cast<double>(exact))) <=
          1e-12 * (1 + std::sqrt(static_cast<double>(exact))));
    CHECK(Norm(x.data(), n) == Norm(std::vector<float>(x).data(), n));
  }
  const std::vector<float> big(10, 3e38f);
  CHECK(std::isfinite(Norm(big.data(), big.size())));
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
