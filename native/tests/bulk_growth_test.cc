// Streams that are added while an operation runs: over a long path, both ends at once, and when
// they cannot be had.
//   build/native/tests/bulk_growth_test
#include <memory>
#include <random>
#include <vector>

#include "collective/engine.h"
#include "plans.h"
#include "slow_relay.h"

namespace decentral::test {
namespace {

constexpr int kDelayMs = 4;             // RTTs are above the 5 ms from which streams are tried
constexpr double kBytesPerMs = 500;     // of one stream
constexpr uint64_t kCount = 768 << 10;  // 3 MiB: 6 s with one stream
constexpr int kMaxStreams = 8;

EndpointOptions LongPathOptions(uint8_t seed, bool encrypt) {
  EndpointOptions options = Options(seed);
  options.encrypt_bulk = encrypt;
  options.bulk_streams = 1;
  options.max_bulk_streams = kMaxStreams;
  options.heartbeat_ms = 50;  // RTTs are known soon
  options.handshake_timeout_ms = 600;
  return options;
}

// Two peers with a long path between them, and an operation.
struct LongPath {
  explicit LongPath(bool encrypt) : a(LongPathOptions(1, encrypt)), b(LongPathOptions(2, encrypt)) {
    Node* const nodes[] = {&a, &b};
    for (int i = 0; i < 2; ++i) {
      Endpoint& endpoint = nodes[i]->endpoint;
      engines.push_back(Engine::Create(endpoint.bulk(), endpoint.id()));
      endpoint.SetBulkHandler(engines.back().get());
      std::mt19937 random(i);
      src.emplace_back(kCount);
      for (float& x : src.back()) x = static_cast<float>(random()) / 4e9f - 0.5f;
      dst.emplace_back(kCount, -1.0f);
    }
    relay = std::make_unique<SlowRelay>(b.endpoint.Listen("127.0.0.1", 0), kDelayMs, kBytesPerMs);
    link = Connect(a, b, relay->port());
    CHECK(Eventually([&] {
      return a.endpoint.Stats(link.a).min_rtt_us > 0 && b.endpoint.Stats(link.b).min_rtt_us > 0;
    }));
    CHECK(a.endpoint.Stats(link.a).min_rtt_us >= 5000);
  }
  ~LongPath() {
    for (auto& engine : engines) engine->Close();
    a.endpoint.SetBulkHandler(nullptr);
    b.endpoint.SetBulkHandler(nullptr);
  }

  void Start(Plan (*planner)(uint32_t, uint32_t, uint64_t), OpKind kind, uint32_t attempt = 0) {
    ops.clear();
    for (uint32_t i = 0; i < 2; ++i) {
      const Plan plan = planner(2, i, kCount);
      OpSpec spec;
      spec.kind = kind;
      spec.members = {a.endpoint.id(), b.endpoint.id()};
      spec.rank = i;
      spec.count = kCount;
      spec.segments = plan.segments;
      spec.steps = plan.steps;
      spec.attempt = attempt;
      spec.chunk_bytes = 16 << 10;
      ops.push_back(engines[i]->Start(spec, src[i].data(), dst[i].data()));
    }
  }
  void CheckSum() {
    for (auto& op : ops) {
      CHECK(op->Wait(60));
      if (op->error()) std::fprintf(stderr, "%s\n", op->error().text.c_str());
      CHECK(!op->error());
    }
    for (uint64_t k = 0; k < kCount; ++k) CHECK(dst[0][k] == src[0][k] + src[1][k]);
    CHECK(dst[0] == dst[1]);
  }
  void CheckAlive() {
    a.endpoint.Send(link.a, "alive");
    CHECK(b.Wait(Event::Type::kMessage).data == "alive");
    Event down;
    CHECK(!a.WaitFor(Event::Type::kLinkDown, 0, &down));
    CHECK(!b.WaitFor(Event::Type::kLinkDown, 0, &down));
  }
  int Streams() {
    const auto of = [](Node& node, LinkId id) { return node.endpoint.Stats(id).bulk_streams; };
    CHECK(Eventually([&] { return of(a, link.a) > 0 && of(a, link.a) == of(b, link.b); }));
    return of(a, link.a);
  }

  Node a, b;
  std::unique_ptr<SlowRelay> relay;  // gone before the nodes: they must not mind
  Pair link;
  std::vector<std::vector<float>> src, dst;
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<std::shared_ptr<Op>> ops;
};

TEST(streams_are_added_in_the_middle_of_an_operation) {
  for (const bool encrypt : {false, true}) {
    LongPath p(encrypt);
    p.Start(Ring, OpKind::kAllReduce);  // both ends send, and ask for more, at about once
    p.CheckSum();
    CHECK(p.Streams() > 1 && p.Streams() <= kMaxStreams);
    p.CheckAlive();
    if (encrypt) continue;
    p.Start(Ring, OpKind::kAllReduce, 1);  // on all of them from the beginning
    p.CheckSum();
  }
}

TEST(the_acceptor_may_ask_for_more) {
  LongPath p(true);
  // Rank 1, which did not dial, sends all there is.
  p.Start(
      [](uint32_t, uint32_t rank, uint64_t count) {
        using K = PlanStep::Kind;
        return Plan{{{0, count, 1}}, {{rank == 0 ? K::kRecvFinal : K::kSendFinal, 1 - rank, 0}}};
      },
      OpKind::kBroadcast);
  for (auto& op : p.ops) CHECK(op->Wait(60) && !op->error());
  CHECK(p.dst[0] == p.src[1]);
  CHECK(p.Streams() > 1);
  p.CheckAlive();
}

// Whatever happens to further streams, the link goes on with what it has.
void GrowthFails(bool encrypt, void (*spoil)(SlowRelay&)) {
  LongPath p(encrypt);
  p.Start(Ring, OpKind::kAllReduce);
  CHECK(p.Streams() == 1);
  const int before = p.relay->accepted();
  spoil(*p.relay);
  p.CheckSum();
  CHECK(!p.relay->listens() || p.relay->accepted() > before);  // they did try
  CHECK(p.Streams() == 1);
  p.CheckAlive();
}

TEST(further_streams_that_are_refused_cost_nothing) {
  GrowthFails(true, [](SlowRelay& relay) { relay.CloseListener(); });
}

TEST(further_streams_that_are_cut_off_cost_nothing) {
  for (const bool encrypt : {false, true}) {
    GrowthFails(encrypt, [](SlowRelay& relay) { relay.Refuse(SlowRelay::Surplus::kClosed); });
  }
}

// Until the attempt is given up, and beyond.
TEST(further_streams_that_never_open_cost_nothing) {
  GrowthFails(true, [](SlowRelay& relay) { relay.Refuse(SlowRelay::Surplus::kIgnored); });
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
