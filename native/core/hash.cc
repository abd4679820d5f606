#include "core/hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <new>
#include <thread>

namespace decentral {
namespace {

constexpr size_t kTwoThreadsAbove = 8 << 20;
enum Domain : uint8_t { kLeaf = 0, kNode = 1, kTensor = 2, kState = 3 };

// OpenSSL 3 looks algorithms up by name at every use; fetching once saves a microsecond per hash.
const EVP_MD* Sha256Method() {
  static EVP_MD* const method = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return method;
}

// One context, reused: Begin, Update ..., End.
class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new()) {
    if (context_ == nullptr || Sha256Method() == nullptr) {
      EVP_MD_CTX_free(context_);
      throw Error(ErrorKind::kConfig, "hash", "OpenSSL offers no SHA-256 here");
    }
  }
  ~Hasher() { EVP_MD_CTX_free(context_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  Hasher& Begin() {
    Check(EVP_DigestInit_ex2(context_, Sha256Method(), nullptr));
    return *this;
  }
  Hasher& Begin(Domain domain) {
    Begin();
    const uint8_t byte = domain;
    return Update(&byte, 1);
  }
  Hasher& Update(const void* data, size_t size) {
    Check(EVP_DigestUpdate(context_, data, size));
    return *this;
  }
  template <typename T>
  Hasher& Integer(T value) {  // little-endian on any machine
    uint8_t bytes[sizeof(T)];
    for (size_t i = 0; i < sizeof(T); ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
    return Update(bytes, sizeof(T));
  }
  Hasher& Text(const std::string& text) {
    Integer(static_cast<uint32_t>(text.size()));
    return Update(text.data(), text.size());
  }
  Hash256 End() {
    Hash256 out;
    Check(EVP_DigestFinal_ex(context_, out.data(), nullptr));
    return out;
  }

 private:
  // Only a failed allocation inside OpenSSL gets here.
  static void Check(int ok) {
    if (ok != 1) throw std::bad_alloc();
  }
  EVP_MD_CTX* context_;
};

size_t ChunkCount(uint64_t nbytes) {
  return nbytes == 0 ? 1 : static_cast<size_t>((nbytes + kHashChunk - 1) / kHashChunk);
}

void HashChunks(const uint8_t* data, size_t nbytes, size_t first, size_t last, Hash256* out) {
  Hasher hasher;
  for (size_t i = first; i < last; ++i) {
    const size_t start = i * kHashChunk;
    const size_t size = std::min(kHashChunk, nbytes - start);
    out[i] = hasher.Begin(kLeaf).Update(data + start, size).End();
  }
}

Hash256 TreeRoot(Hasher& hasher, const Hash256* leaves, size_t count) {
  if (count == 1) return leaves[0];
  size_t left = 1;
  while (left * 2 < count) left *= 2;
  const Hash256 l = TreeRoot(hasher, leaves, left);
  const Hash256 r = TreeRoot(hasher, leaves + left, count - left);
  return hasher.Begin(kNode).Update(l.data(), l.size()).Update(r.data(), r.size()).End();
}

}  // namespace

std::vector<Hash256> LeafHashes(const uint8_t* data, size_t nbytes) {
  const size_t chunks = ChunkCount(nbytes);
  std::vector<Hash256> leaves(chunks);
  if (nbytes <= kTwoThreadsAbove || std::thread::hardware_concurrency() < 2) {
    HashChunks(data, nbytes, 0, chunks, leaves.data());
    return leaves;
  }
  const size_t middle = chunks / 2;
  std::exception_ptr failure;
  std::thread other([&] {
    try {
      HashChunks(data, nbytes, middle, chunks, leaves.data());
    } catch (...) {
      failure = std::current_exception();
    }
  });
  try {
    HashChunks(data, nbytes, 0, middle, leaves.data());
  } catch (...) {
    other.join();
    throw;
  }
  other.join();
  if (failure) std::rethrow_exception(failure);
  return leaves;
}

Hash256 TensorRoot(const std::string& name, const std::string& dtype,
                   const std::vector<uint64_t>& shape, uint64_t nbytes,
                   const std::vector<Hash256>& leaves) {
  if (leaves.size() != ChunkCount(nbytes)) {
    throw Error(ErrorKind::kConfig, "hash",
                "tensor " + name + " of " + std::to_string(nbytes) + " bytes has " +
                    std::to_string(ChunkCount(nbytes)) + " chunks, not " +
                    std::to_string(leaves.size()));
  }
  Hasher hasher;
  const Hash256 tree = TreeRoot(hasher, leaves.data(), leaves.size());
  hasher.Begin(kTensor).Text(name).Text(dtype).Integer(static_cast<uint32_t>(shape.size()));
  for (const uint64_t dim : shape) hasher.Integer(dim);
  return hasher.Integer(nbytes).Update(tree.data(), tree.size()).End();
}

Hash256 StateRoot(std::vector<std::pair<std::string, Hash256>> tensors) {
  std::sort(tensors.begin(), tensors.end());
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].first == tensors[i - 1].first) {
      throw Error(ErrorKind::kConfig, "hash", "two tensors are named " + tensors[i].first);
    }
  }
  Hasher hasher;
  hasher.Begin(kState).Integer(static_cast<uint32_t>(tensors.size()));
  for (const auto& [name, root] : tensors) hasher.Update(root.data(), root.size());
  return hasher.End();
}

Hash256 Sha256(const void* data, size_t nbytes) {
  return Hasher().Begin().Update(data, nbytes).End();
}

}  // namespace decentral
