// Throws bytes at the decoder of top-k, and values at its encoder.
//   input: u8 flags (1: cut or fill the rest to the expected size), u16 count, u16 k, the rest
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "collective/topk.h"

using namespace decentral;

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 5;
  if (size < kHead) return 0;
  const size_t count = (data[1] | data[2] << 8) % 10000;
  const uint32_t k = data[3] | data[4] << 8;
  const bool possible = k >= 1 && k <= kTopkChunk;
  std::vector<uint8_t> wire(data + kHead, data + size);
  if (possible && (data[0] & 1) != 0) wire.resize(TopkEncodedSize(count, k));

  std::vector<float> out(count, 3.0f);
  const Error error = TopkDecodeAdd(wire.data(), wire.size(), k, 0.5f, out.data(), count);
  const auto changed = std::count_if(out.begin(), out.end(), [](float v) { return v != 3.0f; });
  if (error) Check(changed == 0 && error.kind == ErrorKind::kProtocol && !error.text.empty());
  if (!possible) {
    Check(static_cast<bool>(error));
    return 0;
  }

  std::vector<float> any((size - kHead) / sizeof(float));
  if (!any.empty()) std::memcpy(any.data(), data + kHead, any.size() * sizeof(float));
  std::vector<uint8_t> ours(TopkEncodedSize(any.size(), k));
  TopkEncode(any.data(), any.size(), k, ours.data());
  std::vector<float> sums(any.size());
  Check(!TopkDecodeAdd(ours.data(), ours.size(), k, 1.0f, sums.data(), sums.size()));
  return 0;
}
