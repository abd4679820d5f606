// State transfer over bulk streams: a blob is cut into slices on a fixed grid, each a kBlob frame
// that says where it belongs, so that slices may take any stream and arrive in any order.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "link/format.h"
#include "wire/frame.h"

namespace decentral {

// kBlob: round = key, sequence = offset, attempt and tag = low and high half of the size.
inline FrameHeader BlobHeader(uint64_t key, uint64_t offset, uint64_t size, uint32_t length) {
  FrameHeader header{.type = FrameType::kBlob, .length = length};
  header.round = key;
  header.sequence = offset;
  header.attempt = static_cast<uint32_t>(size);
  header.tag = static_cast<uint32_t>(size >> 32);
  return header;
}
inline uint64_t BlobSize(const FrameHeader& header) {
  return uint64_t{header.tag} << 32 | header.attempt;
}

// One link's blobs on their way out, one after the other: whoever asked for several can use the
// first while the last is on its way, and may still ask somebody else for the last.
class BlobSender {
 public:
  struct Slice {
    FrameHeader header;
    const uint8_t* data;
    uint64_t blob;  // give it back to Sent
  };

  void Add(uint64_t blob, uint64_t key, const uint8_t* data, uint64_t size,
           std::function<void()> done);
  bool Next(Slice* slice);
  bool waiting() const;
  void Sent(uint64_t blob);
  // Forgets them; the caller has the streams let go of their memory first, then calls done.
  std::vector<uint64_t> Numbers(uint64_t key) const;
  std::vector<std::function<void()>> Remove(uint64_t key);
  std::vector<std::function<void()>> RemoveAll();

 private:
  struct Blob {
    uint64_t number, key;
    const uint8_t* data;
    uint64_t size, next;
    int in_flight;
    bool all_out;
    std::function<void()> done;
  };
  std::deque<Blob> blobs_;
};

// Posted buffers, and what has landed in them.
class BlobReceiver {
 public:
  using Key = std::pair<uint64_t, uint64_t>;  // link, blob key
  enum class Verdict : uint8_t { kLand, kDrain, kMismatch, kCancelled, kProtocol };

  bool Post(Key key, uint8_t* into, uint64_t size);  // false: posted already
  // kLand: *into says where.
  Verdict Header(uint64_t link, const FrameHeader& header, uint8_t** into);
  // True: that was the last slice; the entry is gone.
  bool Landed(uint64_t link, const FrameHeader& header);
  struct Buffer {
    Key key;
    uint8_t* begin;
    uint64_t size;
  };
  // Forgets those of a link, those under a key on any link, or the one under both.
  std::vector<Buffer> RemoveLink(uint64_t link);
  std::vector<Buffer> RemoveKey(uint64_t key);
  std::vector<Buffer> RemoveLinkKey(Key key);

 private:
  struct Receipt {
    uint8_t* into;
    uint64_t size;
    std::vector<bool> begun;  // per slice of the grid
    uint64_t landed;          // slices
  };
  template <typename F>
  std::vector<Buffer> RemoveIf(F matches);
  std::map<Key, Receipt> receipts_;
};

}  // namespace decentral
