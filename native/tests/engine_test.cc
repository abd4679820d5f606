// The collective engine on a fake network: the same bits under every interleaving.
//   build/native/tests/engine_test
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "engine_cluster.h"

namespace decentral::test {
namespace {

TEST(every_size_codec_and_group) {
  uint64_t seed = 1;
  for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8}) {
    for (const int n : {1, 2, 3, 4, 5, 8}) {
      for (const uint64_t count : {0, 1, 7, 255, 256, 257, 4099, 100003}) {
        if (count == 100003 && n > 4) continue;
        for (const Planner planner : {Ring, Butterfly}) {
          Setup s{.n = n, .count = count, .codec = codec, .planner = planner};
          s.streams = 1 + static_cast<int>(seed % 3);
          s.chunk_bytes = {count > 5000 ? 20000u : 1024u};
          s.seed = ++seed;
          Cluster c(s);
          c.BeginAll();
          c.Run();
          CheckResult(c);
          CheckCloseToExact(c);
        }
      }
    }
  }
}

TEST(interleavings_and_grains_never_change_a_bit) {
  for (const Codec codec : {Codec::kFp32, Codec::kInt8}) {
    for (const Planner planner : {Ring, Butterfly}) {
      for (uint64_t seed = 1; seed <= 60; ++seed) {
        Setup s{.n = 4, .count = 9001, .codec = codec, .planner = planner};
        s.streams = 1 + static_cast<int>(seed % 3);
        s.seed = seed;
        if (seed % 2 == 0) s.chunk_bytes = {1024, 5000, 100, 1u << 20};
        Cluster c(s);
        c.BeginAll();
        c.Run();
        CheckResult(c);  // against one sequential computation
      }
    }
  }
}

TEST(weights_count_and_weight_zero_is_absence) {
  for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8}) {
    for (const Planner planner : {Ring, Butterfly}) {
      Setup s{.n = 4, .count = 3001, .codec = codec, .planner = planner};
      s.weights = {2.0f, 0.0f, 0.5f, 1.0f};
      Cluster c(s);
      c.src[1].assign(s.count, std::numeric_limits<float>::quiet_NaN());
      c.original = c.src;
      c.BeginAll();
      c.Run();
      CheckResult(c);
      CheckCloseToExact(c);
    }
  }
}

TEST(two_operations_at_once_keep_apart) {
  Setup s{.n = 3, .count = 9001};
  Cluster c(s);
  std::vector<std::vector<float>> second(3, std::vector<float>(s.count));
  std::vector<std::shared_ptr<Op>> more;
  c.BeginAll();
  for (int i = 2; i >= 0; --i) {
    OpSpec spec = c.Spec(i);
    spec.tag = 1;
    spec.codec = Codec::kInt8;
    more.push_back(c.engines[i]->Start(spec, c.src[i].data(), second[i].data()));
  }
  c.Run();
  while (!more[0]->done() || !more[1]->done() || !more[2]->done()) CHECK(c.world.Step());
  CheckResult(c);
  CHECK(second[0] == second[1] && second[1] == second[2]);
  for (int i = 0; i < 3; ++i) CHECK(c.world.at(i).quiets >= 1);  // what gave way may go on
  // The same name twice at the same time is refused here, without disturbing the others.
  c.BeginAll();
  auto twin = c.engines[0]->Start(c.Spec(0), c.src[0].data(), second[0].data());
  while (!twin->done()) CHECK(c.world.Step());
  CHECK(twin->error().kind == ErrorKind::kConfig);
  c.Run();
  CheckResult(c);
}

TEST(calls_that_cannot_work_are_refused) {
  Setup s{.n = 2, .count = 1000};
  Cluster c(s);
  int refused = 0;
  const auto refuses = [&](auto change) {
    OpSpec spec = c.Spec(0);
    const float* src = c.src[0].data();
    float* dst = c.dst[0].data();
    change(spec, src, dst);
    try {
      c.engines[0]->Start(spec, src, dst);
    } catch (const Error& error) {
      CHECK(error.kind == ErrorKind::kConfig && !error.text.empty());
      ++refused;
      return;
    }
    CHECK(false);
  };
  refuses([](OpSpec& o, auto&, auto&) { o.rank = 2; });
  refuses([](OpSpec& o, auto&, auto&) { o.rank = 1; });
  refuses([](OpSpec& o, auto&, auto&) { o.members[1] = o.members[0]; });
  refuses([](OpSpec& o, auto&, auto&) { o.segments[1].offset += 1; });
  refuses([](OpSpec& o, auto&, auto&) { o.segments.pop_back(); });
  refuses([](OpSpec& o, auto&, auto&) { o.steps[0].peer = 0; });
  refuses([](OpSpec& o, auto&, auto&) { o.steps[0].segment = 9; });
  refuses([](OpSpec& o, auto&, auto&) { o.steps.push_back(o.steps[0]); });
  refuses([](OpSpec& o, auto&, auto&) { o.weight = NAN; });
  refuses([](OpSpec& o, auto&, auto&) { o.scale = INFINITY; });
  refuses([](OpSpec& o, auto&, auto&) { o.chunk_bytes = 1u << 30; });
  refuses([](OpSpec&, const float*& src, float*& dst) { src = dst + 1; });
  refuses([](OpSpec&, const float*&, float*& dst) { dst = nullptr; });
  CHECK(refused == 13);
}

// A butterfly's owner may get chunks long before their turn: what waits is bounded by the window.
TEST(what_waits_for_its_turn_is_bounded) {
  Setup s{.n = 4, .count = 200000, .streams = 1, .planner = Butterfly};
  Cluster c(s);
  c.Begin(0);
  c.Begin(2);
  c.Begin(3);
  for (int i = 0; i < 3000 && c.world.now_ms() < 3000; ++i) c.world.Step();
  // Owners 2 and 3 wait for rank 1's contribution (and 0's turn is first): rank 0's chunks to
  // them go on, but 3's to 2, which come after 1's, stop at the window.
  CHECK(c.world.at(3).sent_chunks < 3 * 12 + 50);
  c.Begin(1);
  c.Run();
  CheckResult(c);
}

TEST(threads) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Setup s{.n = 3, .count = 50001, .seed = seed, .threads = true};
    s.codec = seed % 2 ? Codec::kFp32 : Codec::kInt8;
    Cluster c(s);
    c.world.RunThreads([&] {
      c.BeginAll();
      if (seed % 3 == 0) {
        c.ops[seed % 2]->Abort("enough");
      } else {
        while (!c.ops[0]->Wait(0.001)) c.ops[1]->stats();
      }
      for (auto& op : c.ops) CHECK(op->Wait(20));
      if (seed % 3 != 0) CheckResult(c);
      for (auto& engine : c.engines) engine->Close();
    });
    c.CheckSourcesUntouched();
    c.world.RunThreads([&] { c.engines.clear(); });
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
