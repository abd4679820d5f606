// State hashes and the outer optimizer's arithmetic, as Python sees them.
#include <algorithm>
#include <initializer_list>

#include "core/hash.h"
#include "optim/outer.h"
#include "python/values.h"

namespace decentral {
namespace {

void SameSize(std::initializer_list<size_t> sizes) {
  if (std::adjacent_find(sizes.begin(), sizes.end(), std::not_equal_to<>()) != sizes.end()) {
    throw nb::value_error("arrays differ in size");
  }
}

nb::bytes PyLeafHashes(nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> array) {
  std::vector<Hash256> leaves;
  {
    nb::gil_scoped_release release;
    leaves = LeafHashes(static_cast<const uint8_t*>(array.data()), array.nbytes());
  }
  return nb::bytes(reinterpret_cast<const char*>(leaves.data()), leaves.size() * sizeof(Hash256));
}

nb::bytes PyTensorRoot(const std::string& name, const std::string& dtype,
                       const std::vector<uint64_t>& shape, uint64_t size_bytes,
                       const nb::bytes& leaves) {
  if (leaves.size() % sizeof(Hash256) != 0) throw nb::value_error("leaves are 32 bytes each");
  std::vector<Hash256> parsed(leaves.size() / sizeof(Hash256));
  std::memcpy(parsed.data(), leaves.c_str(), leaves.size());
  return ToBytes(TensorRoot(name, dtype, shape, size_bytes, parsed));
}

nb::bytes PyStateRoot(const std::vector<std::tuple<std::string, nb::bytes>>& tensors) {
  std::vector<std::pair<std::string, Hash256>> roots;
  for (const auto& [name, root] : tensors) {
    roots.emplace_back(name, FromBytes(root, "a tensor's root"));
  }
  return ToBytes(StateRoot(std::move(roots)));
}

}  // namespace

void BindKernels(nb::module_& m) {
  m.def("leaf_hashes", &PyLeafHashes, "data"_a.noconvert(), "32 bytes per 1 MiB chunk.");
  m.def("tensor_root", &PyTensorRoot, "name"_a, "dtype"_a, "shape"_a, "size_bytes"_a, "leaves"_a);
  m.def("state_root", &PyStateRoot, "tensors"_a);

  m.def(
      "outer_nesterov",
      [](FloatsIn theta, FloatsIn momentum, FloatsIn delta, float lr, float mu, FloatsOut out_theta,
         FloatsOut out_momentum) {
        SameSize(
            {theta.size(), momentum.size(), delta.size(), out_theta.size(), out_momentum.size()});
        nb::gil_scoped_release release;
        OuterNesterov(theta.data(), momentum.data(), delta.data(), lr, mu, theta.size(),
                      out_theta.data(), out_momentum.data());
      },
      "theta"_a.noconvert(), "momentum"_a.noconvert(), "delta"_a.noconvert(), "lr"_a, "mu"_a,
      "out_theta"_a.noconvert(), "out_momentum"_a.noconvert());
  m.def(
      "outer_sgd",
      [](FloatsIn theta, FloatsIn delta, float lr, FloatsOut out) {
        SameSize({theta.size(), delta.size(), out.size()});
        nb::gil_scoped_release release;
        OuterSgd(theta.data(), delta.data(), lr, theta.size(), out.data());
      },
      "theta"_a.noconvert(), "delta"_a.noconvert(), "lr"_a, "out"_a.noconvert());
  m.def(
      "subtract",
      [](FloatsIn a, FloatsIn b, FloatsOut out) {
        SameSize({a.size(), b.size(), out.size()});
        nb::gil_scoped_release release;
        Subtract(a.data(), b.data(), a.size(), out.data());
      },
      "a"_a.noconvert(), "b"_a.noconvert(), "out"_a.noconvert());
  m.def(
      "all_finite",
      [](FloatsIn x) {
        nb::gil_scoped_release release;
        return AllFinite(x.data(), x.size());
      },
      "x"_a.noconvert());
  m.def(
      "norm",
      [](FloatsIn x) {
        nb::gil_scoped_release release;
        return Norm(x.data(), x.size());
      },
      "x"_a.noconvert());
}

}  // namespace decentral
