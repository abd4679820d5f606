// All-reduce among processes over loopback:
//   build/native/bench/allreduce_bench [peers] [MiB] [codec] [plain|tls] [streams] [chunk KiB]
//   [runs]
// Prints algorithm bandwidth (buffer size over time, median of the slowest rank) and CPU seconds
// of all processes per GiB on the wire.
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "collective/engine.h"
#include "link/endpoint.h"
#include "tests/plans.h"

using namespace decentral;

namespace {

constexpr int kMaxPeers = 32;
constexpr int kMaxRuns = 64;

// What the processes share: addresses, a barrier, results.
struct Board {
  std::atomic<int> arrived[kMaxRuns + 4];
  PeerId ids[kMaxPeers];
  uint16_t ports[kMaxPeers];
  double seconds[kMaxPeers][kMaxRuns];
  double cpu[kMaxPeers];
  uint64_t bytes_sent[kMaxPeers];
  void Barrier(int which, int n) {
    ++arrived[which];
    while (arrived[which] < n) usleep(200);
  }
};

struct Options {
  int peers = 2;
  uint64_t count = 16 << 20;
  Codec codec = Codec::kFp32;
  bool tls = false;
  int streams = 2;
  uint32_t chunk_bytes = 512 << 10;
  int runs = 9;
};

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

void Connect(Endpoint& endpoint, const Board& board, int rank, int peers) {
  for (int k = 0; k < rank; ++k) endpoint.Dial({.host = "127.0.0.1", .port = board.ports[k]});
  for (int links = 0; links < peers - 1;) {
    pollfd waiter{endpoint.event_fd(), POLLIN, 0};
    poll(&waiter, 1, 100);
    for (const Event& event : endpoint.TakeEvents()) {
      if (event.type != Event::Type::kLinkUp) continue;
      endpoint.Admit(event.link);
      ++links;
    }
  }
}

void RunPeer(const Options& o, Board& board, int rank) {
  EndpointOptions options;
  options.seed.fill(static_cast<uint8_t>(rank + 1));
  options.bulk_streams = o.streams;
  options.encrypt_bulk = o.tls;
  Endpoint endpoint(options);
  auto engine = Engine::Create(endpoint.bulk(), endpoint.id());
  endpoint.SetBulkHandler(engine.get());
  board.ids[rank] = endpoint.id();
  board.ports[rank] = endpoint.Listen("127.0.0.1", 0);
  board.Barrier(0, o.peers);
  Connect(endpoint, board, rank, o.peers);

  std::vector<float> src(o.count), dst(o.count);
  for (uint64_t i = 0; i < o.count; ++i) src[i] = static_cast<float>((i + rank) % 1000);
  const auto plan =
      test::Ring(static_cast<uint32_t>(o.peers), static_cast<uint32_t>(rank), o.count);
  OpSpec spec;
  spec.members.assign(board.ids, board.ids + o.peers);
  spec.rank = static_cast<uint32_t>(rank);
  spec.count = o.count;
  spec.codec = o.codec;
  spec.segments = plan.segments;
  spec.steps = plan.steps;
  spec.chunk_bytes = o.chunk_bytes;
  for (int run = -1; run < o.runs; ++run) {  // the first one warms up
    spec.round = static_cast<uint64_t>(run + 1);
    board.Barrier(run + 2, o.peers);
    const double cpu = CpuSeconds();
    auto op = engine->Start(spec, src.data(), dst.data());
    op->Wait(-1);
    if (op->error()) {
      std::fprintf(stderr, "rank %d: %s\n", rank, op->error().text.c_str());
      std::_Exit(1);
    }
    if (run < 0) continue;
    board.seconds[rank][run] = op->stats().seconds;
    board.cpu[rank] += CpuSeconds() - cpu;
    board.bytes_sent[rank] += op->stats().bytes_sent;
  }
  board.Barrier(o.runs + 2, o.peers);
  engine->Close();
  endpoint.SetBulkHandler(nullptr);
}

Options Parse(int argc, char** argv) {
  Options o;
  if (argc > 1) o.peers = std::clamp(std::atoi(argv[1]), 1, kMaxPeers);
  if (argc > 2) o.count = std::strtoull(argv[2], nullptr, 10) << 18;
  if (argc > 3) {
    const std::string codec = argv[3];
    o.codec = codec == "int8" ? Codec::kInt8 : codec == "bf16" ? Codec::kBf16 : Codec::kFp32;
  }
  if (argc > 4) o.tls = std::strcmp(argv[4], "tls") == 0;
  if (argc > 5) o.streams = std::atoi(argv[5]);
  if (argc > 6) o.chunk_bytes = static_cast<uint32_t>(std::atoi(argv[6])) << 10;
  if (argc > 7) o.runs = std::clamp(std::atoi(argv[7]), 1, kMaxRuns);
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  void* shared =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* board = new (shared) Board();
  for (int rank = 0; rank < o.peers; ++rank) {
    if (fork() == 0) {
      RunPeer(o, *board, rank);
      std::_Exit(0);
    }
  }
  for (int rank = 0, status = 0; rank < o.peers; ++rank) {
    wait(&status);
    if (status != 0) return 1;
  }
  std::vector<double> seconds;
  double cpu = 0, bytes = 0;
  for (int run = 0; run < o.runs; ++run) {
    double slowest = 0;
    for (int rank = 0; rank < o.peers; ++rank)
      slowest = std::max(slowest, board->seconds[rank][run]);
    seconds.push_back(slowest);
  }
  for (int rank = 0; rank < o.peers; ++rank) {
    cpu += board->cpu[rank];
    bytes += static_cast<double>(board->bytes_sent[rank]);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double gib = static_cast<double>(o.count) * 4 / (1 << 30);
  std::printf(
      "%d peers, %.0f MiB, codec %d, %s, %d streams, %u KiB chunks: %.1f ms (best %.1f), "
      "%.2f GiB/s, %.2f CPU-s per GiB on the wire\n",
      o.peers, gib * 1024, static_cast<int>(o.codec), o.tls ? "TLS" : "plain", o.streams,
      o.chunk_bytes >> 10, median * 1e3, seconds[0] * 1e3, gib / median, cpu / (bytes / (1 << 30)));
}
