// A group of engines on a fake network, for tests: set up, run, and check every bit.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "fake_bulk_transport.h"
#include "plans.h"
#include "reference.h"

namespace decentral::test {

using Planner = Plan (*)(uint32_t, uint32_t, uint64_t);

struct Setup {
  int n = 3;
  uint64_t count = 1000;
  Codec codec = Codec::kFp32;
  OpKind kind = OpKind::kAllReduce;
  int streams = 2;
  std::vector<uint32_t> chunk_bytes = {4096};  // by rank, cyclic
  Planner planner = Ring;
  std::vector<float> weights = {};  // by rank; empty: all 1
  uint64_t seed = 1;
  bool threads = false;  // every peer has one of its own
};

// A group of engines on a fake world, with the buffers of one operation.
struct Cluster {
  explicit Cluster(const Setup& s) : setup(s), world(s.n, s.streams, s.seed) {
    std::mt19937_64 random(s.seed + 7);
    std::normal_distribution<float> normal;
    for (int i = 0; i < s.n; ++i) {
      engines.push_back(
          Engine::Create(world.at(i), FakeWorld::Id(i), [this] { return world.now_ms(); }));
      world.at(i).handler = engines.back().get();
      src.emplace_back(s.count);
      for (float& x : src.back()) x = normal(random);
      dst.emplace_back(s.count, -1.0f);
      scale_sum += Weight(i);
    }
    original = src;
    ops.resize(s.n);
    while (!s.threads && world.Step()) {  // the engines learn which thread is theirs
    }
  }

  float Weight(int i) const { return setup.weights.empty() ? 1.0f : setup.weights[i]; }

  OpSpec Spec(int i) const {
    OpSpec spec;
    for (int k = 0; k < setup.n; ++k) spec.members.push_back(FakeWorld::Id(k));
    spec.rank = i;
    spec.count = setup.count;
    spec.kind = setup.kind;
    spec.codec = setup.codec;
    if (setup.kind == OpKind::kAllReduce) spec.final_codec = InfoOf(setup.codec).final;
    const Plan plan = setup.planner(setup.n, i, setup.count);
    spec.segments = plan.segments;
    spec.steps = plan.steps;
    spec.weight = Weight(i);
    spec.scale = 1.0f / scale_sum;
    spec.round = 5;
    spec.chunk_bytes = setup.chunk_bytes[i % setup.chunk_bytes.size()];
    return spec;
  }
  void Begin(int i) { Begin(i, Spec(i)); }
  void Begin(int i, const OpSpec& spec) {
    ops[i] = engines[i]->Start(spec, src[i].data(), dst[i].data());
  }
  void BeginAll() {
    for (int i = 0; i < setup.n; ++i) Begin(i);
  }
  bool Done() const {
    for (int i = 0; i < setup.n; ++i) {
      if (world.alive(i) && ops[i] && !ops[i]->done()) return false;
    }
    return true;
  }
  void Run() {
    const int64_t limit = world.now_ms() + 300000;
    while (!Done() && world.now_ms() < limit) CHECK(world.Step());
    if (Done()) return;
    for (int i = 0; i < setup.n; ++i) {
      std::fprintf(stderr, "peer %d: %s, seed %llu\n", i, ops[i]->done() ? "done" : "running",
                   static_cast<unsigned long long>(setup.seed));
    }
    CHECK(Done());
  }
  void CheckSourcesUntouched() const {
    for (int i = 0; i < setup.n; ++i) {
      CHECK(setup.count == 0 ||
            std::memcmp(src[i].data(), original[i].data(), setup.count * sizeof(float)) == 0);
    }
  }

  Setup setup;
  FakeWorld world;
  float scale_sum = 0;
  std::vector<std::vector<float>> src, dst, original;
  std::vector<std::unique_ptr<Engine>> engines;  // gone before the buffers that they borrow
  std::vector<std::shared_ptr<Op>> ops;
};

// What every member must hold.
inline std::vector<std::vector<float>> Expected(const Cluster& c) {
  std::vector<OpSpec> specs;
  for (int i = 0; i < c.setup.n; ++i) specs.push_back(c.Spec(i));
  return Execute(specs, c.original);
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void CheckResult(const Cluster& c) {
  const auto expected = Expected(c);
  for (int i = 0; i < c.setup.n; ++i) {
    CHECK(!c.ops[i]->error());
    CHECK(SameBits(expected[i], expected[0]));
    CHECK(SameBits(expected[i], c.dst[i]));
  }
  c.CheckSourcesUntouched();
}

inline void CheckCloseToExact(const Cluster& c) {
  // Of standard normal values: what a step of the coarsest blocks is, and a bit.
  constexpr double kTolerance[] = {1e-6, 0.05, 0.25, 0.01, 2.5, 4.0, 4.0};
  const double tolerance = kTolerance[static_cast<size_t>(c.setup.codec)];
  for (uint64_t k = 0; k < c.setup.count; ++k) {
    double exact = 0;
    for (int i = 0; i < c.setup.n; ++i) {
      if (c.Weight(i) != 0) exact += double{c.Weight(i)} * c.original[i][k];
    }
    exact /= c.scale_sum;
    CHECK(std::abs(exact - c.dst[0][k]) < tolerance);
  }
}

}  // namespace decentral::test
