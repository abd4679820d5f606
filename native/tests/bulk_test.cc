// Bulk streams: chunks, blobs, cancelling, the way they die.
#include <atomic>
#include <map>
#include <vector>

#include "tests/endpoint_helper.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

namespace {

std::string Pattern(size_t size, uint32_t seed) {
  std::string out(size, '\0');
  uint32_t x = seed * 2654435761u + 1;
  for (char& c : out) {
    x = x * 1664525u + 1013904223u;
    c = static_cast<char>(x >> 24);
  }
  return out;
}

// Collects what arrives; every field is guarded by `mutex`.
class Collector : public BulkHandler {
 public:
  uint8_t* OnHeader(const PeerId&, int stream, const FrameHeader& header) override {
    std::lock_guard<std::mutex> lock(mutex);
    landing[stream].assign(header.length, '\0');
    return reinterpret_cast<uint8_t*>(landing[stream].data());
  }
  void OnPayload(const PeerId&, int stream, const FrameHeader& header) override {
    std::lock_guard<std::mutex> lock(mutex);
    if (last[stream] > header.sequence) in_order = false;
    last[stream] = header.sequence;
    chunks[header.sequence] = landing[stream];
    stamp = header.run;
  }
  void OnSent(const PeerId&, int, uint64_t) override { ++sent; }
  void OnControl(const PeerId&, const FrameHeader& header, const uint8_t* payload) override {
    std::lock_guard<std::mutex> lock(mutex);
    control.assign(reinterpret_cast<const char*>(payload), header.length);
    control_round = header.round;
  }
  void OnBulkUp(const PeerId&, int streams) override { up = streams; }
  void OnBulkDown(const PeerId&, const Error& why) override {
    std::lock_guard<std::mutex> lock(mutex);
    down_kind = why.kind;
    ++down;
  }

  std::mutex mutex;
  std::map<int, std::string> landing;
  std::map<int, uint64_t> last;
  std::map<uint64_t, std::string> chunks;
  bool in_order = true;
  uint64_t stamp = 0, control_round = 0;
  std::string control;
  ErrorKind down_kind{};
  std::atomic<int> up{0}, down{0}, sent{0};
};

EndpointOptions BulkOptions(uint8_t seed, bool encrypt, int streams = 3) {
  EndpointOptions options = Options(seed);
  options.encrypt_bulk = encrypt;
  options.bulk_streams = streams;
  return options;
}

void Want(Node& from, const PeerId& to) {
  from.endpoint.bulk().Post([&from, to] { from.endpoint.bulk().WantStreams(to); });
}

void SendAll(Node& from, const PeerId& to, const std::vector<std::string>& chunks) {
  from.endpoint.bulk().Post([&from, to, &chunks] {
    BulkTransport& bulk = from.endpoint.bulk();
    const int streams = bulk.Streams(to);
    CHECK(streams > 0);
    for (size_t i = 0; i < chunks.size(); ++i) {
      FrameHeader header{.type = FrameType::kChunk};
      header.length = static_cast<uint32_t>(chunks[i].size());
      header.sequence = i;
      bulk.Send(to, static_cast<int>(i) % streams, header, chunks[i].data(), i, 1);
    }
  });
}

void BothWays(bool encrypt_a, bool encrypt_b, bool acceptor_asks) {
  Node a(BulkOptions(1, encrypt_a, 3)), b(BulkOptions(2, encrypt_b, 5));
  Collector ca, cb;
  a.endpoint.SetBulkHandler(&ca);
  b.endpoint.SetBulkHandler(&cb);
  a.endpoint.SetStamp(4711, 2, 3);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  if (acceptor_asks) {
    Want(b, a.endpoint.id());
  } else {
    Want(a, b.endpoint.id());
  }
  CHECK(Eventually([&] { return ca.up == 3 && cb.up == 3; }));
  CHECK(a.endpoint.Stats(link.a).bulk_streams == 3);
  std::vector<std::string> chunks;
  for (const size_t size : {0, 1, 55, 56, 57, 1000, 16383, 16384, 16385, 100'000, 1 << 20,
                            (4 << 20) - 1, 4 << 20, 0, 3, 524'288, 524'289}) {
    chunks.push_back(Pattern(size, static_cast<uint32_t>(size)));
  }
  SendAll(a, b.endpoint.id(), chunks);
  SendAll(b, a.endpoint.id(), chunks);
  const int n = static_cast<int>(chunks.size());
  CHECK(Eventually([&] {
    std::scoped_lock lock(ca.mutex, cb.mutex);
    return ca.chunks.size() == chunks.size() && cb.chunks.size() == chunks.size() && ca.sent == n &&
           cb.sent == n;
  }));
  std::scoped_lock lock(ca.mutex, cb.mutex);
  for (size_t i = 0; i < chunks.size(); ++i) {
    CHECK(ca.chunks[i] == chunks[i]);
    CHECK(cb.chunks[i] == chunks[i]);
  }
  CHECK(ca.in_order && cb.in_order && cb.stamp == 4711);
  a.endpoint.SetBulkHandler(nullptr);
  b.endpoint.SetBulkHandler(nullptr);
}

struct BulkPair {
  Node a, b;
  Collector ca, cb;
  Pair link;
  explicit BulkPair(bool encrypt = true) : a(BulkOptions(1, encrypt)), b(BulkOptions(2, encrypt)) {
    a.endpoint.SetBulkHandler(&ca);
    b.endpoint.SetBulkHandler(&cb);
    link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  }
  ~BulkPair() {
    a.endpoint.SetBulkHandler(nullptr);
    b.endpoint.SetBulkHandler(nullptr);
  }
  void Open() {
    Want(a, b.endpoint.id());
    CHECK(Eventually([&] { return ca.up > 0 && cb.up > 0; }));
  }
};

}  // namespace

TEST(chunks_both_ways_under_tls) { BothWays(true, true, false); }
TEST(chunks_both_ways_in_the_clear) { BothWays(false, false, false); }
TEST(one_end_that_wants_encryption_gets_it) {
  BothWays(true, false, false);
  BothWays(false, true, false);
}
TEST(the_acceptor_may_ask_too) {
  BothWays(true, true, true);
  BothWays(false, false, true);
}

TEST(wanting_twice_answers_at_once) {
  BulkPair p;
  p.Open();
  p.ca.up = 0;
  Want(p.a, p.b.endpoint.id());
  CHECK(Eventually([&] { return p.ca.up == 3; }));
}

TEST(wanting_a_stranger_is_answered_by_down) {
  BulkPair p;
  PeerId nobody{};
  nobody.fill(9);
  Want(p.a, nobody);
  CHECK(Eventually([&] { return p.ca.down == 1; }));
}

TEST(control_frames_reach_the_handler) {
  BulkPair p;
  p.a.endpoint.bulk().Post([&] {
    FrameHeader header{.type = FrameType::kOpReady, .length = 5};
    header.round = 12;
    p.a.endpoint.bulk().SendControl(p.b.endpoint.id(), header, "ready");
  });
  CHECK(Eventually([&] {
    std::lock_guard<std::mutex> lock(p.cb.mutex);
    return p.cb.control == "ready" && p.cb.control_round == 12;
  }));
}

TEST(bulk_goes_down_with_the_link) {
  BulkPair p;
  p.Open();
  p.b.endpoint.Close(p.link.b, "enough");
  CHECK(Eventually([&] { return p.ca.down == 1 && p.cb.down == 1; }));
  const Event down = p.a.Wait(Type::kLinkDown);
  CHECK(down.error.kind == ErrorKind::kClosed);
  CHECK(down.error.text.find("enough") != std::string::npos);
  CHECK(p.ca.down_kind == ErrorKind::kClosed && p.cb.down_kind == ErrorKind::kAborted);
}

TEST(a_chunk_over_the_limit_ends_the_link) {
  EndpointOptions small = BulkOptions(2, true);
  small.max_chunk_bytes = 1000;
  Node a(BulkOptions(1, true)), b(small);
  Collector ca, cb;
  a.endpoint.SetBulkHandler(&ca);
  b.endpoint.SetBulkHandler(&cb);
  Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  Want(a, b.endpoint.id());
  CHECK(Eventually([&] { return ca.up > 0; }));
  const std::vector<std::string> chunks{std::string(1001, 'x')};
  SendAll(a, b.endpoint.id(), chunks);
  CHECK(b.Wait(Type::kLinkDown).error.kind == ErrorKind::kProtocol);
  a.Wait(Type::kLinkDown);
  CHECK(Eventually([&] { return ca.down == 1 && cb.down == 1; }));
  a.endpoint.SetBulkHandler(nullptr);
  b.endpoint.SetBulkHandler(nullptr);
}

TEST(without_a_handler_chunks_are_drained) {
  BulkPair p;
  p.Open();
  p.b.endpoint.SetBulkHandler(nullptr);
  const std::vector<std::string> chunks(20, Pattern(1 << 20, 1));
  SendAll(p.a, p.b.endpoint.id(), chunks);
  CHECK(Eventually([&] { return p.ca.sent == 20; }));
  p.a.endpoint.Send(p.link.a, "alive");
  CHECK(p.b.Wait(Type::kMessage).data == "alive");
}

TEST(detaching_in_the_middle_lets_go_of_the_memory) {
  for (const bool encrypt : {true, false}) {
    BulkPair p(encrypt);
    p.Open();
    {
      auto chunks = std::make_unique<std::vector<std::string>>(40, Pattern(1 << 20, 1));
      SendAll(p.a, p.b.endpoint.id(), *chunks);
      CHECK(Eventually([&] { return p.ca.sent > 2; }));
      p.b.endpoint.SetBulkHandler(nullptr);
      p.a.endpoint.SetBulkHandler(nullptr);
    }
    // The streams are still in step: frames after it arrive.
    Collector fresh;
    p.b.endpoint.SetBulkHandler(&fresh);
    p.a.endpoint.SetBulkHandler(&p.ca);
    const std::vector<std::string> after(3, Pattern(300'000, 5));
    const int sent = p.ca.sent;
    SendAll(p.a, p.b.endpoint.id(), after);
    CHECK(Eventually([&] { return p.ca.sent == sent + 3; }));
    CHECK(Eventually([&] {
      std::lock_guard<std::mutex> lock(fresh.mutex);
      return fresh.chunks.count(0) && fresh.chunks[0] == after[0] && fresh.chunks[1] == after[1] &&
             fresh.chunks[2] == after[2];
    }));
    p.b.endpoint.SetBulkHandler(nullptr);
  }
}

TEST(blobs_of_many_sizes) {
  BulkPair p;
  std::vector<std::string> sent, got;
  for (const size_t size : {0, 1, 262'143, 262'144, 262'145, 3'000'000, 20'000'000}) {
    sent.push_back(Pattern(size, static_cast<uint32_t>(size)));
    got.emplace_back(size, '\0');
  }
  std::atomic<size_t> done{0};
  for (size_t i = 0; i < sent.size(); ++i) {
    p.b.endpoint.PostBlob(p.link.b, 100 + i, reinterpret_cast<uint8_t*>(got[i].data()),
                          got[i].size());
  }
  p.b.endpoint.CancelBlob(999'999);  // also: all posts above have been taken
  for (size_t i = 0; i < sent.size(); ++i) {
    p.a.endpoint.SendBlob(p.link.a, 100 + i, reinterpret_cast<const uint8_t*>(sent[i].data()),
                          sent[i].size(), [&] { ++done; });
  }
  for (size_t i = 0; i < sent.size(); ++i) {
    const Event event = p.b.Wait(Type::kBlob);
    CHECK(event.seq >= 100 && event.seq < 100 + sent.size());
    CHECK(got[event.seq - 100] == sent[event.seq - 100]);
  }
  CHECK(Eventually([&] { return done == sent.size(); }));
}

TEST(a_blob_nobody_posted_is_forgotten) {
  BulkPair p;
  const std::string blob = Pattern(5'000'000, 1);
  std::atomic<bool> done{false};
  p.a.endpoint.SendBlob(p.link.a, 1, reinterpret_cast<const uint8_t*>(blob.data()), blob.size(),
                        [&] { done = true; });
  CHECK(Eventually([&] { return done.load(); }));
}

TEST(a_blob_of_another_size_fails) {
  BulkPair p;
  const std::string blob = Pattern(500'000, 1);
  std::string into(400'000, 'u');
  p.b.endpoint.PostBlob(p.link.b, 1, reinterpret_cast<uint8_t*>(into.data()), into.size());
  p.b.endpoint.CancelBlob(2);
  std::atomic<bool> done{false};
  p.a.endpoint.SendBlob(p.link.a, 1, reinterpret_cast<const uint8_t*>(blob.data()), blob.size(),
                        [&] { done = true; });
  CHECK(p.b.Wait(Type::kBlobFailed).error.kind == ErrorKind::kMismatch);
  CHECK(into == std::string(400'000, 'u'));
  CHECK(Eventually([&] { return done.load(); }));
}

TEST(cancelling_a_receipt_frees_its_buffer) {
  for (const bool encrypt : {true, false}) {
    BulkPair p(encrypt);
    const std::string blob = Pattern(64 << 20, 1);
    auto into = std::make_unique<std::string>(blob.size(), '\0');
    p.b.endpoint.PostBlob(p.link.b, 1, reinterpret_cast<uint8_t*>(into->data()), into->size());
    std::atomic<bool> done{false};
    p.a.endpoint.SendBlob(p.link.a, 1, reinterpret_cast<const uint8_t*>(blob.data()), blob.size(),
                          [&] { done = true; });
    CHECK(Eventually([&] { return p.b.endpoint.Stats(p.link.b).bulk_bytes_received > 2 << 20; }));
    p.b.endpoint.CancelBlob(1);
    into.reset();  // under ASan a late write would show
    CHECK(p.b.Wait(Type::kBlobFailed).error.kind == ErrorKind::kAborted);
    CHECK(Eventually([&] { return done.load(); }));
  }
}

TEST(cancelling_a_sending_frees_its_memory_and_tells_the_receiver) {
  for (const bool encrypt : {true, false}) {
    BulkPair p(encrypt);
    auto blob = std::make_unique<std::string>(Pattern(64 << 20, 1));
    std::string into(blob->size(), '\0');
    p.b.endpoint.PostBlob(p.link.b, 1, reinterpret_cast<uint8_t*>(into.data()), into.size());
    std::atomic<bool> done{false};
    p.a.endpoint.SendBlob(p.link.a, 1, reinterpret_cast<const uint8_t*>(blob->data()), blob->size(),
                          [&] { done = true; });
    CHECK(Eventually([&] { return p.b.endpoint.Stats(p.link.b).bulk_bytes_received > 2 << 20; }));
    p.a.endpoint.CancelBlob(1);
    CHECK(done);
    blob.reset();
    CHECK(p.b.Wait(Type::kBlobFailed).error.kind == ErrorKind::kAborted);
    p.a.endpoint.Send(p.link.a, "alive");
    CHECK(p.b.Wait(Type::kMessage).data == "alive");
  }
}

TEST(a_dying_link_gives_all_memory_back) {
  BulkPair p;
  const std::string blob = Pattern(64 << 20, 1);
  std::string into(blob.size(), '\0');
  p.b.endpoint.PostBlob(p.link.b, 1, reinterpret_cast<uint8_t*>(into.data()), into.size());
  std::atomic<bool> done{false};
  p.a.endpoint.SendBlob(p.link.a, 1, reinterpret_cast<const uint8_t*>(blob.data()), blob.size(),
                        [&] { done = true; });
  CHECK(Eventually([&] { return p.b.endpoint.Stats(p.link.b).bulk_bytes_received > 1 << 20; }));
  p.b.endpoint.Close(p.link.b, "enough");
  CHECK(p.b.Wait(Type::kBlobFailed).seq == 1);
  CHECK(Eventually([&] { return done.load(); }));
}

TEST(many_bulk_cycles_leak_no_descriptor) {
  Node b(BulkOptions(2, true));
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  Collector cb;
  b.endpoint.SetBulkHandler(&cb);
  const int before = OpenFds() + kCarrierThreadFds;
  for (int i = 0; i < 15; ++i) {
    Node a(BulkOptions(1, true));
    Collector ca;
    a.endpoint.SetBulkHandler(&ca);
    Connect(a, b, port);
    Want(a, b.endpoint.id());
    CHECK(Eventually([&] { return ca.up > 0; }));
    a.endpoint.SetBulkHandler(nullptr);
  }
  CHECK(Eventually([&] { return OpenFds() <= before; }));
  b.endpoint.SetBulkHandler(nullptr);
}

TEST_MAIN()
