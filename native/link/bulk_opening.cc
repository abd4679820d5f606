// ControlPlane: opening a link's bulk streams.
//
//   acceptor                              dialer (the TLS client of the control stream)
//      │ ◀──────── kBulkWanted ────────────── │   only if the dialer is the one who wants
//      │ ───────── kBulkWanted {token} ─────▶ │   over the control stream
//      │ ◀════ N × (TCP, TLS, kBulkHello {token, index, N}) ═ │
//      │ ════ N × kBulkHello {} ════════════▶ │   once all N are bound: OnBulkUp on both ends
//
// The same again, with the number of further streams in kBulkWanted's tag, adds to what is open.
#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>

#include "link/control_plane.h"

namespace decentral {

void ControlPlane::WantBulk(LinkId link) {
  loop_.Post([this, link] {
    const ConnectionPtr c = FindLink(link);
    if (!c || c->bulk != BulkState::kNone) return;
    AskForBulk(c);
  });
}

void ControlPlane::GrowBulk(LinkId link, int streams) {
  loop_.Post([this, link, streams] {
    const ConnectionPtr c = FindLink(link);
    if (!c || c->bulk != BulkState::kUp || c->bulk_open >= streams) return;
    if (c->carrier) return;  // one connection carries no more for being cut finer
    c->bulk_more = std::min(streams, kMaxBulkStreams) - c->bulk_open;
    if (c->bulk_more > 0) AskForBulk(c);
  });
}

// Further streams have time: nobody waits for them, and giving up while the other end has them
// all would cost the link.
Clock::time_point ControlPlane::BulkDeadline(const Connection& c) const {
  const int patience = c.bulk_open > 0 ? 4 : 1;
  return Clock::now() + patience * std::chrono::milliseconds(options_.handshake_timeout_ms);
}

void ControlPlane::AskForBulk(const ConnectionPtr& c) {
  if (!c->tls_client) return IssueToken(c);
  c->bulk = BulkState::kOpening;
  c->bulk_deadline = BulkDeadline(*c);
  Queue(c, {.type = FrameType::kBulkWanted, .tag = static_cast<uint32_t>(c->bulk_more)}, "", 0);
}

void ControlPlane::IssueToken(const ConnectionPtr& c) {
  c->bulk = BulkState::kOpening;
  c->bulk_deadline = BulkDeadline(*c);
  c->bulk_bound = 0;
  c->bulk_count = 0;
  c->token.resize(kTokenBytes);
  if (RAND_bytes(reinterpret_cast<uint8_t*>(c->token.data()), kTokenBytes) != 1) {
    return BulkOpenFailed(c, Error(ErrorKind::kConfig, "bulk", "no random bytes to be had"), true);
  }
  const uint8_t flags = options_.encrypt_bulk ? 0 : kFlagPlain;
  const auto more = static_cast<uint32_t>(c->bulk_more);
  Queue(c, {.type = FrameType::kBulkWanted, .flags = flags, .tag = more}, c->token, 0);
}

void ControlPlane::OnBulkWanted(const ConnectionPtr& c, const FrameHeader& header,
                                const std::string& payload) {
  if (header.flags & kFlagFailed) {
    if (c->bulk != BulkState::kOpening) return;
    return BulkOpenFailed(
        c, Error(ErrorKind::kUnreachable, "bulk", Who(*c) + " could not open the bulk streams"),
        false);
  }
  const bool has_token = payload.size() == kTokenBytes;
  if (has_token != c->tls_client || (!has_token && !payload.empty())) {
    return Fail(c, Error(ErrorKind::kProtocol, "bulk",
                         Who(*c) + " took the wrong part in opening"
                                   " bulk streams"));
  }
  if (!c->shared->admitted) {
    c->bulk_asked_early = true;
    c->bulk_flags = header.flags;
    c->token = payload;
    return;
  }
  const bool first = c->bulk_open == 0;
  const int room = std::max(0, options_.max_bulk_streams - c->bulk_open);
  const int more =
      std::min(static_cast<int>(std::min<uint32_t>(header.tag, kMaxBulkStreams)), room);
  if (!first && more == 0) {  // enough for us
    if (!has_token) Queue(c, {.type = FrameType::kBulkWanted, .flags = kFlagFailed}, "", 0);
    return;
  }
  if (!has_token) {
    c->bulk_more = first ? 0 : more;
    if (c->bulk == (first ? BulkState::kNone : BulkState::kUp)) IssueToken(c);
    return;
  }
  if (c->bulk_dialling) return;
  c->bulk_more = first ? 0 : more;
  c->token.clear();
  OpenStreams(c, payload, (header.flags & kFlagPlain) && !options_.encrypt_bulk);
}

void ControlPlane::OpenStreams(const ConnectionPtr& c, const std::string& token, bool plain) {
  c->bulk = BulkState::kOpening;
  c->bulk_deadline = BulkDeadline(*c);
  const int count = c->bulk_more > 0 ? c->bulk_more : options_.bulk_streams;
  c->bulk_count = std::clamp(count, 1, kMaxBulkStreams - c->bulk_open);
  c->token = token;
  c->bulk_dialling = true;
  if (c->carrier) return OpenLanes(c, plain);
  if (c->relayed) {
    return BulkOpenFailed(
        c, Error(ErrorKind::kConfig, "bulk", "a relayed link has bulk streams only on a carrier"),
        true);
  }
  std::vector<std::shared_ptr<TcpDial>> dials;
  for (int i = 0; i < c->bulk_count; ++i) {
    dials.push_back(std::make_shared<TcpDial>(
        &loop_, gate_, TcpDialOptions{.port = c->remote.port()},
        [this, link = c->id, i, plain](Fd fd, const SockAddr& remote, const Error& why) {
          BulkConnected(link, i, plain, std::move(fd), remote, why);
        }));
  }
  c->bulk_dials = dials;
  for (auto& dial : dials) dial->StartAt(c->remote);
}

void ControlPlane::BulkConnected(LinkId link, int index, bool plain, Fd fd, const SockAddr& remote,
                                 const Error& why) {
  const ConnectionPtr owner = FindLink(link);
  if (!owner || owner->bulk != BulkState::kOpening) return;
  if (why) {
    return BulkOpenFailed(
        owner,
        Error(ErrorKind::kUnreachable, "bulk",
              "no bulk stream to " + Who(*owner) + " could be opened: " + why.text),
        true);
  }
  ConnectionPtr c = NewConnection(std::move(fd), remote);
  c->carrier = owner->carrier;
  c->bulk_of = link;
  c->bulk_index = index;
  c->tls_client = true;
  if (plain) {
    c->stream = std::make_unique<Stream>(std::move(c->fd));
    Watch(c);
    return SendHello(c);
  }
  c->stream =
      tls_.Client(std::move(c->fd), {kAlpnBulk + std::to_string(owner->version)}, owner->peer);
  c->phase = Phase::kHandshake;
  Watch(c);
  OnHandshake(c);
}

void ControlPlane::SendHello(const ConnectionPtr& c) {
  const ConnectionPtr link = FindLink(c->bulk_of);
  if (!link) return Drop(c);
  FrameHeader hello{.type = FrameType::kBulkHello, .length = kTokenBytes};
  hello.tag = static_cast<uint32_t>(c->bulk_index);
  hello.attempt = static_cast<uint32_t>(link->bulk_count);
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(hello, bytes);
  const iovec parts[2] = {{bytes, sizeof bytes}, {link->token.data(), link->token.size()}};
  const IoResult put = c->stream->Write(parts, 2);
  if (put.status != IoStatus::kOk || put.bytes != sizeof bytes + kTokenBytes ||
      c->stream->Flush() == IoStatus::kEof) {
    return Fail(c, Error(ErrorKind::kClosed, "bulk", Who(*link) + " closed a new bulk stream"));
  }
  HandOver(c, link->id, c->bulk_index, link->bulk_count);
}

void ControlPlane::OnBulkHello(const ConnectionPtr& c) {
  constexpr size_t kWhole = FrameHeader::kSize + kTokenBytes;
  uint8_t buffer[kWhole];
  while (c->hello.size() < kWhole) {
    const IoResult got = c->stream->Read(buffer, kWhole - c->hello.size());
    if (got.status == IoStatus::kAgain) return UpdateInterest(*c);
    if (got.status != IoStatus::kOk) return Drop(c);
    c->hello.append(reinterpret_cast<const char*>(buffer), got.bytes);
  }
  BindBulk(c);
}

// Which link does it belong to? The token says it, and under TLS the peer's key must agree.
void ControlPlane::BindBulk(const ConnectionPtr& c) {
  const auto header = DecodeHeader(reinterpret_cast<const uint8_t*>(c->hello.data()), kTokenBytes);
  ConnectionPtr owner;
  if (header && header->type == FrameType::kBulkHello && header->length == kTokenBytes) {
    const char* shown = c->hello.data() + FrameHeader::kSize;
    for (auto& [id, link] : connections_) {
      if (link->phase == Phase::kUp && !link->tls_client && link->bulk == BulkState::kOpening &&
          link->token.size() == kTokenBytes &&
          CRYPTO_memcmp(link->token.data(), shown, kTokenBytes) == 0) {
        owner = link;
        break;
      }
    }
  }
  const bool fits =
      owner && header->attempt >= 1 &&
      header->attempt <= static_cast<uint32_t>(kMaxBulkStreams - owner->bulk_open) &&
      header->tag < header->attempt &&
      (owner->bulk_count == 0 || owner->bulk_count == static_cast<int>(header->attempt)) &&
      !(owner->bulk_bound >> header->tag & 1) && (!c->stream->tls() || c->peer == owner->peer);
  if (!fits) {
    ++totals_->protocol_errors;
    return Drop(c);
  }
  owner->bulk_count = static_cast<int>(header->attempt);
  owner->bulk_bound |= uint64_t{1} << header->tag;
  HandOver(c, owner->id, static_cast<int>(header->tag), owner->bulk_count);
  const uint64_t all = ~uint64_t{0} >> (64 - owner->bulk_count);
  if (owner->bulk_bound == all) owner->token.clear();  // used up
}

void ControlPlane::HandOver(const ConnectionPtr& c, LinkId link, int index, int count) {
  Meter(*c);
  loop_.Remove(c->stream->fd());
  c->stream->LimitReads(nullptr);
  std::unique_ptr<Stream> stream = std::move(c->stream);
  c->phase = Phase::kLinger;  // only to be dropped: it owns nothing any more
  Drop(c);
  data_->AddStream(link, index, count, std::move(stream));
}

void ControlPlane::BulkUp(LinkId link) {
  loop_.Post([this, link] {
    if (const ConnectionPtr c = FindLink(link)) {
      c->bulk = BulkState::kUp;
      c->bulk_open += c->bulk_count;
      c->bulk_more = 0;
      c->bulk_dialling = false;
      c->bulk_dials.clear();
      c->token.clear();
    }
  });
}

// The link itself lives on: the layer above may still need its control stream, and may ask again.
// So do the streams that it has, if these were to be further ones.
void ControlPlane::BulkOpenFailed(const ConnectionPtr& link, const Error& why, bool tell_peer) {
  if (link->bulk != BulkState::kOpening) return;
  link->bulk = link->bulk_open > 0 ? BulkState::kUp : BulkState::kNone;
  link->bulk_more = 0;
  link->bulk_dialling = false;
  link->token.clear();
  for (auto& dial : link->bulk_dials) dial->Cancel();
  link->bulk_dials.clear();
  std::vector<ConnectionPtr> opening;
  for (auto& [id, c] : connections_) {
    if (c->bulk_of == link->id) opening.push_back(c);
  }
  for (auto& c : opening) Drop(c);
  Error with_peer = why;
  with_peer.peer = link->peer;
  data_->BulkFailed(link->id, with_peer);
  if (tell_peer) Queue(link, {.type = FrameType::kBulkWanted, .flags = kFlagFailed}, "", 0);
}

void ControlPlane::StreamFailed(LinkId link, const Error& why, bool opening) {
  loop_.Post([this, link, why, opening] {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    // Not kOpening: this attempt was given up already, and its streams are being closed.
    if (opening) return BulkOpenFailed(c, why, true);
    // What came over the control stream before says more than a closed bulk stream.
    if (why.kind == ErrorKind::kClosed) ReadFrames(c);
    if (!c->gone) Fail(c, why);
  });
}

}  // namespace decentral
