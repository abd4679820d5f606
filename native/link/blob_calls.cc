// DataPlane: what the layer above asks of blobs.
#include <algorithm>

#include "link/data_plane.h"

namespace decentral {

void DataPlane::BlobFailed(LinkId link, uint64_t key, const Error& why) {
  Event event;
  event.type = Event::Type::kBlobFailed;
  event.link = link;
  event.peer = why.peer;
  event.seq = key;
  event.error = why;
  events_->Push(std::move(event));
}

void DataPlane::SendBlob(LinkId link, uint64_t key, const uint8_t* data, uint64_t size,
                         std::function<void()> done) {
  loop_.Post([this, link, key, data, size, done = std::move(done)] {
    const auto sent = [this, link, key, done] {
      if (done) done();
      Event event;
      event.type = Event::Type::kBlobSent;
      event.link = link;
      event.seq = key;
      events_->Push(std::move(event));
    };
    Link* l = Find(link);
    if (l == nullptr) return sent();
    l->blobs.Add(next_blob_++, key, data, size, sent);
    if (!l->up) return Ask(*l);
    for (auto& stream : l->streams) stream->Kick();
  });
}

void DataPlane::PostBlob(LinkId link, uint64_t key, uint8_t* into, uint64_t size) {
  // Synchronous: whoever posts asks for the blob next, and a data thread that wakes late could
  // otherwise read its first bytes before it knows the buffer, and forget them.
  loop_.RunSync([this, link, key, into, size] {
    const Link* l = Find(link);
    if (l == nullptr) {
      return BlobFailed(
          link, key, Error(ErrorKind::kClosed, "state transfer", "there is no such link any more"));
    }
    if (!receiver_.Post({link, key}, into, size)) {
      BlobFailed(link, key,
                 Error(ErrorKind::kConfig, "state transfer",
                       "a buffer for this blob is posted already", l->peer));
    }
  });
}

void DataPlane::CancelBlob(uint64_t key) {
  loop_.RunSync([this, key] {
    for (const auto& buffer : receiver_.RemoveKey(key)) {
      Link* link = Find(buffer.key.first);
      if (link != nullptr) {
        for (auto& stream : link->streams) {
          if (stream) stream->DrainIfInto(buffer.begin, buffer.begin + buffer.size);
        }
      }
      BlobFailed(buffer.key.first, key,
                 Error(ErrorKind::kAborted, "state transfer", "the transfer was called off here",
                       link != nullptr ? link->peer : PeerId{}));
    }
    for (auto& [id, link] : links_) {
      const auto numbers = link.blobs.Numbers(key);
      if (numbers.empty()) continue;
      for (auto& stream : link.streams) {
        if (!stream) continue;
        stream->Disown([&](const BulkStream::Out& out) {
          return out.kind == BulkStream::Out::Kind::kBlob &&
                 std::find(numbers.begin(), numbers.end(), out.blob) != numbers.end();
        });
      }
      for (auto& done : link.blobs.Remove(key)) {
        if (done) done();
      }
      if (!link.up) continue;
      BulkStream::Out notice;
      notice.header = BlobHeader(key, 0, 0, 0);
      notice.header.flags = kFlagCancelled;
      Stamped(&notice.header);
      link.streams[0]->Push(std::move(notice));
    }
  });
}

}  // namespace decentral
