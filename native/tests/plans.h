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

// Two trees, a heap and its mirror, each for half of the buffer: sums climb, finals come down.
inline Plan Tree(uint32_t n, uint32_t rank, uint64_t count) {
  using K = PlanStep::Kind;
  const uint64_t half = std::min((count / 2 + kInt8Block - 1) / kInt8Block * kInt8Block, count);
  Plan plan{{{0, half, 0}, {half, count - half, n - 1}}, {}};
  const auto place = [n](uint32_t tree, uint32_t r) { return tree == 0 ? r : n - 1 - r; };
  for (const bool down : {false, true}) {
    for (uint32_t tree = 0; tree < 2; ++tree) {
      const uint32_t p = place(tree, rank);  // its own inverse
      if (down && p > 0) plan.steps.push_back({K::kRecvFinal, place(tree, (p - 1) / 2), tree});
      for (uint32_t child = 2 * p + 1; child <= 2 * p + 2 && child < n; ++child) {
        plan.steps.push_back({down ? K::kSendFinal : K::kRecvReduce, place(tree, child), tree});
      }
      if (!down && p > 0) plan.steps.push_back({K::kSendPartial, place(tree, (p - 1) / 2), tree});
    }
  }
  return plan;
}

// One half of the butterfly: everyone gets the sum of its own segment.
inline Plan ReduceScatter(uint32_t n, uint32_t rank, uint64_t count) {
  Plan plan = Butterfly(n, rank, count);
  plan.steps.resize(plan.steps.size() / 2);
  return plan;
}

// The other half: everyone gets everybody's segment.
inline Plan AllGather(uint32_t n, uint32_t rank, uint64_t count) {
  Plan plan = Butterfly(n, rank, count);
  plan.steps.erase(plan.steps.begin(),
                   plan.steps.begin() + static_cast<int64_t>(plan.steps.size() / 2));
  return plan;
}

// Rank 0's buffer down a chain.
inline Plan Broadcast(uint32_t n, uint32_t rank, uint64_t count) {
  using K = PlanStep::Kind;
  Plan plan{{{0, count, 0}}, {}};
  if (rank > 0) plan.steps.push_back({K::kRecvFinal, rank - 1, 0});
  if (rank + 1 < n) plan.steps.push_back({K::kSendFinal, rank + 1, 0});
  return plan;
}

}  // namespace decentral::test
