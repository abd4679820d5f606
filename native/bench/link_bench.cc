// Bulk streams against a bare TCP loop, over loopback:
//   build/native/bench/link_bench [MiB] [streams]
// Prints MiB/s and CPU seconds per GiB (all ends) of the bare loop, of bulk streams plain, under
// TLS, on a carrier, and on a carrier through a relay, and the ratios to the bare loop of the same
// run.
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "link/endpoint.h"

using namespace decentral;

namespace {

constexpr size_t kChunk = 512 << 10;

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  return use.ru_utime.tv_sec + use.ru_stime.tv_sec +
         1e-6 * (use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

struct Figure {
  double mib_per_s, cpu_s_per_gib;
};

template <typename F>
Figure Measure(size_t bytes, F transfer) {
  const double cpu = CpuSeconds();
  const auto start = std::chrono::steady_clock::now();
  transfer();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {bytes / seconds / (1 << 20), (CpuSeconds() - cpu) * (1 << 30) / bytes};
}

// One blocking connection, one thread at each end: what the kernel alone can do.
Figure Bare(size_t bytes, std::vector<char>& from, std::vector<char>& to) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at);
  listen(listener, 1);
  getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size);
  const int out = socket(AF_INET, SOCK_STREAM, 0);
  connect(out, reinterpret_cast<sockaddr*>(&at), sizeof at);
  const int in = accept(listener, nullptr, nullptr);
  const Figure figure = Measure(bytes, [&] {
    std::thread sender([&] {
      for (size_t sent = 0; sent < bytes;) {
        const ssize_t n = send(out, from.data() + sent % from.size(),
                               std::min(kChunk, bytes - sent), MSG_NOSIGNAL);
        if (n <= 0) std::abort();
        sent += n;
      }
    });
    for (size_t got = 0; got < bytes;) {
      const ssize_t n = recv(in, to.data(), kChunk, 0);
      if (n <= 0) std::abort();
      got += n;
    }
    sender.join();
  });
  close(in);
  close(out);
  close(listener);
  return figure;
}

class Sink : public BulkHandler {
 public:
  explicit Sink(std::vector<char>* to) : to_(to) {}
  uint8_t* OnHeader(const PeerId&, int stream, const FrameHeader&) override {
    return reinterpret_cast<uint8_t*>(to_->data()) + stream * kChunk;
  }
  void OnPayload(const PeerId&, int, const FrameHeader& header) override { Add(header.length); }
  void OnSent(const PeerId&, int, uint64_t) override {}
  void OnControl(const PeerId&, const FrameHeader&, const uint8_t*) override {}
  void OnBulkUp(const PeerId&, int) override { Add(1); }
  void OnBulkDown(const PeerId&, const Error&) override { std::abort(); }
  void WaitFor(size_t amount) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return got_ >= amount; });
    got_ = 0;
  }

 private:
  void Add(size_t amount) {
    std::lock_guard<std::mutex> lock(mutex_);
    got_ += amount;
    changed_.notify_one();
  }
  std::vector<char>* to_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t got_ = 0;  // guarded by mutex_
};

Event WaitFor(Endpoint& endpoint, Event::Type type) {
  while (true) {
    for (auto& event : endpoint.TakeEvents()) {
      if (event.type == type) return event;
    }
    pollfd waiter{endpoint.event_fd(), POLLIN, 0};
    poll(&waiter, 1, 100);
  }
}

enum class Way { kPlain, kTls, kCarrier, kRelay };

Figure Bulk(size_t bytes, int streams, Way way, std::vector<char>& from, std::vector<char>& to) {
  EndpointOptions options;
  options.encrypt_bulk = way != Way::kPlain;
  options.bulk_streams = streams;
  options.seed.fill(1);
  Endpoint a(options);
  options.seed.fill(2);
  Endpoint b(options);
  Sink sink_a(&to), sink_b(&to);
  a.SetBulkHandler(&sink_a);
  b.SetBulkHandler(&sink_b);
  options.seed.fill(3);
  Endpoint relay(options);
  DialOptions dial{.host = "127.0.0.1", .port = b.Listen("127.0.0.1", 0)};
  dial.carrier = way == Way::kCarrier || way == Way::kRelay;
  if (way == Way::kRelay) {
    dial.port = relay.Listen("127.0.0.1", 0);
    dial.relay_token = std::string(32, 't');
    relay.OfferRelay(dial.relay_token, 0, 5000);
    DialOptions back = dial;
    back.relay_side = 1;
    back.role = Role::kServer;
    back.has_expected = true;
    back.expected = a.id();
    b.Dial(back);
  }
  a.Dial(dial);
  const LinkId link_a = WaitFor(a, Event::Type::kLinkUp).link;
  b.Admit(WaitFor(b, Event::Type::kLinkUp).link);
  a.Admit(link_a);
  a.bulk().Post([&] { a.bulk().WantStreams(b.id()); });
  sink_a.WaitFor(1);
  sink_b.WaitFor(1);
  const Figure figure = Measure(bytes, [&] {
    a.bulk().Post([&] {
      for (size_t at = 0, i = 0; at < bytes; at += kChunk, ++i) {
        FrameHeader header{.type = FrameType::kChunk};
        header.length = static_cast<uint32_t>(std::min(kChunk, bytes - at));
        header.sequence = i;
        a.bulk().Send(b.id(), static_cast<int>(i) % streams, header, from.data() + at % from.size(),
                      i, 1);
      }
    });
    sink_b.WaitFor(bytes);
  });
  a.SetBulkHandler(nullptr);
  b.SetBulkHandler(nullptr);
  return figure;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const size_t bytes = size_t(argc > 1 ? std::atoi(argv[1]) : 256) << 20;
  const int streams = argc > 2 ? std::atoi(argv[2]) : 2;
  std::vector<char> from(std::min<size_t>(bytes, 64 << 20), 'x'), to(streams * kChunk);
  constexpr int kKinds = 5;
  std::vector<double> mib[kKinds], cpu[kKinds];
  const char* names[kKinds] = {"bare TCP", "bulk plain", "bulk TLS", "on carrier", "relayed"};
  for (int run = 0; run < 5; ++run) {
    const Figure figures[kKinds] = {
        Bare(bytes, from, to), Bulk(bytes, streams, Way::kPlain, from, to),
        Bulk(bytes, streams, Way::kTls, from, to), Bulk(bytes, streams, Way::kCarrier, from, to),
        Bulk(bytes, streams, Way::kRelay, from, to)};
    for (int i = 0; i < kKinds; ++i) {
      mib[i].push_back(figures[i].mib_per_s);
      cpu[i].push_back(figures[i].cpu_s_per_gib);
    }
  }
  for (int i = 0; i < kKinds; ++i) {
    std::printf("%-10s %7.0f MiB/s  %.2f CPU-s per GiB  ratio %.2f\n", names[i], Median(mib[i]),
                Median(cpu[i]), Median(mib[i]) / Median(mib[0]));
  }
}
