#include "link/blob.h"

#include <algorithm>

namespace decentral {
namespace {

// An empty blob is one empty slice.
uint64_t Slices(uint64_t size) { return size == 0 ? 1 : (size - 1) / kBlobSlice + 1; }

}  // namespace

void BlobSender::Add(uint64_t blob, uint64_t key, const uint8_t* data, uint64_t size,
                     std::function<void()> done) {
  blobs_.push_back({blob, key, data, size, 0, 0, false, std::move(done)});
}

bool BlobSender::waiting() const {
  return std::any_of(blobs_.begin(), blobs_.end(), [](const Blob& b) { return !b.all_out; });
}

bool BlobSender::Next(Slice* slice) {
  for (Blob& blob : blobs_) {
    if (blob.all_out) continue;
    const uint64_t length = std::min<uint64_t>(kBlobSlice, blob.size - blob.next);
    slice->header = BlobHeader(blob.key, blob.next, blob.size, static_cast<uint32_t>(length));
    slice->data = blob.data + blob.next;
    slice->blob = blob.number;
    blob.next += length;
    blob.all_out = blob.next == blob.size;
    ++blob.in_flight;
    return true;
  }
  return false;
}

void BlobSender::Sent(uint64_t number) {
  const auto at = std::find_if(blobs_.begin(), blobs_.end(),
                               [number](const Blob& b) { return b.number == number; });
  if (at == blobs_.end()) return;
  if (--at->in_flight > 0 || !at->all_out) return;
  const auto done = std::move(at->done);
  blobs_.erase(at);
  if (done) done();
}

std::vector<uint64_t> BlobSender::Numbers(uint64_t key) const {
  std::vector<uint64_t> out;
  for (const Blob& blob : blobs_) {
    if (blob.key == key) out.push_back(blob.number);
  }
  return out;
}

std::vector<std::function<void()>> BlobSender::Remove(uint64_t key) {
  std::vector<std::function<void()>> out;
  for (size_t i = 0; i < blobs_.size(); ++i) {
    if (blobs_[i].key != key) continue;
    out.push_back(std::move(blobs_[i].done));
    blobs_.erase(blobs_.begin() + i--);
  }
  return out;
}

std::vector<std::function<void()>> BlobSender::RemoveAll() {
  std::vector<std::function<void()>> out;
  for (Blob& blob : blobs_) out.push_back(std::move(blob.done));
  blobs_.clear();
  return out;
}

bool BlobReceiver::Post(Key key, uint8_t* into, uint64_t size) {
  return receipts_.emplace(key, Receipt{into, size, std::vector<bool>(Slices(size)), 0}).second;
}

BlobReceiver::Verdict BlobReceiver::Header(uint64_t link, const FrameHeader& header,
                                           uint8_t** into) {
  const auto at = receipts_.find({link, header.round});
  if (at == receipts_.end()) return Verdict::kDrain;
  Receipt& receipt = at->second;
  if (header.flags & kFlagCancelled) return Verdict::kCancelled;
  const uint64_t size = BlobSize(header), offset = header.sequence;
  if (size != receipt.size) return Verdict::kMismatch;
  // Only whole slices of the grid, each once: nobody writes twice or beyond the end.
  const uint64_t slice = offset / kBlobSlice;
  if (offset % kBlobSlice != 0 || slice >= receipt.begun.size() || receipt.begun[slice] ||
      header.length != std::min<uint64_t>(kBlobSlice, size - offset)) {
    return Verdict::kProtocol;
  }
  receipt.begun[slice] = true;
  *into = receipt.into + offset;
  return Verdict::kLand;
}

bool BlobReceiver::Landed(uint64_t link, const FrameHeader& header) {
  const auto at = receipts_.find({link, header.round});
  if (at == receipts_.end() || (header.flags & kFlagCancelled)) return false;
  if (++at->second.landed < at->second.begun.size()) return false;
  receipts_.erase(at);
  return true;
}

template <typename F>
std::vector<BlobReceiver::Buffer> BlobReceiver::RemoveIf(F matches) {
  std::vector<Buffer> out;
  for (auto at = receipts_.begin(); at != receipts_.end();) {
    if (matches(at->first)) {
      out.push_back({at->first, at->second.into, at->second.size});
      at = receipts_.erase(at);
    } else {
      ++at;
    }
  }
  return out;
}

std::vector<BlobReceiver::Buffer> BlobReceiver::RemoveLink(uint64_t link) {
  return RemoveIf([link](const Key& key) { return key.first == link; });
}

std::vector<BlobReceiver::Buffer> BlobReceiver::RemoveLinkKey(Key wanted) {
  return RemoveIf([wanted](const Key& key) { return key == wanted; });
}

std::vector<BlobReceiver::Buffer> BlobReceiver::RemoveKey(uint64_t key) {
  return RemoveIf([key](const Key& k) { return k.second == key; });
}

}  // namespace decentral
