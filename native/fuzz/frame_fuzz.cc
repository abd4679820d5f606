// Throws bytes at everything that parses the wire before a peer is trusted: the frame header and
// the control stream's reader.
//   clang++ -std=c++20 -fsanitize=fuzzer,address -DDECENTRAL_LIBFUZZER -Inative
//     native/fuzz/frame_fuzz.cc native/wire/frame.cc native/link/control_reader.cc
// Without libFuzzer it mutates valid frames by itself: frame_fuzz [runs] [seed].
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "link/control_reader.h"
#include "wire/frame.h"

using namespace decentral;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint32_t kMaxMessage = 64 << 10;
  if (size == 0) return 0;
  // The first byte says how the rest is cut, so that every boundary is tried.
  const size_t step = 1 + data[0];
  ControlReader reader(kMaxMessage);
  size_t delivered = 0;
  for (size_t at = 1; at < size; at += step) {
    const std::string wrong = reader.Feed(
        data + at, std::min(step, size - at), [&](const FrameHeader& header, std::string payload) {
          if (!IsControlType(header.type) || payload.size() > kMaxMessage) std::abort();
          delivered += FrameHeader::kSize + payload.size();
          return true;
        });
    if (!wrong.empty()) break;
  }
  if (delivered > size) std::abort();  // more came out than went in
  if (size > FrameHeader::kSize) {
    if (const auto header = DecodeHeader(data + 1, 1000)) {
      uint8_t again[FrameHeader::kSize];
      EncodeHeader(*header, again);
      if (header->length > 1000 || !std::equal(again, again + sizeof again, data + 1)) std::abort();
    }
  }
  return 0;
}

#ifndef DECENTRAL_LIBFUZZER
int main(int argc, char** argv) {
  const long runs = argc > 1 ? std::atol(argv[1]) : 200'000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atol(argv[2])) : 1;
  std::printf("frame_fuzz: %ld runs, seed %u\n", runs, seed);
  std::mt19937 random(seed);
  for (long run = 0; run < runs; ++run) {
    std::string bytes(1, static_cast<char>(random()));
    for (unsigned frames = random() % 5; frames > 0; --frames) {
      FrameHeader header{.type = static_cast<FrameType>(random() % 20)};
      header.flags = random() % 4;
      header.tag = random() % 4;
      const std::string payload(random() % 100, 'p');
      header.length = static_cast<uint32_t>(payload.size());
      uint8_t raw[FrameHeader::kSize];
      EncodeHeader(header, raw);
      bytes.append(reinterpret_cast<char*>(raw), sizeof raw);
      bytes += payload;
    }
    for (unsigned flips = random() % 6; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  return 0;
}
#endif
