// The outer optimizer: fp32, elementwise, in one canonical order of operations, so that every peer
// computes the same bits whatever its hardware. Compiled with -ffp-contract=off; no reassociation.
// Outputs may be the inputs themselves (in place) but must not overlap them otherwise.
#pragma once

#include <cstddef>

namespace decentral {

// DiLoCo (arXiv:2311.08105), Nesterov momentum on the averaged pseudo-gradient `delta`:
//   b' = mu * b + delta
//   theta' = theta - lr * (delta + mu * b')
void OuterNesterov(const float* theta, const float* momentum, const float* delta, float lr,
                   float mu, size_t n, float* theta_out, float* momentum_out);

// theta' = theta - lr * delta
void OuterSgd(const float* theta, const float* delta, float lr, size_t n, float* out);

// out = a - b: the pseudo-gradient is Subtract(anchor, snapshot).
void Subtract(const float* a, const float* b, size_t n, float* out);

// No infinity, no NaN.
bool AllFinite(const float* x, size_t n);

// Euclidean norm, summed in double: eight interleaved partial sums per block of 4096 values,
// folded pairwise, blocks added in order. The order is part of the definition: members compare
// norms, and compilers vectorize eight sums without being allowed to reassociate.
double Norm(const float* x, size_t n);

}  // namespace decentral
