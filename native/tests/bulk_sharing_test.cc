// What shares a stream or a cap: frames by priority, operations by priority, bytes per second.
//   build/native/tests/bulk_sharing_test
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "collective/engine.h"
#include "plans.h"
#include "tests/endpoint_helper.h"

namespace decentral::test {
namespace {

constexpr uint64_t kUploadBytesS = 4'000'000;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

EndpointOptions SharedOptions(uint8_t seed, bool encrypt, uint64_t upload_bytes_s) {
  EndpointOptions options = Options(seed);
  options.encrypt_bulk = encrypt;
  options.bulk_streams = 1;
  options.max_upload_bytes_s = upload_bytes_s;
  return options;
}

// Remembers the order in which frames arrived.
class Order : public BulkHandler {
 public:
  uint8_t* OnHeader(const PeerId&, int, const FrameHeader& header) override {
    room_.resize(header.length);
    return room_.data();
  }
  void OnPayload(const PeerId&, int, const FrameHeader& header) override {
    std::lock_guard<std::mutex> lock(mutex_);
    arrived_.push_back(header.sequence);
  }
  void OnSent(const PeerId&, int, uint64_t) override { ++sent; }
  void OnControl(const PeerId&, const FrameHeader&, const uint8_t*) override {}
  void OnBulkUp(const PeerId&, int streams) override { up = streams; }
  void OnBulkDown(const PeerId&, const Error&) override {}

  std::vector<uint64_t> arrived() {
    std::lock_guard<std::mutex> lock(mutex_);
    return arrived_;
  }
  std::atomic<int> up{0}, sent{0};

 private:
  std::vector<uint8_t> room_;  // data thread
  std::mutex mutex_;
  std::vector<uint64_t> arrived_;  // GUARDED_BY(mutex_)
};

// A sends to b, which watches.
struct OneWay {
  OneWay(bool encrypt, uint64_t upload_bytes_s)
      : a(SharedOptions(1, encrypt, upload_bytes_s)), b(SharedOptions(2, encrypt, 0)) {
    a.endpoint.SetBulkHandler(&from);
    b.endpoint.SetBulkHandler(&to);
    link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
    a.endpoint.bulk().Post([this] { a.endpoint.bulk().WantStreams(b.endpoint.id()); });
    CHECK(Eventually([&] { return from.up == 1 && to.up == 1; }));
  }
  ~OneWay() {
    a.endpoint.SetBulkHandler(nullptr);
    b.endpoint.SetBulkHandler(nullptr);
  }
  // On the data thread.
  void Send(uint64_t sequence, const std::string& payload, int priority) {
    FrameHeader header{.type = FrameType::kChunk};
    header.length = static_cast<uint32_t>(payload.size());
    header.sequence = sequence;
    a.endpoint.bulk().Send(b.endpoint.id(), 0, header, payload.data(), sequence, priority);
  }

  Order from, to;
  Node a, b;
  Pair link;
};

TEST(frames_of_a_lower_number_leave_first_and_equals_in_order) {
  for (const bool encrypt : {false, true}) {
    OneWay p(encrypt, 0);
    const std::string payload(100'000, 'p');
    p.a.endpoint.bulk().Post([&] {
      for (uint64_t i = 0; i < 30; ++i)
        p.Send(i % 3 * 100 + i / 3, payload, static_cast<int>(i % 3));
    });
    CHECK(Eventually([&] { return p.to.arrived().size() == 30 && p.from.sent == 30; }));
    const auto arrived = p.to.arrived();
    for (uint64_t i = 0; i < 30; ++i) CHECK(arrived[i] == i / 10 * 100 + i % 10);
  }
}

TEST(a_frame_that_matters_overtakes_what_waits) {
  for (const bool encrypt : {false, true}) {
    OneWay p(encrypt, kUploadBytesS);
    const std::string payload(100'000, 'p');
    p.a.endpoint.bulk().Post([&] {
      for (uint64_t i = 0; i < 30; ++i) p.Send(i, payload, 2);
    });
    CHECK(Eventually([&] { return p.from.sent >= 3; }));
    p.a.endpoint.bulk().Post([&] { p.Send(1000, payload, 0); });
    CHECK(Eventually([&] { return p.to.arrived().size() == 31; }));
    const auto arrived = p.to.arrived();
    const auto at = std::find(arrived.begin(), arrived.end(), 1000) - arrived.begin();
    CHECK(at < 20);  // 3 were gone; a few more were on their way
  }
}

TEST(no_more_than_the_cap_leaves_and_control_passes_at_once) {
  for (const bool encrypt : {false, true}) {
    OneWay p(encrypt, kUploadBytesS);
    const std::string payload(100'000, 'p');
    const double start = Now();
    p.a.endpoint.bulk().Post([&] {
      for (uint64_t i = 0; i < 40; ++i) p.Send(i, payload, 1);
    });
    double slowest = 0;
    for (int i = 0; i < 10; ++i) {
      CHECK(Eventually([&] { return p.to.arrived().size() >= static_cast<size_t>(4 * i); }));
      const double asked = Now();
      p.a.endpoint.Send(p.link.a, "now", 0);
      CHECK(p.b.Wait(Event::Type::kMessage).data == "now");
      slowest = std::max(slowest, Now() - asked);
    }
    CHECK(Eventually([&] { return p.to.arrived().size() == 40; }));
    const double took = Now() - start;  // 4 MB at 4 MB/s, less what the bucket held
    CHECK(took > 0.9 && took < 3);
    CHECK(slowest < 0.3);
  }
}

TEST(all_streams_and_links_share_the_cap) {
  Node a(SharedOptions(1, false, kUploadBytesS)), b(SharedOptions(2, false, 0)),
      c(SharedOptions(3, false, 0));
  Order from, to_b, to_c;
  a.endpoint.SetBulkHandler(&from);
  b.endpoint.SetBulkHandler(&to_b);
  c.endpoint.SetBulkHandler(&to_c);
  Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  Connect(a, c, c.endpoint.Listen("127.0.0.1", 0));
  const PeerId others[] = {b.endpoint.id(), c.endpoint.id()};
  BulkTransport& bulk = a.endpoint.bulk();
  bulk.Post([&] {
    for (const PeerId& id : others) bulk.WantStreams(id);
  });
  CHECK(Eventually([&] { return to_b.up == 1 && to_c.up == 1; }));
  std::atomic<bool> ready{false};
  CHECK(Eventually([&] {
    bulk.Post([&] { ready = bulk.Streams(others[0]) == 1 && bulk.Streams(others[1]) == 1; });
    return ready.load();
  }));
  const std::string payload(100'000, 'p');
  const double start = Now();
  bulk.Post([&] {
    for (uint64_t i = 0; i < 40; ++i) {
      FrameHeader header{.type = FrameType::kChunk};
      header.length = static_cast<uint32_t>(payload.size());
      header.sequence = i;
      bulk.Send(others[i % 2], 0, header, payload.data(), i, 1);
    }
  });
  CHECK(Eventually([&] { return to_b.arrived().size() == 20 && to_c.arrived().size() == 20; }));
  const double took = Now() - start;
  CHECK(took > 0.9 && took < 3);
  for (Node* node : {&a, &b, &c}) node->endpoint.SetBulkHandler(nullptr);
}

// A long operation of low priority, and a short one that comes later and shall not wait for it.
TEST(an_operation_of_a_lower_number_goes_first) {
  for (const bool encrypt : {false, true}) {
    Node a(SharedOptions(1, encrypt, kUploadBytesS)), b(SharedOptions(2, encrypt, kUploadBytesS));
    Node* const nodes[] = {&a, &b};
    std::vector<std::unique_ptr<Engine>> engines;
    for (Node* node : nodes) {
      engines.push_back(Engine::Create(node->endpoint.bulk(), node->endpoint.id()));
      node->endpoint.SetBulkHandler(engines.back().get());
    }
    Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
    constexpr uint64_t kLong = 2 << 20, kShort = 16 << 10;  // 2 s and 16 ms
    std::vector<std::vector<float>> src(4), dst(4);
    const auto start = [&](uint32_t tag, uint64_t count, int priority) {
      std::vector<std::shared_ptr<Op>> ops;
      for (uint32_t i = 0; i < 2; ++i) {
        const Plan plan = Butterfly(2, i, count);
        OpSpec spec;
        spec.members = {a.endpoint.id(), b.endpoint.id()};
        spec.rank = i;
        spec.count = count;
        spec.segments = plan.segments;
        spec.steps = plan.steps;
        spec.tag = tag;
        spec.priority = priority;
        spec.chunk_bytes = 64 << 10;
        src[2 * tag + i].assign(count, static_cast<float>(1 + i));
        dst[2 * tag + i].resize(count);
        ops.push_back(engines[i]->Start(spec, src[2 * tag + i].data(), dst[2 * tag + i].data()));
      }
      return ops;
    };
    const auto slow = start(0, kLong, 2);
    CHECK(Eventually([&] { return slow[0]->stats().bytes_received > 500'000; }));
    const auto quick = start(1, kShort, 0);
    for (auto& op : quick) CHECK(op->Wait(20) && !op->error());
    CHECK(!slow[0]->done() && !slow[1]->done());
    for (auto& op : slow) CHECK(op->Wait(20) && !op->error());
    CHECK(quick[0]->stats().seconds < 0.5 * slow[0]->stats().seconds);
    for (uint32_t i = 0; i < 4; ++i) {
      for (const float x : dst[i]) CHECK(x == 3.0f);
    }
    for (auto& engine : engines) engine->Close();
    for (Node* node : nodes) node->endpoint.SetBulkHandler(nullptr);
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
