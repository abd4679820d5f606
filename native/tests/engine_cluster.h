// A group of engines on a fake network, for tests: set up, run, and check every bit.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "fake_bulk_transport.h"
#include "plans.h"

namespace decentral::test {

using Planner = Plan (*)(uint32_t, uint32_t, uint64_t);

struct Setup {
  int n = 3;
  uint64_t count = 1000;
  Codec codec = Codec::kFp32;
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
    spec.codec = setup.codec;
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

// What the plan says, computed one segment at a time without any engine.
inline std::vector<float> Expected(const Cluster& c) {
  const Setup& s = c.setup;
  std::vector<float> out(s.count);
  const auto segments = EvenSegments(s.n, s.count);
  for (int owner = 0; owner < s.n; ++owner) {
    const Segment& g = segments[owner];
    std::vector<float> sum(g.count);
    std::vector<uint8_t> wire(EncodedSize(s.codec, g.count) + 8);
    const auto source = [&](int i) { return c.original[i].data() + g.offset; };
    if (s.planner == Ring || s.n == 1) {  // owner + 1, owner + 2, ..., owner
      Encode(s.codec, source((owner + 1) % s.n), g.count, c.Weight((owner + 1) % s.n), wire.data());
      if (s.n == 1)
        Encode(Codec::kFp32, source(0), g.count, c.Weight(0),
               reinterpret_cast<uint8_t*>(sum.data()));
      for (int k = 2; k <= s.n; ++k) {
        const int i = (owner + k) % s.n;
        DecodeAdd(s.codec, wire.data(), g.count, source(i), c.Weight(i), sum.data());
        Encode(s.codec, sum.data(), g.count, 1.0f, wire.data());
      }
    } else {  // the owner's own, then the others by rank
      bool first = true;
      for (int i = 0; i < s.n; ++i) {
        if (i == owner) continue;
        Encode(s.codec, source(i), g.count, c.Weight(i), wire.data());
        DecodeAdd(s.codec, wire.data(), g.count, first ? source(owner) : sum.data(),
                  first ? c.Weight(owner) : 1.0f, sum.data());
        first = false;
      }
    }
    Encode(s.codec, sum.data(), g.count, 1.0f / c.scale_sum, wire.data());
    Decode(s.codec, wire.data(), g.count, out.data() + g.offset);
  }
  return out;
}

inline void CheckResult(const Cluster& c) {
  const std::vector<float> expected = Expected(c);
  for (int i = 0; i < c.setup.n; ++i) {
    CHECK(!c.ops[i]->error());
    CHECK(c.setup.count == 0 ||
          std::memcmp(expected.data(), c.dst[i].data(), c.setup.count * sizeof(float)) == 0);
  }
  c.CheckSourcesUntouched();
}

inline void CheckCloseToExact(const Cluster& c) {
  const double tolerance = c.setup.codec == Codec::kFp32   ? 1e-6
                           : c.setup.codec == Codec::kBf16 ? 0.05
                                                           : 0.25;
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
