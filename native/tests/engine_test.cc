// The collective engine on a fake network: bits under every interleaving, faults at every instant.
//   build/tests/engine_test
#include "collective/engine.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "fake_bulk_transport.h"
#include "plans.h"

namespace decentral::test {
namespace {

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
    ops[i] = engines[i]->AllReduce(spec, src[i].data(), dst[i].data());
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
    const int64_t limit = world.now_ms() + 60000;
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
std::vector<float> Expected(const Cluster& c) {
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

void CheckResult(const Cluster& c) {
  const std::vector<float> expected = Expected(c);
  for (int i = 0; i < c.setup.n; ++i) {
    CHECK(!c.ops[i]->error());
    CHECK(c.setup.count == 0 ||
          std::memcmp(expected.data(), c.dst[i].data(), c.setup.count * sizeof(float)) == 0);
  }
  c.CheckSourcesUntouched();
}

void CheckCloseToExact(const Cluster& c) {
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

TEST(a_late_starter_holds_nobody_up_for_good) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Setup s{.n = 3, .count = 5000, .seed = seed};
    Cluster c(s);
    c.Begin(0);
    c.Begin(2);
    for (int i = 0; i < 2000; ++i) c.world.Step();  // the clock moves on: 1 is slow
    if (c.ops[0]->done()) {                         // more than the silence limit
      CHECK(c.ops[0]->error().kind == ErrorKind::kSilent);
      CHECK(c.ops[0]->error().peer == FakeWorld::Id(1));
      c.Begin(1);  // comes too late, and hears so at once
      c.Run();
      CHECK(c.ops[1]->error().kind != ErrorKind::kNone);
      continue;
    }
    c.Begin(1);
    c.Run();
    CheckResult(c);
  }
}

TEST(a_slow_starter_within_the_limit_succeeds) {
  Setup s{.n = 3, .count = 5000};
  Cluster c(s);
  c.Begin(0);
  c.Begin(2);
  const int64_t start = c.world.now_ms();
  while (c.world.now_ms() < start + 3000) CHECK(c.world.Step());
  c.Begin(1);
  c.Run();
  CheckResult(c);
}

TEST(members_that_disagree_are_told) {
  for (int what = 0; what < 4; ++what) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      Setup s{.n = 3, .count = 5000, .seed = seed};
      Cluster c(s);
      OpSpec odd = c.Spec(1);
      const char* expected = "";
      if (what == 0) {
        odd.count = 4000;
        odd.segments = EvenSegments(3, 4000);
        expected = "count 4000";
      } else if (what == 1) {
        odd.codec = Codec::kBf16;
        expected = "codec bf16";
      } else if (what == 2) {
        odd.scale = 3.0f;
        expected = "scale 3";
      } else {
        odd.members[0] = FakeWorld::Id(2);
        odd.members[2] = FakeWorld::Id(0);
        expected = "other members";
      }
      c.Begin(0);
      c.Begin(1, odd);
      c.Begin(2);
      c.Run();
      bool named = false;
      for (int i = 0; i < 3; ++i) {
        CHECK(c.ops[i]->error().kind == ErrorKind::kMismatch);
        named |= c.ops[i]->error().text.find(expected) != std::string::npos;
      }
      CHECK(named || what == 3);  // there, a peer may also find itself left out of a plan
      c.CheckSourcesUntouched();
    }
  }
}

TEST(abort_by_anyone_at_any_instant) {
  for (const Codec codec : {Codec::kFp32, Codec::kInt8}) {
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Setup s{.n = 4, .count = 9001, .codec = codec, .seed = seed};
      s.planner = seed % 2 ? Ring : Butterfly;
      Cluster c(s);
      c.BeginAll();
      const int who = static_cast<int>(seed % 4);
      for (uint64_t i = 0; i < seed * 3 && !c.ops[who]->done(); ++i) c.world.Step();
      c.ops[who]->Abort("enough");
      c.ops[who]->Abort("more than enough");
      c.Run();
      for (int i = 0; i < 4; ++i) {
        const Error error = c.ops[i]->error();
        if (!error) continue;  // was through before the word reached it
        CHECK(error.kind == ErrorKind::kAborted);
        CHECK(error.text.find("enough") != std::string::npos);
        CHECK(error.peer == FakeWorld::Id(who));
        CHECK(!error.phase.empty());
      }
      c.CheckSourcesUntouched();
    }
  }
}

TEST(death_of_anyone_at_any_instant) {
  for (const Codec codec : {Codec::kFp32, Codec::kInt8}) {
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Setup s{.n = 5, .count = 9001, .codec = codec, .seed = seed};
      s.planner = seed % 2 ? Ring : Butterfly;
      Cluster c(s);
      c.BeginAll();
      const int who = static_cast<int>(seed % 5);
      for (uint64_t i = 0; i < seed * 3 && !c.Done(); ++i) c.world.Step();
      c.world.Kill(who);
      c.Run();
      for (int i = 0; i < 5; ++i) {
        if (i == who) continue;
        const Error error = c.ops[i]->error();
        if (!error) continue;
        CHECK(error.kind == ErrorKind::kClosed);
        CHECK(error.peer == FakeWorld::Id(who));
      }
      c.CheckSourcesUntouched();
    }
  }
}

TEST(only_the_one_who_stopped_is_blamed_for_silence) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Setup s{.n = 5, .count = 9001, .seed = seed};
    s.planner = seed % 2 ? Ring : Butterfly;
    Cluster c(s);
    c.BeginAll();
    for (uint64_t i = 0; i < 20 + seed * 3; ++i) c.world.Step();
    const int who = static_cast<int>(seed % 5);
    c.world.at(who).frozen = true;
    const int64_t start = c.world.now_ms();
    const auto others_done = [&] {
      for (int i = 0; i < 5; ++i) {
        if (i != who && !c.ops[i]->done()) return false;
      }
      return true;
    };
    while (!others_done() && c.world.now_ms() < start + 20000) CHECK(c.world.Step());
    for (int i = 0; i < 5; ++i) {
      if (i == who || !c.ops[i]->done()) continue;  // not done: its bytes wait for the link's limit
      const Error error = c.ops[i]->error();
      if (!error) continue;
      CHECK(error.kind == ErrorKind::kSilent);
      CHECK(error.peer == FakeWorld::Id(who));
    }
    CHECK(c.world.now_ms() < start + 20000 || !others_done());
    c.world.Kill(who);  // what the link layer finds out in the end
    c.Run();
    CHECK(others_done());
  }
}

// Buffers are freed the moment done() says so: the address sanitizer sees any later touch.
TEST(nothing_is_touched_after_done) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Setup s{.n = 3, .count = 9001, .seed = seed};
    Cluster c(s);
    c.BeginAll();
    std::vector<bool> freed(3, false);
    const auto sweep = [&] {
      for (int i = 0; i < 3; ++i) {
        if (freed[i] || !c.ops[i]->done()) continue;
        std::vector<float>().swap(c.src[i]);
        std::vector<float>().swap(c.dst[i]);
        freed[i] = true;
      }
      return freed[0] && freed[1] && freed[2];
    };
    for (uint64_t i = 0; !sweep(); ++i) {
      if (i == seed * 4) c.ops[seed % 3]->Abort("enough");
      CHECK(c.world.Step());
    }
    for (int i = 0; i < 1000; ++i) c.world.Step();
  }
}

TEST(one_abort_hits_one_operation_only) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Setup s{.n = 3, .count = 9001, .seed = seed};
    Cluster c(s);
    c.BeginAll();
    for (uint64_t i = 0; i < seed * 4; ++i) c.world.Step();
    c.ops[0]->Abort("enough");
    c.Run();
    for (int i = 0; i < 3; ++i) {
      OpSpec retry = c.Spec(i);
      retry.attempt = 1;
      c.Begin(i, retry);
    }
    c.Run();
    CheckResult(c);
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
    more.push_back(c.engines[i]->AllReduce(spec, c.src[i].data(), second[i].data()));
  }
  c.Run();
  while (!more[0]->done() || !more[1]->done() || !more[2]->done()) CHECK(c.world.Step());
  CheckResult(c);
  CHECK(second[0] == second[1] && second[1] == second[2]);
  // The same name twice at the same time is refused here, without disturbing the others.
  c.BeginAll();
  auto twin = c.engines[0]->AllReduce(c.Spec(0), c.src[0].data(), second[0].data());
  while (!twin->done()) CHECK(c.world.Step());
  CHECK(twin->error().kind == ErrorKind::kConfig);
  c.Run();
  CheckResult(c);
}

TEST(garbage_from_a_member_fails_the_operation_and_nothing_else) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Setup s{.n = 3, .count = 9001, .codec = Codec::kInt8, .seed = seed};
    Cluster c(s);
    c.BeginAll();
    for (uint64_t i = 0; i < seed; ++i) c.world.Step();
    std::mt19937_64 random(seed);
    FrameHeader header;
    header.type = FrameType::kChunk;
    header.round = 5;
    header.length = static_cast<uint32_t>(random() % 3000);
    header.sequence = uint64_t{1} << 32 | random() % 40;
    std::vector<uint8_t> junk(header.length, 0x5A);
    c.world.at(1).Post([&, header] {
      c.world.at(1).Send(FakeWorld::Id(2), 0, header, junk.data(), ~uint64_t{0});
    });
    header.type = seed % 2 ? FrameType::kOpReady : FrameType::kOpAbort;
    header.flags = static_cast<uint8_t>(seed % 3);
    header.length = static_cast<uint32_t>(random() % 120);
    junk.resize(3000);
    c.world.at(1).Post(
        [&, header] { c.world.at(1).SendControl(FakeWorld::Id(0), header, junk.data()); });
    c.Run();
    for (int i = 0; i < 500; ++i) c.world.Step();
    c.CheckSourcesUntouched();
  }
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
      c.engines[0]->AllReduce(spec, src, dst);
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

TEST(closing_an_engine_fails_what_runs) {
  Setup s{.n = 3, .count = 9001};
  Cluster c(s);
  c.BeginAll();
  for (int i = 0; i < 60; ++i) c.world.Step();
  c.engines[1]->Close();
  c.Run();
  for (int i = 0; i < 3; ++i) CHECK(c.ops[i]->error().kind == ErrorKind::kAborted);
  CHECK(c.ops[0]->error().text.find("leaving") != std::string::npos);
  c.Begin(1);
  c.Run();
  CHECK(c.ops[1]->error().kind == ErrorKind::kConfig);
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
