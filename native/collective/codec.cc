// Which kernel serves which codec, and fp32, which needs none.
#include "collective/codec.h"

#include "collective/codec_kernels.h"

namespace decentral {
namespace {

DECENTRAL_PER_ISA void ScaleFp32(const float* src, size_t count, float weight, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = weight * src[i];
}

DECENTRAL_PER_ISA void AddFp32(const float* in, size_t count, const float* src, float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = in[i] + src[i];
}

DECENTRAL_PER_ISA void AddScaledFp32(const float* in, size_t count, const float* src, float weight,
                                     float* out) {
  DECENTRAL_ELEMENTWISE
  for (size_t i = 0; i < count; ++i) out[i] = in[i] + weight * src[i];
}

uint16_t* Halves(uint8_t* bytes) { return reinterpret_cast<uint16_t*>(bytes); }
const uint16_t* Halves(const uint8_t* bytes) { return reinterpret_cast<const uint16_t*>(bytes); }

}  // namespace

void Encode(Codec codec, const float* src, size_t count, float weight, uint8_t* out) {
  if (count == 0) return;  // empty arrays may come without memory
  if (weight == 0.0f) {    // not a factor but an absence: 0 * NaN must not reach anybody
    std::memset(out, 0, EncodedSize(codec, count));
    return;
  }
  switch (codec) {
    case Codec::kFp32:
      if (weight == 1.0f) {
        std::memcpy(out, src, count * sizeof(float));
      } else {
        ScaleFp32(src, count, weight, reinterpret_cast<float*>(out));
      }
      return;
    case Codec::kBf16:
      return EncodeBf16(src, count, weight, Halves(out));
    case Codec::kFp16:
      return EncodeFp16(src, count, weight, Halves(out));
    case Codec::kInt8:
      return EncodeInt8(src, count, weight, out);
    case Codec::kInt4:
      return EncodeInt4(src, count, weight, out);
    case Codec::kFp4:
      return EncodeFp4(src, count, weight, out);
    case Codec::kSign:
      return EncodeSign(src, count, weight, out);
  }
}

void Decode(Codec codec, const uint8_t* in, size_t count, float* out) {
  if (count == 0) return;
  switch (codec) {
    case Codec::kFp32:
      if (static_cast<const void*>(out) != in) std::memcpy(out, in, count * sizeof(float));
      return;
    case Codec::kBf16:
      return DecodeBf16(Halves(in), count, out);
    case Codec::kFp16:
      return DecodeFp16(Halves(in), count, out);
    case Codec::kInt8:
      return DecodeInt8(in, count, out);
    case Codec::kInt4:
      return DecodeInt4(in, count, out);
    case Codec::kFp4:
      return DecodeFp4(in, count, out);
    case Codec::kSign:
      return DecodeSign(in, count, out);
  }
}

void DecodeAdd(Codec codec, const uint8_t* in, size_t count, const float* src, float weight,
               float* out) {
  if (count == 0) return;
  if (weight == 0.0f) return Decode(codec, in, count, out);
  switch (codec) {
    case Codec::kFp32:
      if (weight == 1.0f) return AddFp32(reinterpret_cast<const float*>(in), count, src, out);
      return AddScaledFp32(reinterpret_cast<const float*>(in), count, src, weight, out);
    case Codec::kBf16:
      return AddBf16(Halves(in), count, src, weight, out);
    case Codec::kFp16:
      return AddFp16(Halves(in), count, src, weight, out);
    case Codec::kInt8:
      return AddInt8(in, count, src, weight, out);
    case Codec::kInt4:
      return AddInt4(in, count, src, weight, out);
    case Codec::kFp4:
      return AddFp4(in, count, src, weight, out);
    case Codec::kSign:
      return AddSign(in, count, src, weight, out);
  }
}

}  // namespace decentral
