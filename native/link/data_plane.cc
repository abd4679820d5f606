#include "link/data_plane.h"

#include <algorithm>

#include "link/tls.h"

namespace decentral {
namespace {

// What the kernel may hold of a link beyond what is on the wire. Of many streams each is slow: what
// it holds arrives late, while others run dry.
constexpr int kUnsentPerLink = 1 << 20;
constexpr int kMinUnsent = 16 << 10;
constexpr int kLeanUnsentPerLink = 128 << 10;

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
      .count();
}

}  // namespace

DataPlane::DataPlane(const EndpointOptions& options, EventQueue* events, EndpointMeters* meters,
                     Stamp* stamp)
    : options_(options),
      events_(events),
      totals_(meters),
      stamp_(stamp),
      gate_(options.max_upload_bytes_s) {}

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
    Link& fresh = links_.emplace(link, Link(options_.max_bulk_streams)).first->second;
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
    Link* l = Find(link);
    if (l == nullptr) return;
    if (l->up) return CloseAll(&l->opening);  // it keeps what it has
    TakeDown(*l, why, false);
  });
}

void DataPlane::CloseAll(std::vector<std::unique_ptr<BulkStream>>* streams) {
  for (auto& stream : *streams) {
    if (!stream) continue;
    stream->Close();
    graveyard_.push_back(std::move(stream));
  }
  streams->clear();
  loop_.Post([this] { graveyard_.clear(); });
}

void DataPlane::TakeDown(Link& link, const Error& why, bool link_gone) {
  CloseAll(&link.streams);
  CloseAll(&link.opening);
  const bool used = link.up || link.asked;
  const LinkId id = link.id;
  const PeerId peer = link.peer;
  link.up = link.asked = false;
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
    if (l == nullptr) return;  // too late: the stream closes with the holder
    if (!l->up) l->asked = true;
    if (l->opening.size() != static_cast<size_t>(count)) CloseAll(&l->opening);
    l->opening.resize(count);
    BulkStreamOptions options;
    options.link = link;
    options.index = static_cast<int>(l->streams.size()) + index;
    options.max_chunk_bytes = options_.max_chunk_bytes;
    options.congestion = options_.congestion;
    options.gate = gate_.capped() ? &gate_ : nullptr;
    auto& slot = l->opening[index];
    slot = std::make_unique<BulkStream>(static_cast<BulkStream::Owner*>(this), &loop_,
                                        std::move(*holder), options);
    slot->Start(!l->dialer);
    MaybeUp(*l);
  });
}

// All streams are bound (acceptor), or the acceptor has said so on each (dialer).
void DataPlane::MaybeUp(Link& link) {
  if (link.opening.empty()) return;
  for (const auto& stream : link.opening) {
    if (!stream || stream->closed() || (link.dialer && !stream->acknowledged())) return;
  }
  for (auto& stream : link.opening) {
    if (link.dialer) {
      stream->Hold(false);
    } else {
      BulkStream::Out hello;
      hello.header.type = FrameType::kBulkHello;
      stream->Push(std::move(hello));
    }
  }
  const bool serves = Current(link.peer) == &link || !Current(link.peer)->up;
  for (auto& stream : link.opening) link.streams.push_back(std::move(stream));
  link.opening.clear();
  LimitUnsent(link, link.lean);
  link.up = true;
  link.asked = false;
  const int count = static_cast<int>(link.streams.size());
  link.shared->streams = count;
  port_->BulkUp(link.id);
  const LinkId id = link.id;
  if (handler_ != nullptr && serves) handler_->OnBulkUp(link.peer, count);
  if (Link* l = Find(id)) {
    for (auto& stream : l->streams) {
      if (stream && l->blobs.waiting()) stream->Kick();
    }
  }
}

void DataPlane::LimitUnsent(Link& link, bool lean) {
  link.lean = lean;
  const int bytes = lean ? kLeanUnsentPerLink : kUnsentPerLink;
  for (auto& stream : link.streams) {
    stream->LimitUnsent(std::max<int>(kMinUnsent, bytes / static_cast<int>(link.streams.size())));
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
  if (link == nullptr || !link->up || !link->blobs.waiting()) return false;
  if (!BlobMayGo() || !link->blobs.Next(&slice)) return false;
  if (!link->lean && NowMs() >= yield_.quiet_at_ms()) LimitUnsent(*link, true);
  out->header = slice.header;
  Stamped(&out->header);
  out->payload = slice.data;
  out->kind = BulkStream::Out::Kind::kBlob;
  out->blob = slice.blob;
  return true;
}

bool DataPlane::BlobMayGo() {
  const int64_t now_ms = NowMs();
  if (yield_.MayGo(now_ms)) return true;
  KickWhenQuiet(now_ms);
  return false;
}

void DataPlane::OnStreamSent(BulkStream* stream, BulkStream::Out& out) {
  Link* link = Find(stream->link());
  if (link == nullptr) return;
  if (out.kind == BulkStream::Out::Kind::kBlob) {
    link->blobs.Sent(out.blob);
  } else if (out.kind == BulkStream::Out::Kind::kHandler) {
    yield_.Collective(NowMs(), out.header.length);
    if (handler_ != nullptr) handler_->OnSent(link->peer, stream->index(), out.cookie);
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
  const bool opening = std::any_of(link->opening.begin(), link->opening.end(),
                                   [&](const auto& other) { return other.get() == stream; });
  port_->StreamFailed(link->id, full, opening);
}

void DataPlane::OnStreamBytes(BulkStream* stream, uint64_t read, uint64_t written) {
  totals_->bytes_received += read;
  totals_->bytes_sent += written;
  if (Link* link = Find(stream->link())) {
    link->shared->bulk_received += read;
    link->shared->bulk_sent += written;
  }
  bulk_received_ += read;
  bulk_sent_ += written;
  Watch();
}

void DataPlane::OnStreamThrottled(BulkStream*) {
  if (throttled_) return;
  throttled_ = true;
  loop_.After(UploadGate::kRetryMs, [this] {
    throttled_ = false;
    KickAll();
  });
}

// Whoever comes first may take all that the upload gate lets through: each time another link does.
void DataPlane::KickAll() {
  auto first = links_.upper_bound(kicked_first_);
  if (first == links_.end()) first = links_.begin();
  if (first == links_.end()) return;
  kicked_first_ = first->first;
  auto at = first;
  do {
    for (auto& stream : at->second.streams) stream->Kick();
    if (++at == links_.end()) at = links_.begin();
  } while (at != first);
}

void DataPlane::KickWhenQuiet(int64_t now_ms) {
  if (yielding_) return;
  yielding_ = true;
  // Not only then: what collectives leave over may go meanwhile.
  const int64_t wait_ms = std::min<int64_t>(yield_.quiet_at_ms() - now_ms, 20);
  loop_.After(static_cast<int>(std::max<int64_t>(wait_ms, 1)), [this] {
    yielding_ = false;
    KickAll();
  });
}

// ---- what the network can carry

void DataPlane::Watch() {
  if (watching_) return;
  watching_ = true;
  loop_.After(RateMeter::kSampleMs, [this] {
    watching_ = false;
    Sample();
  });
}

void DataPlane::Sample() {
  const int64_t now_ms = NowMs();
  up_meter_.Sample(now_ms, bulk_sent_);
  down_meter_.Sample(now_ms, bulk_received_);
  up_estimate_ = up_meter_.estimate();
  down_estimate_ = down_meter_.estimate();
  for (auto& [id, link] : links_) {
    if (!link.up) continue;
    const bool blocked = std::any_of(link.streams.begin(), link.streams.end(),
                                     [](const auto& stream) { return stream->blocked(); });
    const int open = static_cast<int>(link.streams.size());
    const int wanted =
        link.tuner.Sample(now_ms, link.shared->bulk_sent, blocked, link.shared->min_rtt_us, open);
    if (wanted > open && link.opening.empty()) port_->GrowBulk(id, wanted);
  }
  if (bulk_sent_ + bulk_received_ == watched_bytes_) return;  // quiet: the next byte wakes us
  watched_bytes_ = bulk_sent_ + bulk_received_;
  Watch();
}

void DataPlane::EndRatePeriod() {
  loop_.Post([this] {
    up_meter_.EndPeriod();
    down_meter_.EndPeriod();
  });
}

// ---- BulkTransport

void DataPlane::Stamped(FrameHeader* header) const {
  if (header->run == 0) header->run = stamp_->run;
  if (header->lineage == 0) header->lineage = stamp_->lineage;
  if (header->epoch == 0) header->epoch = stamp_->epoch;
}

int DataPlane::Streams(const PeerId& peer) const {
  const Link* link = Current(peer);
  return link != nullptr && link->up ? static_cast<int>(link->streams.size()) : 0;
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
                     uint64_t cookie, int priority) {
  Link* link = Current(to);
  // No such stream: OnBulkDown has been called, or is about to be.
  if (link == nullptr || !link->up) return;
  if (stream < 0 || stream >= static_cast<int>(link->streams.size())) return;
  BulkStream::Out out;
  out.header = header;
  Stamped(&out.header);
  out.payload = static_cast<const uint8_t*>(payload);
  out.kind = BulkStream::Out::Kind::kHandler;
  out.cookie = cookie;
  out.priority = static_cast<uint8_t>(priority);
  yield_.Collective(NowMs(), 0);
  if (link->lean) LimitUnsent(*link, false);
  link->streams[stream]->Push(std::move(out));
}

void DataPlane::SendControl(const PeerId& to, const FrameHeader& header, const void* payload) {
  const Link* link = Current(to);
  if (link == nullptr) return;
  if (header.type == FrameType::kOpReady) yield_.Collective(NowMs(), 0);
  const size_t size = std::min(header.length, kMaxOpBytes);
  port_->SendControl(
      link->id, header,
      size == 0 ? std::string() : std::string(static_cast<const char*>(payload), size));
}

void DataPlane::Quiet() { yield_.Over(NowMs()); }

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
