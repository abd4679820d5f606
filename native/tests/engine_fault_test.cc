// The collective engine on a fake network: faults at every instant.
//   build/native/tests/engine_fault_test
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "engine_cluster.h"

namespace decentral::test {
namespace {

TEST(a_member_that_never_starts_is_named) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Setup s{.n = 4, .count = 5000, .seed = seed};
    Cluster c(s);
    for (const int i : {0, 2, 3}) c.Begin(i);
    const int64_t start = c.world.now_ms();
    c.Run();
    CHECK(c.world.now_ms() - start >= 60000);
    for (const int i : {0, 2, 3}) {
      CHECK(c.ops[i]->error().kind == ErrorKind::kSilent);
      CHECK(c.ops[i]->error().peer == FakeWorld::Id(1));
      CHECK(c.ops[i]->error().text.find("has not started") != std::string::npos);
    }
    c.Begin(1);  // comes too late, and hears so at once
    const int64_t late = c.world.now_ms();
    c.Run();
    CHECK(c.ops[1]->error() && c.world.now_ms() - late < 1000);
  }
}

TEST(a_late_starter_holds_nobody_up_for_good) {
  Setup s{.n = 3, .count = 5000};
  Cluster c(s);
  c.Begin(0);
  c.Begin(2);
  const int64_t start = c.world.now_ms();
  while (c.world.now_ms() < start + 30000) CHECK(c.world.Step());
  c.Begin(1);
  c.Run();
  CheckResult(c);
}

TEST(words_that_get_lost_are_said_again) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Setup s{.n = 3, .count = 5000, .seed = seed};
    s.planner = seed % 2 ? Ring : Butterfly;
    Cluster c(s);
    c.BeginAll();
    for (int i = 0; i < 3; ++i) c.world.at(i).deaf = true;
    const int64_t start = c.world.now_ms();
    while (c.world.now_ms() < start + 500) CHECK(c.world.Step());
    for (int i = 0; i < 3; ++i) c.world.at(i).deaf = false;
    c.Run();
    CHECK(c.world.now_ms() < start + 3000);
    CheckResult(c);
  }
}

// One member's call differs in one thing. Everybody hears who, and in what.
TEST(members_that_disagree_are_told) {
  struct Case {
    const char* says;
    void (*change)(OpSpec&);
  };
  const Case cases[] = {
      {"count 4000",
       [](OpSpec& o) {
         o.count = 4000;
         o.segments = EvenSegments(3, 4000);
       }},
      {"codec bf16", [](OpSpec& o) { o.codec = Codec::kBf16; }},
      {"codec of final values int8", [](OpSpec& o) { o.final_codec = Codec::kInt8; }},
      {"scale 3", [](OpSpec& o) { o.scale = 3.0f; }},
      {"an all-gather", [](OpSpec& o) { o.kind = OpKind::kAllGather; }},
      {"a broadcast", [](OpSpec& o) { o.kind = OpKind::kBroadcast; }},
      {"a reduce-scatter", [](OpSpec& o) { o.kind = OpKind::kReduceScatter; }},
      {"dtype bf16", [](OpSpec& o) { o.dtype = ElementType::kBf16; }},
      {"schedule tree", [](OpSpec& o) { o.schedule = "tree"; }},
      {"other segments",
       [](OpSpec& o) {
         o.segments[0].count += 256;
         o.segments[1].offset += 256;
         o.segments[1].count -= 256;
       }},
      // Here a peer may also find itself left out of a plan.
      {"", [](OpSpec& o) { std::swap(o.members[0], o.members[2]); }},
  };
  for (const auto& [says, change] : cases) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      Setup s{.n = 3, .count = 5000, .seed = seed};
      s.planner = seed % 2 ? Ring : Butterfly;
      Cluster c(s);
      OpSpec odd = c.Spec(1);
      change(odd);
      c.Begin(0);
      c.Begin(1, odd);
      c.Begin(2);
      c.Run();
      for (int i = 0; i < 3; ++i) {
        const Error error = c.ops[i]->error();
        CHECK(error.kind == ErrorKind::kMismatch && !error.phase.empty());
        CHECK(error.peer != PeerId{});
        if (error.text.find(says) == std::string::npos) {
          std::fprintf(stderr, "not '%s': %s\n", says, error.text.c_str());
          CHECK(false);
        }
      }
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
      c.world.at(1).Send(FakeWorld::Id(2), 0, header, junk.data(), ~uint64_t{0}, 1);
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

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
