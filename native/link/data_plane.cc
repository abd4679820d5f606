#include "link/data_plane.h"

#include <algorithm>

#include "link/tls.h"

namespace decentral {

DataPlane::DataPlane(const EndpointOptions& options, EventQueue* events, EndpointMeters* meters,
                     Stamp* stamp)
    : options_(options), events_(events), totals_(meters), stamp_(stamp) {}

DataPlane::~DataPlane() = default;

void DataPlane::Start(LinkPort* port) {
  port_ = port;
  loop_.Start();
}

void DataPlane::Stop() {
  loop_.RunSync([this] {
    const Error why(ErrorKind::kAborted, "link", "this endpoint was closed");
    while (!links_.empty()) TakeDown(links_.begin()->second, why, true);
    graveyard_.clear();
  });
  loop_.Stop();
}

DataPlane::Link* DataPlane::Find(LinkId link) {
  const auto at = links_.find(link);
  return at == links_.end() ? nullptr : &at->second;
}

// Two peers may have more than one link for a moment. The first whose streams are open serves,
// until it goes: an operation that runs on it must not be moved in mid-air. None open: the newest.
const DataPlane::Link* DataPlane::Current(const PeerId& peer) const {
  const Link* newest = nullptr;
  for (const auto& [id, link] : links_) {
    if (link.peer != peer) continue;
    if (link.up) return &link;
    newest = &link;
  }
  return newest;
}
DataPlane::Link* DataPlane::Current(const PeerId& peer) {
  return const_cast<Link*>(static_cast<const DataPlane*>(this)->Current(peer));
}

// ---- links come and go

void DataPlane::LinkAdmitted(LinkId link, const PeerId& peer, bool dialer,
                             std::shared_ptr<LinkShared> shared) {
  loop_.Post([this, link, peer, dialer, shared = std::move(shared)] {
    if (links_.count(link) != 0) return;
    Link& fresh = links_[link];
    fresh.id = link;
    fresh.peer = peer;
    fresh.dialer = dialer;
    fresh.shared = shared;
  });
}

void DataPlane::LinkDown(LinkId link, const Error& why) {
  loop_.Post([this, link, why] {
    if (Link* l = Find(link)) TakeDown(*l, why, true);
  });
}

void DataPlane::BulkFailed(LinkId link, const Error& why) {
  loop_.Post([this, link, why] {
    if (Link* l = Find(link)) TakeDown(*l, why, false);
  });
}

void DataPlane::TakeDown(Link& link, const Error& why, bool link_gone) {
  for (auto& stream : link.streams) {
    if (!stream) continue;
    stream->Close();
    graveyard_.push_back(std::move(stream));
  }
  link.streams.clear();
  loop_.Post([this] { graveyard_.clear(); });
  const bool used = link.up || link.asked;
  const LinkId id = link.id;
  const PeerId peer = link.peer;
  link.up = link.asked = false;
  link.count = 0;
  link.shared->streams = 0;
  auto done = link.blobs.RemoveAll();
  const auto receipts = receiver_.RemoveLink(id);
  if (link_gone) links_.erase(id);  // `link` is no more
  Error with_peer = why;
  with_peer.peer = peer;
  if (handler_ != nullptr && (used || (link_gone && Current(peer) == nullptr))) {
    handler_->OnBulkDown(peer, with_peer);
  }
  for (auto& call : done) {
    if (call) call();
  }
  for (const auto& receipt : receipts) BlobFailed(id, receipt.key.second, with_peer);
}

void DataPlane::Ask(Link& link) {
  if (link.up || link.asked) return;
  link.asked = true;
  port_->WantBulk(link.id);
}

void DataPlane::AddStream(LinkId link, int index, int count, std::unique_ptr<Stream> stream) {
  // std::function wants what it holds to be copyable.
  auto holder = std::make_shared<std::unique_ptr<Stream>>(std::move(stream));
  loop_.Post([this, link, index, count, holder] {
    Link* l = Find(link);
    if (l == nullptr || l->up) return;  // too late: the stream closes with the holder
    l->asked = true;
    l->count = static_cast<size_t>(count);
    l->streams.resize(l->count);
    auto& slot = l->streams[index];
    slot = std::make_unique<BulkStream>(static_cast<BulkStream::Owner*>(this), &loop_,
                                        std::move(*holder), link, index, options_.max_chunk_bytes);
    slot->Start(!l->dialer);
    MaybeUp(*l);
  });
}

// All streams are bound (acceptor), or the acceptor has said so on each (dialer).
void DataPlane::MaybeUp(Link& link) {
  if (link.up || link.streams.empty()) return;
  for (const auto& stream : link.streams) {
    if (!stream || (link.dialer && !stream->acknowledged())) return;
  }
  for (auto& stream : link.streams) {
    if (link.dialer) {
      stream->Hold(false);
    } else {
      BulkStream::Out hello;
      hello.header.type = FrameType::kBulkHello;
      stream->Push(std::move(hello));
    }
  }
  const bool serves = Current(link.peer) == &link || !Current(link.peer)->up;
  link.up = true;
  link.asked = false;
  link.shared->streams = static_cast<int>(link.count);
  port_->BulkUp(link.id);
  const LinkId id = link.id;
  if (handler_ != nullptr && serves) {
    handler_->OnBulkUp(link.peer, static_cast<int>(link.count));
  }
  if (Link* l = Find(id)) {
    for (auto& stream : l->streams) {
      if (stream && l->blobs.waiting()) stream->Kick();
    }
  }
}

// ---- BulkStream::Owner

uint8_t* DataPlane::OnStreamHeader(BulkStream* stream, const FrameHeader& header) {
  const Link* link = Find(stream->link());
  if (link == nullptr) return nullptr;
  if (header.type == FrameType::kChunk) {
    return handler_ == nullptr ? nullptr : handler_->OnHeader(link->peer, stream->index(), header);
  }
  uint8_t* into = nullptr;
  const LinkId id = link->id;
  const PeerId peer = link->peer;
  const auto verdict = receiver_.Header(id, header, &into);
  if (verdict == BlobReceiver::Verdict::kProtocol) {
    OnStreamFailed(stream, Error(ErrorKind::kProtocol, "state transfer",
                                 "sent a slice of a blob that does not fit its place"));
    return nullptr;
  }
  if (verdict == BlobReceiver::Verdict::kMismatch || verdict == BlobReceiver::Verdict::kCancelled) {
    for (const auto& buffer : receiver_.RemoveLinkKey({id, header.round})) {
      for (auto& other : links_.at(id).streams) {
        if (other) other->DrainIfInto(buffer.begin, buffer.begin + buffer.size);
      }
    }
    const bool cancelled = verdict == BlobReceiver::Verdict::kCancelled;
    BlobFailed(id, header.round,
               Error(cancelled ? ErrorKind::kAborted : ErrorKind::kMismatch, "state transfer",
                     cancelled ? "peer " + ShortId(peer) + " called the transfer off"
                               : "peer " + ShortId(peer) + " sends a blob of " +
                                     std::to_string(BlobSize(header)) +
                                     " bytes, which is not the size that was agreed",
                     peer));
  }
  return into;
}

void DataPlane::OnStreamPayload(BulkStream* stream, const FrameHeader& header) {
  Link* link = Find(stream->link());
  if (link == nullptr) return;
  if (header.type == FrameType::kBulkHello) {
    stream->Hold(true);  // chunks may follow before the other streams are acknowledged
    return MaybeUp(*link);
  }
  if (header.type == FrameType::kChunk) {
    if (handler_ != nullptr) handler_->OnPayload(link->peer, stream->index(), header);
    return;
  }
  if (!receiver_.Landed(link->id, header)) return;
  Event event;
  event.type = Event::Type::kBlob;
  event.link = link->id;
  event.peer = link->peer;
  event.seq = header.round;
  events_->Push(std::move(event));
}

bool DataPlane::NextBlobSlice(BulkStream* stream, BulkStream::Out* out) {
  Link* link = Find(stream->link());
  BlobSender::Slice slice;
  if (link == nullptr || !link->up || !link->blobs.Next(&slice)) return false;
  out->header = slice.header;
  Stamped(&out->header);
  out->payload = slice.data;
  out->kind = BulkStream::Out::Kind::kBlob;
  out->blob = slice.blob;
  return true;
}

void DataPlane::OnStreamSent(BulkStream* stream, BulkStream::Out& out) {
  Link* link = Find(stream->link());
  if (link == nullptr) return;
  if (out.kind == BulkStream::Out::Kind::kBlob) {
    link->blobs.Sent(out.blob);
  } else if (out.kind == BulkStream::Out::Kind::kHandler && handler_ != nullptr) {
    handler_->OnSent(link->peer, stream->index(), out.cookie);
  }
}

// Only the control thread takes links down: it may know a better reason, and then tells us.
void DataPlane::OnStreamFailed(BulkStream* stream, const Error& why) {
  Link* link = Find(stream->link());
  if (link == nullptr) return;
  Error full = why;
  full.peer = link->peer;
  full.text = "peer " + ShortId(link->peer) + " " + why.text;
  stream->Abandon();
  port_->StreamFailed(link->id, full);
}

void DataPlane::OnStreamBytes(BulkStream* stream, uint64_t read, uint64_t written) {
  totals_->bytes_received += read;
  totals_->bytes_sent += written;
  if (Link* link = Find(stream->link())) {
    link->shared->bulk_received += read;
    link->shared->bulk_sent += written;
  }
}

// ---- BulkTransport

void DataPlane::Stamped(FrameHeader* header) const {
  if (header->run == 0) header->run = stamp_->run;
  if (header->lineage == 0) header->lineage = stamp_->lineage;
  if (header->epoch == 0) header->epoch = stamp_->epoch;
}

int DataPlane::Streams(const PeerId& peer) const {
  const Link* link = Current(peer);
  return link != nullptr && link->up ? static_cast<int>(link->count) : 0;
}

void DataPlane::WantStreams(const PeerId& peer) {
  Link* link = Current(peer);
  if (link != nullptr && !link->up) return Ask(*link);
  // Never from within the call: the caller is in the middle of something.
  loop_.Post([this, peer] {
    if (handler_ == nullptr) return;
    if (const int streams = Streams(peer)) return handler_->OnBulkUp(peer, streams);
    if (Link* late = Current(peer)) return Ask(*late);
    handler_->OnBulkDown(
        peer, Error(ErrorKind::kClosed, "bulk", "there is no link to peer " + ShortId(peer), peer));
  });
}

void DataPlane::Send(const PeerId& to, int stream, const FrameHeader& header, const void* payload,
                     uint64_t cookie) {
  Link* link = Current(to);
  // No such stream: OnBulkDown has been called, or is about to be.
  if (link == nullptr || !link->up || stream < 0 || stream >= static_cast<int>(link->count)) return;
  BulkStream::Out out;
  out.header = header;
  Stamped(&out.header);
  out.payload = static_cast<const uint8_t*>(payload);
  out.kind = BulkStream::Out::Kind::kHandler;
  out.cookie = cookie;
  link->streams[stream]->Push(std::move(out));
}

void DataPlane::SendControl(const PeerId& to, const FrameHeader& header, const void* payload) {
  const Link* link = Current(to);
  if (link == nullptr) return;
  const size_t size = std::min(header.length, kMaxOpBytes);
  port_->SendControl(
      link->id, header,
      size == 0 ? std::string() : std::string(static_cast<const char*>(payload), size));
}

void DataPlane::ControlFrame(LinkId link, const FrameHeader& header, std::string payload) {
  loop_.Post([this, link, header, payload = std::move(payload)] {
    const Link* l = Find(link);
    if (l == nullptr || handler_ == nullptr) return;
    handler_->OnControl(l->peer, header, reinterpret_cast<const uint8_t*>(payload.data()));
  });
}

void DataPlane::Post(std::function<void()> work) { loop_.Post(std::move(work)); }

void DataPlane::PostAfter(int delay_ms, std::function<void()> work) {
  if (loop_.InLoop()) {
    loop_.After(delay_ms, std::move(work));
    return;
  }
  loop_.Post([this, delay_ms, work = std::move(work)] { loop_.After(delay_ms, work); });
}

void DataPlane::SetHandler(BulkHandler* handler) {
  loop_.RunSync([this, handler] {
    if (handler_ != nullptr && handler_ != handler) {
      // Its memory goes with it.
      for (auto& [id, link] : links_) {
        for (auto& stream : link.streams) {
          if (!stream) continue;
          stream->Disown(
              [](const BulkStream::Out& o) { return o.kind == BulkStream::Out::Kind::kHandler; });
          if (stream->Receiving(FrameType::kChunk)) stream->Drain();
        }
      }
    }
    handler_ = handler;
  });
}

}  // namespace decentral
