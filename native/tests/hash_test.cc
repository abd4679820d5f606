// The tree hash: known answers, and that nothing can change without changing the root.
#include "core/hash.h"

#include <cstring>

#include "check.h"

namespace decentral::test {
namespace {

std::string Hex(const Hash256& hash) {
  std::string out;
  for (const uint8_t byte : hash) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

std::vector<uint8_t> Bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i * 31 + (i >> 8) * 7);
  return bytes;
}

Hash256 Root(const std::vector<uint8_t>& data, const std::string& name = "w",
             const std::string& dtype = "float32", const std::vector<uint64_t>& shape = {2, 3}) {
  return TensorRoot(name, dtype, shape, data.size(), LeafHashes(data.data(), data.size()));
}

// Answers computed with Python's hashlib from the definition in core/hash.h.
TEST(known_answers) {
  CHECK(Hex(Sha256("abc", 3)) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(Hex(LeafHashes(nullptr, 0).at(0)) ==
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
  CHECK(Hex(Root(Bytes(24))) == "253b9640903e18243de4bcb6532307c699c0b1c6753f91c389504f1ce49b0d52");
  CHECK(Hex(Root(Bytes(5 * kHashChunk + 17))) ==
        "1fb2c514a7319f4c48d3836cb9746fb1e400ddcaf00be6c4f2280532096d86cf");
  CHECK(Hex(Root(Bytes(11 * kHashChunk))) ==
        "c2e28b1ff562c95cb810d59a7e7b4615f52d2051cb5c7736f9066095c8dabdfa");
  CHECK(Hex(StateRoot({{"w", Root(Bytes(24))}, {"b", Root({}, "b", "uint8", {0})}})) ==
        "e77b260bf7cfe7006a6051c575b5dea3d19b561237c6a6f9144186f6777fb099");
  CHECK(Hex(StateRoot({})) == "a665e6b115dd56fd3e0c89be631e6eda8e9666b822e0bd7026bf0822c4bbc68f");
}

TEST(one_and_two_threads_agree) {
  const auto data = Bytes(9 * kHashChunk + 5);
  const auto leaves = LeafHashes(data.data(), data.size());
  CHECK(leaves.size() == 10);
  for (size_t i = 0; i < leaves.size(); ++i) {
    const size_t size = std::min(kHashChunk, data.size() - i * kHashChunk);
    CHECK(LeafHashes(data.data() + i * kHashChunk, size).at(0) == leaves[i]);
  }
}

TEST(any_flipped_bit_changes_the_root) {
  auto data = Bytes(3 * kHashChunk + 100);
  const Hash256 root = Root(data);
  for (const size_t at :
       {size_t{0}, kHashChunk - 1, kHashChunk, 2 * kHashChunk + 5, data.size() - 1}) {
    for (int bit = 0; bit < 8; ++bit) {
      data[at] ^= 1 << bit;
      CHECK(Root(data) != root);
      data[at] ^= 1 << bit;
    }
  }
  CHECK(Root(data) == root);
}

TEST(name_dtype_shape_and_size_are_covered) {
  const auto data = Bytes(24);
  const Hash256 root = Root(data);
  CHECK(Root(data, "v") != root);
  CHECK(Root(data, "w", "float16") != root);
  CHECK(Root(data, "w", "float32", {3, 2}) != root);
  CHECK(Root(data, "w", "float32", {6}) != root);
  CHECK(Root(data, "wf", "loat32") != Root(data, "w", "float32"));
  CHECK(Root(Bytes(25)) != root);
  // A tensor of 64 bytes that spell out two leaves is not their inner node.
  const auto two = Bytes(2 * kHashChunk);
  const auto leaves = LeafHashes(two.data(), two.size());
  std::vector<uint8_t> spelled(64);
  std::memcpy(spelled.data(), leaves.data(), 64);
  CHECK(LeafHashes(spelled.data(), 64).at(0) != leaves[0]);
}

TEST(order_of_tensors_does_not_matter_and_their_set_does) {
  const Hash256 a = Root(Bytes(1), "a"), b = Root(Bytes(2), "b");
  CHECK(StateRoot({{"a", a}, {"b", b}}) == StateRoot({{"b", b}, {"a", a}}));
  CHECK(StateRoot({{"a", a}}) != StateRoot({{"a", a}, {"b", b}}));
  CHECK(StateRoot({{"a", b}, {"b", a}}) != StateRoot({{"a", a}, {"b", b}}));
}

TEST(misuse_is_refused) {
  int refused = 0;
  try {
    TensorRoot("w", "float32", {1}, kHashChunk + 1, LeafHashes(nullptr, 0));
  } catch (const Error& e) {
    refused += e.kind == ErrorKind::kConfig;
  }
  try {
    StateRoot({{"a", {}}, {"a", {}}});
  } catch (const Error& e) {
    refused += e.kind == ErrorKind::kConfig;
  }
  CHECK(refused == 2);
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
