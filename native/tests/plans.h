// Plans for tests and benchmarks, in C++. The product's planners are decentral.collectives.plan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "collective/engine.h"

namespace decentral::test {

struct Plan {
  std::vector<Segment> segments;
  std::vector<PlanStep> steps;
};

// Rank r owns segment r; whole int8 blocks where there are enough of them.
inline std::vector<Segment> EvenSegments(uint32_t n, uint64_t count) {
  const uint64_t blocks = (count + kInt8Block - 1) / kInt8Block;
  std::vector<Segment> segments;
  uint64_t start = 0;
  for (uint32_t r = 0; r < n; ++r) {
    const uint64_t end = std::min(blocks * (r + 1) / n * kInt8Block, count);
    segments.push_back({start, end - start, r});
    start = end;
  }
  return segments;
}

inline Plan Ring(uint32_t n, uint32_t rank, uint64_t count) {
  using K = PlanStep::Kind;
  Plan plan{EvenSegments(n, count), {}};
  const uint32_t next = (rank + 1) % n, previous = (rank + n - 1) % n;
  const auto segment = [n](uint32_t r, uint32_t back) { return (r + 2 * n - back) % n; };
  for (uint32_t t = 0; t + 1 < n; ++t) {
    plan.steps.push_back({K::kSendPartial, next, segment(rank, t + 1)});
    plan.steps.push_back({K::kRecvReduce, previous, segment(rank, t + 2)});
  }
  for (uint32_t t = 0; t + 1 < n; ++t) {
    plan.steps.push_back({K::kSendFinal, next, segment(rank, t)});
    plan.steps.push_back({K::kRecvFinal, previous, segment(rank, t + 1)});
  }
  return plan;
}

// Everyone sends every owner its part, and every owner sends everyone the sum: chunks of several
// peers meet at one owner, and have to be added in rank order.
inline Plan Butterfly(uint32_t n, uint32_t rank, uint64_t count) {
  using K = PlanStep::Kind;
  Plan plan{EvenSegments(n, count), {}};
  for (uint32_t p = 0; p < n; ++p) {
    if (p != rank) plan.steps.push_back({K::kSendPartial, p, p});
  }
  for (uint32_t p = 0; p < n; ++p) {
    if (p != rank) plan.steps.push_back({K::kRecvReduce, p, rank});
  }
  for (uint32_t p = 0; p < n; ++p) {
    if (p != rank) plan.steps.push_back({K::kSendFinal, p, rank});
  }
  for (uint32_t p = 0; p < n; ++p) {
    if (p != rank) plan.steps.push_back({K::kRecvFinal, p, p});
  }
  return plan;
}

}  // namespace decentral::test
