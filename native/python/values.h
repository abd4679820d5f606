// How values cross between C++ and Python: shared by the binding files.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include "collective/codec.h"
#include "core/types.h"

namespace decentral {

namespace nb = nanobind;
using namespace nb::literals;

// noconvert at every use: a strided or double array must be refused, not silently copied.
using FloatsIn = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline nb::bytes ToBytes(const std::string& s) { return nb::bytes(s.data(), s.size()); }
template <size_t N>
nb::bytes ToBytes(const std::array<uint8_t, N>& a) {
  return nb::bytes(reinterpret_cast<const char*>(a.data()), N);
}

template <size_t N = 32>
std::array<uint8_t, N> FromBytes(const nb::bytes& b, const char* what) {
  if (b.size() != N) {
    throw nb::value_error((std::string(what) + " must be " + std::to_string(N) + " bytes").c_str());
  }
  std::array<uint8_t, N> out;
  std::memcpy(out.data(), b.c_str(), N);
  return out;
}

inline const char* KindName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kNone:
      return "none";
    case ErrorKind::kUnreachable:
      return "unreachable";
    case ErrorKind::kNotDecentral:
      return "not-decentral";
    case ErrorKind::kVersionMismatch:
      return "version-mismatch";
    case ErrorKind::kIdentity:
      return "identity";
    case ErrorKind::kSelf:
      return "self";
    case ErrorKind::kRefused:
      return "refused";
    case ErrorKind::kProtocol:
      return "protocol";
    case ErrorKind::kClosed:
      return "closed";
    case ErrorKind::kSilent:
      return "silent";
    case ErrorKind::kAborted:
      return "aborted";
    case ErrorKind::kMismatch:
      return "mismatch";
    case ErrorKind::kConfig:
      return "config";
  }
  return "none";
}

// Words may come from another peer, or be cut in the middle of a character: not all are UTF-8.
inline nb::str ToText(const std::string& s) {
  PyObject* text =
      PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "backslashreplace");
  if (text == nullptr) throw nb::python_error();
  return nb::steal<nb::str>(text);
}

// (kind, phase, peer, text): what Python code turns into a typed error with a peer's name.
using ErrorTuple = std::tuple<std::string, nb::str, nb::bytes, nb::str>;
inline std::optional<ErrorTuple> ToTuple(const Error& e) {
  if (!e) return std::nullopt;
  return ErrorTuple{KindName(e.kind), ToText(e.phase), ToBytes(e.peer), ToText(e.text)};
}

// Throws what names all codecs that there are.
Codec ParseCodec(const std::string& name);

// Each adds its part to the module.
void BindLinks(nb::module_& m);
void BindCodecs(nb::module_& m);
void BindCollectives(nb::module_& m);
void BindKernels(nb::module_& m);
void BindFailpoints(nb::module_& m);

}  // namespace decentral
