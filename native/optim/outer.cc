#include "optim/outer.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/vectorize.h"

namespace decentral {

void OuterNesterov(const float* theta, const float* momentum, const float* delta, float lr,
                   float mu, size_t n, float* theta_out, float* momentum_out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < n; ++i) {
    const float d = delta[i];
    const float b = mu * momentum[i] + d;
    const float t = theta[i] - lr * (d + mu * b);
    momentum_out[i] = b;
    theta_out[i] = t;
  }
}

void OuterSgd(const float* theta, const float* delta, float lr, size_t n, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < n; ++i) out[i] = theta[i] - lr * delta[i];
}

void Subtract(const float* a, const float* b, size_t n, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < n; ++i) out[i] = a[i] - b[i];
}

bool AllFinite(const float* x, size_t n) {
  // An integer OR vectorizes; a branch per value would not. Blocks, so that a NaN at the front of
  // a gigabyte is found at once.
  constexpr size_t kBlock = 1 << 16;
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t stop = n - start < kBlock ? n : start + kBlock;
    uint32_t bad = 0;
    for (size_t i = start; i < stop; ++i) {
      bad |= static_cast<uint32_t>((std::bit_cast<uint32_t>(x[i]) & 0x7F800000u) == 0x7F800000u);
    }
    if (bad != 0) return false;
  }
  return true;
}

double Norm(const float* x, size_t n) {
  constexpr size_t kBlock = 4096;
  constexpr size_t kLanes = 8;
  double total = 0;
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t stop = n - start < kBlock ? n : start + kBlock;
    double lane[kLanes] = {};
    size_t i = start;
    for (; i + kLanes <= stop; i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) {
        const double value = x[i + j];
        lane[j] += value * value;
      }
    }
    for (size_t j = 0; i < stop; ++i, ++j) {
      const double value = x[i];
      lane[j] += value * value;
    }
    for (size_t width = kLanes / 2; width > 0; width /= 2) {
      for (size_t j = 0; j < width; ++j) lane[j] += lane[j + width];
    }
    total += lane[0];
  }
  return std::sqrt(total);
}

}  // namespace decentral
