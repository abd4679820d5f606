// The 256-bit hash of training state: SHA-256 in a tree, so that a peer can verify any chunk of
// any tensor against one committed root, and two threads can hash one tensor.
//
//   chunk      1 MiB of a tensor's bytes (the last one shorter; an empty tensor has one, empty)
//   leaf       SHA256(0x00 | chunk)
//   node       SHA256(0x01 | left | right); left holds the largest power of two < n leaves
//   tensor     SHA256(0x02 | le32 |name| | name | le32 |dtype| | dtype
//                          | le32 ndim | le64 dim ... | le64 nbytes | tree root)
//   state      SHA256(0x03 | le32 number of tensors | tensor roots, sorted by name)
//
// The first byte keeps the four apart (as in RFC 6962, whose tree shape this is): no tree can be
// read as another one. The name is inside the tensor's root, so sorting loses nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/types.h"

namespace decentral {

inline constexpr size_t kHashChunk = 1 << 20;

// One hash per chunk, in order; at least one. Uses two threads above 8 MiB.
std::vector<Hash256> LeafHashes(const uint8_t* data, size_t nbytes);

// Throws Error(kConfig) unless `leaves` has as many entries as `nbytes` has chunks.
Hash256 TensorRoot(const std::string& name, const std::string& dtype,
                   const std::vector<uint64_t>& shape, uint64_t nbytes,
                   const std::vector<Hash256>& leaves);

// (name, tensor root) in any order. Throws Error(kConfig) if a name appears twice.
Hash256 StateRoot(std::vector<std::pair<std::string, Hash256>> tensors);

// Plain SHA-256, for digests of anything small.
Hash256 Sha256(const void* data, size_t nbytes);

}  // namespace decentral
