// Throws bytes at every decoder, and values at every encoder.
//   input: u8 codec, u16 count, then wire bytes (missing ones are zero)
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "collective/codec.h"

using namespace decentral;

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

bool SameBits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

std::vector<uint8_t> Encoded(Codec codec, const std::vector<float>& x) {
  std::vector<uint8_t> wire(EncodedSize(codec, x.size()));
  Encode(codec, x.data(), x.size(), 1.0f, wire.data());
  return wire;
}

// Vectors of exactly the size: a sanitizer sees what reads or writes beyond.
std::vector<float> Decoded(Codec codec, const std::vector<uint8_t>& wire, size_t count) {
  std::vector<float> out(count);
  Decode(codec, wire.data(), count, out.data());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 3;
  if (size < kHead) return 0;
  const CodecInfo* info = InfoOf(data[0]);
  if (info == nullptr) return 0;
  const auto codec = static_cast<Codec>(data[0]);
  const size_t count = (data[1] | data[2] << 8) % 1500;

  std::vector<uint8_t> wire(EncodedSize(codec, count));
  if (!wire.empty()) std::memcpy(wire.data(), data + kHead, std::min(wire.size(), size - kHead));
  const std::vector<float> values = Decoded(codec, wire, count);
  std::vector<float> sums(values.rbegin(), values.rend());
  const std::vector<float> addends = sums;
  DecodeAdd(codec, wire.data(), count, sums.data(), 0.5f, sums.data());
  for (size_t i = 0; i < count; ++i) Check(SameBits(sums[i], values[i] + 0.5f * addends[i]));

  // Whatever came, what an encoder makes of it comes back as it is.
  const std::vector<uint8_t> ours = Encoded(codec, values);
  if (info->reencodes) Check(Encoded(codec, Decoded(codec, ours, count)) == ours);

  // And any values can be encoded.
  std::vector<float> any((size - kHead) / sizeof(float));
  if (!any.empty()) std::memcpy(any.data(), data + kHead, any.size() * sizeof(float));
  const std::vector<uint8_t> theirs = Encoded(codec, any);
  if (info->reencodes)
    Check(codec == Codec::kFp32 || Encoded(codec, Decoded(codec, theirs, any.size())) == theirs);
  return 0;
}
