// Throughput of codecs, the tree hash and the outer optimizer on one core:
//   build/native/bench/codec_bench [MiB]
// GB/s of fp32 values (or hashed bytes). A second column works in pieces that stay in cache, as the
// engine does; the first streams through memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "collective/codec.h"
#include "core/hash.h"
#include "optim/outer.h"

using namespace decentral;

namespace {

double Seconds(const std::function<void()>& work) {
  double best = 1e9;
  for (int run = 0; run < 7; ++run) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

// work(first, count) over all values: at once, and 4096 at a time within 64 Ki values.
void Report(const char* what, size_t count, const std::function<void(size_t, size_t)>& work) {
  const double streamed = Seconds([&] { work(0, count); });
  constexpr size_t kHot = 64 << 10, kPiece = 4096;
  const size_t rounds = std::max<size_t>(1, count / kHot);
  const double cached = Seconds([&] {
    for (size_t r = 0; r < rounds; ++r) {
      for (size_t at = 0; at < std::min(count, kHot); at += kPiece) work(at, kPiece);
    }
  });
  const double gigabytes = static_cast<double>(count) * sizeof(float) / 1e9;
  const double hot = static_cast<double>(rounds * std::min(count, kHot)) * sizeof(float) / 1e9;
  std::printf("%-24s %7.2f GB/s   in cache %7.2f GB/s\n", what, gigabytes / streamed, hot / cached);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 64) << 18;
  std::vector<float> x(count), y(count), z(count), w(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = static_cast<float>(i % 1009) - 504.5f;
    y[i] = static_cast<float>(i % 257) * 0.01f;
  }
  const struct {
    Codec codec;
    const char* name;
  } codecs[] = {{Codec::kFp32, "fp32"}, {Codec::kBf16, "bf16"}, {Codec::kInt8, "int8"}};
  for (const auto& [codec, name] : codecs) {
    std::vector<uint8_t> wire(EncodedSize(codec, count));
    char what[64];
    const auto at = [&](size_t first) { return wire.data() + EncodedSize(codec, first); };
    std::snprintf(what, sizeof(what), "%s encode, weight .5", name);
    Report(what, count, [&](size_t i, size_t n) { Encode(codec, &x[i], n, 0.5f, at(i)); });
    std::snprintf(what, sizeof(what), "%s decode", name);
    Report(what, count, [&](size_t i, size_t n) { Decode(codec, at(i), n, &z[i]); });
    std::snprintf(what, sizeof(what), "%s decode-add", name);
    Report(what, count,
           [&](size_t i, size_t n) { DecodeAdd(codec, at(i), n, &y[i], 1.0f, &z[i]); });
    std::snprintf(what, sizeof(what), "%s decode-add in place", name);
    Report(what, count,
           [&](size_t i, size_t n) { DecodeAdd(codec, at(i), n, &z[i], 1.0f, &z[i]); });
  }
  Report("nesterov, in place", count, [&](size_t i, size_t n) {
    OuterNesterov(&y[i], &w[i], &x[i], 0.7f, 0.9f, n, &y[i], &w[i]);
  });
  Report("subtract", count, [&](size_t i, size_t n) { Subtract(&x[i], &y[i], n, &z[i]); });
  volatile double sink = 0;
  Report("all finite", count, [&](size_t i, size_t n) { sink = AllFinite(&x[i], n); });
  Report("norm", count, [&](size_t i, size_t n) { sink = Norm(&x[i], n); });
  Report("tree hash, 2 threads", count, [&](size_t i, size_t n) {
    sink = LeafHashes(reinterpret_cast<const uint8_t*>(&x[i]), n * sizeof(float))[0][0];
  });
}
