// Hundreds of all-reduces among four real endpoints, most of which end badly: somebody calls them
// off, a link is closed, a peer goes and comes back, at random instants and from any thread.
//   build/native/tests/abort_churn_test [seconds, default 6] [seed, default: random]
#include <dirent.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "collective/engine.h"
#include "plans.h"
#include "reference.h"
#include "tests/endpoint_helper.h"

namespace decentral::test {
namespace {

constexpr int kPeers = 4;
constexpr uint64_t kMaxCount = 300'000;

int Threads() {
  int count = 0;
  DIR* dir = opendir("/proc/self/task");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

struct Peer {
  std::unique_ptr<Node> node;
  std::unique_ptr<Engine> engine;
  uint16_t port = 0;
  LinkId links[kPeers] = {};
};

// What one all-reduce does; `ops` and `dst` by rank.
struct Operation {
  std::vector<OpSpec> specs;
  std::vector<std::vector<float>> dst;
  std::vector<std::shared_ptr<Op>> ops;
};

class Churn {
 public:
  explicit Churn(uint64_t seed) : random_(seed) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < kPeers; ++i) {
      src_.emplace_back(kMaxCount);
      for (float& x : src_.back()) x = normal(random_);
    }
    original_ = src_;
    for (int i = 0; i < kPeers; ++i) Arrive(i);
  }
  ~Churn() {
    for (int i = 0; i < kPeers; ++i) Leave(i);
  }

  void Arrive(int i) {
    Peer& peer = peers_[i];
    EndpointOptions options = Options(static_cast<uint8_t>(i + 1));
    options.encrypt_bulk = i % 2 == 0;  // between two that do not mind, bytes go in the clear
    options.bulk_streams = 1 + i % 3;
    peer.node = std::make_unique<Node>(options);
    Endpoint& endpoint = peer.node->endpoint;
    peer.engine = Engine::Create(endpoint.bulk(), endpoint.id());
    endpoint.SetBulkHandler(peer.engine.get());
    peer.port = endpoint.Listen("127.0.0.1", 0);
    for (int k = 0; k < kPeers; ++k) {
      if (k != i && peers_[k].node) Link(k, i);
    }
  }
  void Leave(int i) {
    Peer& peer = peers_[i];
    peer.engine->Close();
    peer.node->endpoint.SetBulkHandler(nullptr);
    peer.engine.reset();
    peer.node.reset();
  }
  // The lower one dials: its number of streams counts.
  void Link(int one, int other) {
    const int from = std::min(one, other), to = std::max(one, other);
    const Pair pair = Connect(*peers_[from].node, *peers_[to].node, peers_[to].port);
    peers_[from].links[to] = pair.a;
    peers_[to].links[from] = pair.b;
  }

  Operation Start(uint64_t round, uint32_t tag, bool plain_and_whole = false) {
    constexpr Codec kCodecs[] = {Codec::kFp32, Codec::kFp32, Codec::kBf16,
                                 Codec::kInt8, Codec::kInt4, Codec::kSign};
    const Codec codec = plain_and_whole ? Codec::kFp32 : kCodecs[random_() % std::size(kCodecs)];
    const uint64_t which = InfoOf(codec).rides_ring && !plain_and_whole ? random_() % 3 : 0;
    const auto planner = which == 0 ? Butterfly : which == 1 ? Ring : Tree;
    const uint64_t count = plain_and_whole ? kMaxCount : random_() % kMaxCount;
    Operation made;
    for (uint32_t i = 0; i < kPeers; ++i) {
      const Plan plan = planner(kPeers, i, count);
      OpSpec spec;
      for (const Peer& peer : peers_) spec.members.push_back(peer.node->endpoint.id());
      spec.rank = i;
      spec.count = count;
      spec.codec = codec;
      spec.final_codec = InfoOf(codec).final;
      spec.segments = plan.segments;
      spec.steps = plan.steps;
      spec.scale = 0.25f;
      spec.round = round;
      spec.tag = tag;
      spec.chunk_bytes = 4096u << random_() % 6;
      made.specs.push_back(spec);
      made.dst.emplace_back(count);
    }
    for (uint32_t i = 0; i < kPeers; ++i) {
      made.ops.push_back(
          peers_[i].engine->Start(made.specs[i], src_[i].data(), made.dst[i].data()));
    }
    return made;
  }

  void Pause() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(random_() % 4000);
    while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }

  // One round: operations, and what happens to them.
  void Round(uint64_t round) {
    std::vector<Operation> running;
    for (uint32_t tag = 0; tag < 1 + random_() % 3; ++tag) running.push_back(Start(round, tag));
    Operation& first = running[0];
    Pause();
    const int who = static_cast<int>(random_() % kPeers);
    const int other = static_cast<int>((who + 1 + random_() % (kPeers - 1)) % kPeers);
    const uint64_t what = random_() % 16;
    if (what < 7) {  // called off, maybe by two at once, and by both of one peer's threads
      std::thread rival([&] { first.ops[other]->Abort("enough"); });
      first.ops[who]->Abort("enough");
      rival.join();
    } else if (what < 11) {
      peers_[who].node->endpoint.Close(peers_[who].links[other], "enough");
    } else if (what < 13) {
      Leave(who);
    }
    for (Operation& operation : running) Finish(operation);
    if (what >= 7 && what < 11) {
      for (const int end : {who, other}) peers_[end].node->Wait(Event::Type::kLinkDown);
      Link(who, other);
    } else if (what >= 11 && what < 13) {
      for (int i = 0; i < kPeers; ++i) {
        if (i != who) peers_[i].node->Wait(Event::Type::kLinkDown);
      }
      Arrive(who);
    }
  }

  void Finish(Operation& operation) {
    bool complete = true;
    for (auto& op : operation.ops) {
      CHECK(op->Wait(60));
      ++operations_;
      const Error error = op->error();
      if (!error) continue;
      complete = false;
      ++failed_;
      const bool expected = error.kind == ErrorKind::kAborted || error.kind == ErrorKind::kClosed;
      if (!expected) std::fprintf(stderr, "%s\n", error.text.c_str());
      CHECK(expected && !error.phase.empty() && error.peer != PeerId{});
    }
    for (int i = 0; i < kPeers; ++i) CHECK(src_[i] == original_[i]);
    if (!complete) return;
    const auto expected = Execute(operation.specs, original_);
    for (int i = 0; i < kPeers; ++i) CHECK(operation.dst[i] == expected[i]);
  }

  // All links with all their streams are up.
  void Settle(uint64_t round) {
    Operation operation = Start(round, 0, true);
    Finish(operation);
    for (auto& op : operation.ops) CHECK(!op->error());
  }

  int operations() const { return operations_; }
  int failed() const { return failed_; }

 private:
  std::mt19937_64 random_;
  Peer peers_[kPeers];
  std::vector<std::vector<float>> src_, original_;
  int operations_ = 0, failed_ = 0;
};

int Run(double seconds, uint64_t seed) {
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  Churn churn(seed);
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  uint64_t round = 0;
  for (int i = 0; i < 20; ++i) churn.Round(++round);
  churn.Settle(++round);
  const int threads = Threads(), fds = OpenFds();
  while (passed() < seconds) churn.Round(++round);
  churn.Settle(++round);
  // Closed sockets may linger for a moment.
  const bool flat = Eventually([&] { return Threads() <= threads && OpenFds() <= fds; });
  std::printf("%llu rounds, %d operations of members, %d failed, %d -> %d threads, %d -> %d fds\n",
              static_cast<unsigned long long>(round), churn.operations(), churn.failed(), threads,
              Threads(), fds, OpenFds());
  CHECK(flat);
  CHECK(churn.failed() > 0 && churn.failed() < churn.operations());
  return 0;
}

}  // namespace
}  // namespace decentral::test

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 6;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  return decentral::test::Run(seconds, seed);
}
