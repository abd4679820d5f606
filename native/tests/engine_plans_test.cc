// The collective engine on a fake network: every codec and kind of plan against the reference.
//   build/native/tests/engine_plans_test
#include <cmath>
#include <limits>

#include "check.h"
#include "engine_cluster.h"

namespace decentral::test {
namespace {

constexpr Codec kCodecs[] = {Codec::kFp32, Codec::kBf16, Codec::kFp16, Codec::kInt8,
                             Codec::kInt4, Codec::kFp4,  Codec::kSign};
struct OneWay {
  OpKind kind;
  Planner planner;
};
constexpr OneWay kOneWay[] = {{OpKind::kReduceScatter, ReduceScatter},
                              {OpKind::kAllGather, AllGather},
                              {OpKind::kBroadcast, Broadcast}};

TEST(every_codec_and_plan_whatever_the_grain) {
  for (const Codec codec : kCodecs) {
    for (const Planner planner : {Ring, Butterfly, Tree}) {
      // A sum of signs has magnitudes: nothing but its owner may hold it.
      if (!InfoOf(codec).rides_ring && planner != Butterfly) continue;
      for (uint64_t seed = 1; seed <= 40; ++seed) {
        Setup s{.codec = codec, .planner = planner, .seed = seed};
        s.n = 2 + static_cast<int>(seed % 5);
        s.count = (uint64_t[]){0, 1, 7, 257, 4099, 9001}[seed % 6];
        s.streams = 1 + static_cast<int>(seed % 3);
        if (seed % 2) s.chunk_bytes = {1024, 5000, 100, 1u << 20};
        Cluster c(s);
        c.BeginAll();
        c.Run();
        CheckResult(c);
        CheckCloseToExact(c);
      }
    }
  }
}

TEST(weights_count_in_every_codec_and_plan) {
  for (const Codec codec : kCodecs) {
    for (const Planner planner : {Ring, Butterfly, Tree}) {
      if (!InfoOf(codec).rides_ring && planner != Butterfly) continue;
      Setup s{.n = 5, .count = 3001, .codec = codec, .planner = planner};
      s.weights = {2.0f, 0.0f, 0.5f, 1.0f, 0.25f};
      s.chunk_bytes = {1024, 5000, 100};
      Cluster c(s);
      c.src[1].assign(s.count, std::numeric_limits<float>::quiet_NaN());  // an absence
      c.original = c.src;
      c.BeginAll();
      c.Run();
      CheckResult(c);
      for (const float x : c.dst[0]) CHECK(std::isfinite(x));
    }
  }
}

TEST(what_is_not_finite_reaches_all_members_alike) {
  for (const Codec codec : kCodecs) {
    for (const Planner planner : {Ring, Butterfly, Tree}) {
      if (!InfoOf(codec).rides_ring && planner != Butterfly) continue;
      for (const float odd : {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(), -HUGE_VALF}) {
        Setup s{.n = 4, .count = 2500, .codec = codec, .planner = planner};
        Cluster c(s);
        c.src[0][0] = c.src[1][1300] = c.src[3][2499] = odd;
        c.original = c.src;
        c.BeginAll();
        c.Run();
        CheckResult(c);
        for (const uint64_t k : {0, 1300, 2499}) CHECK(!std::isfinite(c.dst[0][k]));
        CHECK(std::isfinite(c.dst[0][600]));  // in none of their blocks
      }
    }
  }
}

// A reduce-scatter's sums go nowhere: only contributions are encoded.
TEST(a_reduce_scatter_leaves_sums_as_they_are) {
  for (const Codec codec : kCodecs) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      Setup s{.n = 4, .count = 5003, .codec = codec, .kind = OpKind::kReduceScatter, .seed = seed};
      s.planner = ReduceScatter;
      s.chunk_bytes = {1024, 5000, 100};
      Cluster c(s);
      c.BeginAll();
      c.Run();
      const auto expected = Expected(c);
      const auto segments = EvenSegments(s.n, s.count);
      for (int i = 0; i < s.n; ++i) {
        CHECK(!c.ops[i]->error());
        const auto [offset, count, owner] = segments[i];
        CHECK(std::memcmp(&expected[i][offset], &c.dst[i][offset], count * sizeof(float)) == 0);
        // By hand: the own part, and what the others' parts decode to, in rank order.
        std::vector<float> sum(count);
        std::vector<uint8_t> wire(EncodedSize(codec, count));
        bool first = true;
        for (int k = 0; k < s.n; ++k) {
          if (k == i) continue;
          Encode(codec, &c.original[k][offset], count, 1.0f, wire.data());
          DecodeAdd(codec, wire.data(), count, first ? &c.original[i][offset] : sum.data(), 1.0f,
                    sum.data());
          first = false;
        }
        for (uint64_t k = 0; k < count; ++k) CHECK(sum[k] * 0.25f == c.dst[i][offset + k]);
      }
      c.CheckSourcesUntouched();
    }
  }
}

TEST(gathers_and_broadcasts_work_in_place) {
  for (const Codec codec : kCodecs) {
    for (const auto& [kind, planner] : kOneWay) {
      if (kind == OpKind::kReduceScatter) continue;
      for (uint64_t seed = 1; seed <= 10; ++seed) {
        Setup s{.n = 4, .count = 5003, .codec = codec, .kind = kind, .seed = seed};
        s.planner = planner;
        s.chunk_bytes = {1024, 5000, 100};
        Cluster c(s);
        for (int i = 0; i < s.n; ++i) {
          OpSpec spec = c.Spec(i);
          spec.scale = 1.0f;
          c.dst[i] = c.src[i];
          c.ops[i] = c.engines[i]->Start(spec, c.dst[i].data(), c.dst[i].data());
        }
        c.Run();
        // What the owner's bytes decode to, on the owner as well.
        const auto plan = planner(s.n, 0, s.count);
        for (const Segment& g : plan.segments) {
          std::vector<uint8_t> wire(EncodedSize(codec, g.count));
          std::vector<float> right(g.count);
          Encode(codec, c.original[g.owner].data() + g.offset, g.count, 1.0f, wire.data());
          Decode(codec, wire.data(), g.count, right.data());
          for (int i = 0; i < s.n; ++i) {
            CHECK(!c.ops[i]->error());
            CHECK(std::memcmp(right.data(), &c.dst[i][g.offset], g.count * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST(nothing_at_all_may_be_scattered_gathered_and_broadcast) {
  for (const auto& [kind, planner] : kOneWay) {
    Setup s{.n = 3, .count = 0, .kind = kind, .planner = planner};
    Cluster c(s);
    c.BeginAll();
    c.Run();
    for (const auto& op : c.ops) CHECK(!op->error());
  }
}

TEST(kinds_abort_and_die_like_reductions) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const auto& [kind, planner] = kOneWay[seed % 3];
    Setup s{.n = 4, .count = 9001, .codec = Codec::kInt8, .kind = kind, .planner = planner};
    s.seed = seed;
    Cluster c(s);
    c.BeginAll();
    const int who = static_cast<int>(seed % 4);
    for (uint64_t i = 0; i < seed * 2 && !c.Done(); ++i) c.world.Step();
    if (seed % 2) {
      c.world.Kill(who);
    } else {
      c.ops[who]->Abort("enough");
    }
    c.Run();
    for (int i = 0; i < 4; ++i) {
      if (i == who || !c.ops[i]->error()) continue;
      const Error error = c.ops[i]->error();
      CHECK(error.kind == (seed % 2 ? ErrorKind::kClosed : ErrorKind::kAborted));
      CHECK(error.peer == FakeWorld::Id(who));
    }
    c.CheckSourcesUntouched();
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
