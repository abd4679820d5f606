// Codecs as Python sees them. Slow calls release the GIL; what is written in place is noconvert().
#include "collective/codec.h"
#include "collective/topk.h"
#include "python/values.h"

namespace decentral {

Codec ParseCodec(const std::string& name) {
  if (const auto codec = CodecNamed(name)) return *codec;
  std::string known;
  for (uint32_t id = 0; InfoOf(id) != nullptr; ++id) {
    known += std::string(id == 0 ? "" : ", ") + InfoOf(id)->name;
  }
  throw Error(ErrorKind::kConfig, "codec", "no codec '" + name + "': there are " + known);
}

namespace {

using WireIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WireOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A view of wire bytes that kernels may read as floats or halves.
const uint8_t* CheckWire(Codec codec, const void* data, size_t size, size_t count) {
  if (size != EncodedSize(codec, count)) {
    throw nb::value_error("the encoded size does not fit the number of values");
  }
  if (reinterpret_cast<uintptr_t>(data) % alignof(float) != 0) {
    throw nb::value_error("wire bytes must be aligned to 4 bytes");
  }
  return static_cast<const uint8_t*>(data);
}

nb::bytes PyEncode(const std::string& name, FloatsIn src, float weight) {
  const Codec codec = ParseCodec(name);
  std::string out(EncodedSize(codec, src.size()), '\0');
  {
    nb::gil_scoped_release release;
    Encode(codec, src.data(), src.size(), weight, reinterpret_cast<uint8_t*>(out.data()));
  }
  return ToBytes(out);
}

void PyEncodeInto(const std::string& name, FloatsIn src, WireOut out, float weight) {
  const Codec codec = ParseCodec(name);
  CheckWire(codec, out.data(), out.size(), src.size());
  nb::gil_scoped_release release;
  Encode(codec, src.data(), src.size(), weight, out.data());
}

void PyDecode(const std::string& name, const nb::bytes& data, FloatsOut out) {
  const Codec codec = ParseCodec(name);
  const uint8_t* in = CheckWire(codec, data.c_str(), data.size(), out.size());
  nb::gil_scoped_release release;
  Decode(codec, in, out.size(), out.data());
}

void PyDecodeFrom(const std::string& name, WireIn data, FloatsOut out) {
  const Codec codec = ParseCodec(name);
  const uint8_t* in = CheckWire(codec, data.data(), data.size(), out.size());
  nb::gil_scoped_release release;
  Decode(codec, in, out.size(), out.data());
}

void PyDecodeAdd(const std::string& name, WireIn data, FloatsIn src, float weight, FloatsOut out) {
  const Codec codec = ParseCodec(name);
  if (src.size() != out.size()) throw nb::value_error("src and out differ in size");
  const uint8_t* in = CheckWire(codec, data.data(), data.size(), out.size());
  nb::gil_scoped_release release;
  DecodeAdd(codec, in, out.size(), src.data(), weight, out.data());
}

// (name, block, reencodes, rides_ring, final) in the order of their numbers on the wire.
std::vector<std::tuple<std::string, size_t, bool, bool, std::string>> PyCodecs() {
  std::vector<std::tuple<std::string, size_t, bool, bool, std::string>> all;
  for (uint32_t id = 0; const CodecInfo* info = InfoOf(id); ++id) {
    all.emplace_back(info->name, info->block, info->reencodes, info->rides_ring,
                     InfoOf(info->final).name);
  }
  return all;
}

void CheckK(uint32_t k) {
  if (k == 0 || k > kTopkChunk) {
    throw Error(ErrorKind::kConfig, "top-k", "k must be 1 to 4096, not " + std::to_string(k));
  }
}

nb::bytes PyTopkEncode(FloatsIn src, uint32_t k) {
  CheckK(k);
  std::string out(TopkEncodedSize(src.size(), k), '\0');
  {
    nb::gil_scoped_release release;
    TopkEncode(src.data(), src.size(), k, reinterpret_cast<uint8_t*>(out.data()));
  }
  return ToBytes(out);
}

void PyTopkDecodeAdd(const nb::bytes& data, uint32_t k, float weight, FloatsOut out) {
  CheckK(k);
  const auto* in = reinterpret_cast<const uint8_t*>(data.c_str());
  Error error;
  {
    nb::gil_scoped_release release;
    error = TopkDecodeAdd(in, data.size(), k, weight, out.data(), out.size());
  }
  if (error) throw error;
}

}  // namespace

void BindCodecs(nb::module_& m) {
  m.def("codecs", &PyCodecs, "(name, block, reencodes, rides_ring, final) of each codec.");
  m.def(
      "encoded_size",
      [](const std::string& codec, size_t count) { return EncodedSize(ParseCodec(codec), count); },
      "codec"_a, "count"_a);
  m.def("encode", &PyEncode, "codec"_a, "src"_a.noconvert(), "weight"_a = 1.0f);
  m.def("encode_into", &PyEncodeInto, "codec"_a, "src"_a.noconvert(), "out"_a.noconvert(),
        "weight"_a = 1.0f);
  m.def("decode", &PyDecode, "codec"_a, "data"_a, "out"_a.noconvert());
  m.def("decode", &PyDecodeFrom, "codec"_a, "data"_a.noconvert(), "out"_a.noconvert());
  m.def("decode_add", &PyDecodeAdd, "codec"_a, "data"_a.noconvert(), "src"_a.noconvert(),
        "weight"_a, "out"_a.noconvert(), "out = decode(data) + weight * src");
  m.def(
      "topk_encoded_size",
      [](size_t count, uint32_t k) {
        CheckK(k);
        return TopkEncodedSize(count, k);
      },
      "count"_a, "k"_a);
  m.def("topk_encode", &PyTopkEncode, "src"_a.noconvert(), "k"_a);
  m.def("topk_decode_add", &PyTopkDecodeAdd, "data"_a, "k"_a, "weight"_a, "out"_a.noconvert(),
        "out += weight * decode(data)");
}

}  // namespace decentral
