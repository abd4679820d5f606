// Drives a fuzz target without libFuzzer: takes the inputs of a corpus and mutates them, from a
// seed, so that every compiler and every test run can.
//   codec_fuzz [runs] [seed] [corpus directory]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

std::vector<Bytes> ReadCorpus(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry);
  std::sort(paths.begin(), paths.end());  // or a seed would not replay
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void Mutate(Bytes& bytes, const Bytes& other, std::mt19937& random) {
  const auto below = [&](size_t n) {
    return static_cast<std::ptrdiff_t>(n == 0 ? 0 : random() % n);
  };
  switch (random() % 6) {
    case 0:  // a bit
      if (!bytes.empty()) bytes[below(bytes.size())] ^= static_cast<uint8_t>(1u << random() % 8);
      break;
    case 1:  // a byte, often an extreme one
      if (!bytes.empty()) {
        constexpr uint8_t kOdd[] = {0, 1, 0x7F, 0x80, 0xFF};
        bytes[below(bytes.size())] =
            random() % 2 ? kOdd[random() % std::size(kOdd)] : static_cast<uint8_t>(random());
      }
      break;
    case 2:  // the end is missing
      bytes.resize(below(bytes.size() + 1));
      break;
    case 3:  // something in between
      bytes.insert(bytes.begin() + below(bytes.size() + 1), 1 + random() % 8,
                   static_cast<uint8_t>(random()));
      break;
    case 4: {  // something is gone
      const auto at = below(bytes.size() + 1);
      const auto n = std::min<std::ptrdiff_t>(1 + below(8), std::ssize(bytes) - at);
      bytes.erase(bytes.begin() + at, bytes.begin() + at + n);
      break;
    }
    case 5:  // the end of another
      bytes.resize(below(bytes.size() + 1));
      bytes.insert(bytes.end(), other.begin() + below(other.size() + 1), other.end());
      break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long runs = argc > 1 ? std::atol(argv[1]) : 20'000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atol(argv[2])) : 1;
  std::vector<Bytes> corpus = argc > 3 ? ReadCorpus(argv[3]) : std::vector<Bytes>{};
  std::printf("%s: %zu inputs, %ld runs, seed %u\n", argv[0], corpus.size(), runs, seed);
  if (argc > 3 && corpus.empty()) return 1;  // a wrong path must not pass for a clean run
  for (const Bytes& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  corpus.emplace_back();
  std::mt19937 random(seed);
  for (long run = 0; run < runs; ++run) {
    Bytes bytes = corpus[random() % corpus.size()];
    for (unsigned steps = 1 + random() % 5; steps > 0; --steps) {
      Mutate(bytes, corpus[random() % corpus.size()], random);
    }
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return 0;
}
