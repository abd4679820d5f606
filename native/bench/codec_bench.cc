// Throughput of codecs, the tree hash and the outer optimizer on one core:
//   build/native/bench/codec_bench [MiB]
// GB/s of fp32 values (or hashed bytes). The first column streams through memory; the second works
// in pieces that stay in cache, as the engine does; the third is what the first reads and writes,
// against what this core copies.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "collective/codec.h"
#include "collective/topk.h"
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

// What one core moves, counted like STREAM (bytes read plus bytes written): its copy loop, which
// the fractions below refer to; memcpy, which may bypass the cache; and reading alone.
struct Bandwidth {
  double copy, library, read;
};

Bandwidth MeasureMemory(size_t count) {
  std::vector<float> from(count, 1.0f), to(count);
  volatile float sink = 0;
  const double bytes = static_cast<double>(count) * sizeof(float) / 1e9;
  const auto best = [&](double moved, const auto& work) {
    return moved / Seconds([&] {
             work();
             sink = to[count / 2];
           });
  };
  return {.copy = best(2 * bytes,
                       [&] {  // with a factor, or it would be memcpy
                         Encode(Codec::kFp32, from.data(), count, 1.5f,
                                reinterpret_cast<uint8_t*>(to.data()));
                       }),
          .library =
              best(2 * bytes, [&] { std::memcpy(to.data(), from.data(), count * sizeof(float)); }),
          .read = best(bytes, [&] {
            uint32_t all = 0;
            for (size_t i = 0; i < count; ++i) all |= std::bit_cast<uint32_t>(from[i]);
            to[count / 2] = static_cast<float>(all);
          })};
}

// work(first, count) over all values: at once, and 4096 at a time within 64 Ki values. `moved`:
// bytes that are read and written for each value; 0: not a matter of memory.
void Report(const char* what, size_t count, double moved, double copy,
            const std::function<void(size_t, size_t)>& work) {
  const double streamed = Seconds([&] { work(0, count); });
  constexpr size_t kHot = 64 << 10, kPiece = 4096;
  const size_t rounds = std::max<size_t>(1, count / kHot);
  const double cached = Seconds([&] {
    for (size_t r = 0; r < rounds; ++r) {
      for (size_t at = 0; at < std::min(count, kHot); at += kPiece) work(at, kPiece);
    }
  });
  const double values = static_cast<double>(count) / 1e9;
  const double hot = static_cast<double>(rounds * std::min(count, kHot)) * sizeof(float) / 1e9;
  std::printf("%-24s %7.2f GB/s   in cache %7.2f GB/s", what, values * sizeof(float) / streamed,
              hot / cached);
  if (moved > 0) std::printf("   %4.2f of copy", values * moved / streamed / copy);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const size_t count = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 64) << 18;
  std::vector<float> x(count), y(count), z(count), w(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = static_cast<float>(i % 1009) - 504.5f;
    y[i] = static_cast<float>(i % 257) * 0.01f;
  }
  const Bandwidth memory = MeasureMemory(count);
  const double copy = memory.copy;
  std::printf("copy %.2f GB/s (memcpy %.2f), read and written; reading alone %.2f GB/s\n", copy,
              memory.library, memory.read);
  for (uint32_t id = 0; InfoOf(id) != nullptr; ++id) {
    const auto codec = static_cast<Codec>(id);
    std::vector<uint8_t> wire(EncodedSize(codec, count));
    const double packed = static_cast<double>(wire.size()) / static_cast<double>(count);
    const auto at = [&](size_t first) { return wire.data() + EncodedSize(codec, first); };
    const auto report = [&](const char* what, double moved, const auto& work) {
      Report((InfoOf(codec).name + std::string(what)).c_str(), count, moved, copy, work);
    };
    report(" encode", 4 + packed,
           [&](size_t i, size_t n) { Encode(codec, &x[i], n, 1.0f, at(i)); });
    report(" encode, weight .5", 4 + packed,
           [&](size_t i, size_t n) { Encode(codec, &x[i], n, 0.5f, at(i)); });
    report(" decode", 4 + packed, [&](size_t i, size_t n) { Decode(codec, at(i), n, &z[i]); });
    report(" decode-add", 8 + packed,
           [&](size_t i, size_t n) { DecodeAdd(codec, at(i), n, &y[i], 1.0f, &z[i]); });
    report(" decode-add in place", 8 + packed,
           [&](size_t i, size_t n) { DecodeAdd(codec, at(i), n, &z[i], 1.0f, &z[i]); });
  }
  const auto report = [&](const char* what, double moved, const auto& work) {
    Report(what, count, moved, copy, work);
  };
  {
    constexpr uint32_t kSurvivors = 64;
    std::vector<uint8_t> wire(TopkEncodedSize(count, kSurvivors));
    for (size_t i = 0; i < count; ++i) {  // not sorted, not equal
      z[i] = static_cast<float>(static_cast<uint32_t>(i) * 2654435761u >> 8) - 8388607.5f;
    }
    const auto at = [&](size_t first) { return wire.data() + TopkEncodedSize(first, kSurvivors); };
    report("top-64 encode", 4,
           [&](size_t i, size_t n) { TopkEncode(&z[i], n, kSurvivors, at(i)); });
    report("top-64 decode-add", 0, [&](size_t i, size_t n) {
      TopkDecodeAdd(at(i), TopkEncodedSize(n, kSurvivors), kSurvivors, 1.0f, &y[i], n);
    });
  }
  report("nesterov, in place", 20, [&](size_t i, size_t n) {
    OuterNesterov(&y[i], &w[i], &x[i], 0.7f, 0.9f, n, &y[i], &w[i]);
  });
  report("subtract", 12, [&](size_t i, size_t n) { Subtract(&x[i], &y[i], n, &z[i]); });
  volatile double sink = 0;
  report("all finite", 4, [&](size_t i, size_t n) { sink = AllFinite(&x[i], n); });
  report("norm", 4, [&](size_t i, size_t n) { sink = Norm(&x[i], n); });
  report("tree hash, 2 threads", 0, [&](size_t i, size_t n) {
    sink = LeafHashes(reinterpret_cast<const uint8_t*>(&x[i]), n * sizeof(float))[0][0];
  });
}
