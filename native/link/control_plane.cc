#include "link/control_plane.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "link/crowding.h"

namespace decentral {
namespace {

constexpr uint8_t kTlsFirstByte = 0x16;                          // a handshake record
constexpr uint8_t kPlainFirstByte = FrameHeader::kMagic & 0xff;  // a kBulkHello in the clear
constexpr int kAcceptBatch = 64;
constexpr char kRelayGone[] =
    " closed the connection: the other end left it, or it relays this no more";
constexpr int kAcceptPauseMs = 100;

Clock::time_point In(int ms) { return Clock::now() + std::chrono::milliseconds(ms); }

}  // namespace

ControlPlane::ControlPlane(const EndpointOptions& options, const TlsContext& tls,
                           EventQueue* events, EndpointMeters* meters, Stamp* stamp)
    : options_(options),
      tls_(tls),
      events_(events),
      totals_(meters),
      stamp_(stamp),
      gate_(std::make_shared<ResolverGate>(&loop_)),
      relay_(options.relay_max_bytes_s,
             [this](const std::string& token, uint64_t bytes, const Error& why) {
               RelayEnded(token, bytes, why);
             }) {
  tick_ms_ = std::clamp(std::min({options.heartbeat_ms / 2, options.silence_limit_ms / 4,
                                  options.handshake_timeout_ms / 4}),
                        10, 250);
}

ControlPlane::~ControlPlane() { gate_->Close(); }

void ControlPlane::Start(DataPlane* data) {
  data_ = data;
  last_tick_ = Clock::now();
  loop_.Post([this] { Tick(); });
  loop_.Start();
}

void ControlPlane::Stop() {
  gate_->Close();
  loop_.RunSync([this] {
    FrameHeader bye{.type = FrameType::kRefuse, .flags = kFlagGoodbye};
    const Error why(ErrorKind::kAborted, "link", "this endpoint was closed");
    auto all = connections_;
    for (auto& [id, c] : all) {
      if (c->phase == Phase::kUp) Retire(c, why, bye, "the peer shut down");
    }
    all = connections_;
    for (auto& [id, c] : all) Drop(c);
    dials_.clear();
    if (listener_) loop_.Remove(listener_.get());
    listener_.reset();
  });
  carriers_.Stop();  // with our last words
  relay_.Stop();
  loop_.Stop();
}

ControlPlane::ConnectionPtr ControlPlane::Find(uint64_t id) const {
  const auto at = connections_.find(id);
  return at == connections_.end() ? nullptr : at->second;
}

ControlPlane::ConnectionPtr ControlPlane::FindLink(LinkId id) const {
  ConnectionPtr c = Find(id);
  return c && c->phase == Phase::kUp ? c : nullptr;
}

std::string ControlPlane::Who(const Connection& c) const {
  return "peer " + ShortId(c.peer) + " at " + c.remote.ToString();
}

ControlPlane::ConnectionPtr ControlPlane::NewConnection(Fd fd, const SockAddr& remote) {
  auto c = std::make_shared<Connection>(next_id_++, options_.max_message_bytes);
  TuneLinkSocket(fd.get(), {.silence_limit_ms = options_.silence_limit_ms, .control = false});
  c->fd = std::move(fd);
  c->remote = remote;
  c->target = remote.ToString();
  c->deadline = In(options_.handshake_timeout_ms);
  connections_[c->id] = c;
  return c;
}

// ---- from TCP to a link

uint16_t ControlPlane::Listen(const std::string& host, uint16_t port) {
  Fd fd = OpenListener(host, port);
  const uint16_t bound = LocalAddress(fd.get()).port();
  Error failed;
  loop_.RunSync([&] {
    if (listener_) {
      failed = Error(ErrorKind::kConfig, "listen", "this endpoint listens already");
      return;
    }
    listener_ = std::move(fd);
    loop_.Add(listener_.get(), Reactor::kRead, [this](uint32_t) { OnAccept(); });
  });
  if (failed) throw failed;
  return bound;
}

void ControlPlane::OnAccept() {
  for (int i = 0; i < kAcceptBatch; ++i) {
    SockAddr from;
    Fd fd = AcceptOne(listener_.get(), &from);
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        // The connection stays in the backlog: look again later instead of spinning on it.
        loop_.Modify(listener_.get(), 0);
        loop_.After(kAcceptPauseMs, [this] {
          if (listener_) loop_.Modify(listener_.get(), Reactor::kRead);
        });
      }
      return;
    }
    const ConnectionPtr c = Accepted(std::move(fd), from, nullptr);
    if (!c) continue;
    for (auto& [number, dial] : dials_) {
      if (dial.options.role == Role::kClient || dial.connection != 0) continue;
      if (dial.birthday && IsClient(dial.options) && dial.birthday->Matches(from)) {
        AdoptIfSilent(c, number);
      } else if (!dial.birthday && dial.options.relay_token.empty() && dial.tcp->Matches(from)) {
        AdoptForDial(c, number);
        break;
      }
    }
  }
}

ControlPlane::ConnectionPtr ControlPlane::Accepted(Fd fd, const SockAddr& from,
                                                   std::shared_ptr<Carrier> carrier) {
  if (half_open_ >= options_.max_half_open && !MakeRoom(from)) return nullptr;
  ConnectionPtr c = NewConnection(std::move(fd), from);
  c->further_lane = carrier != nullptr;
  c->carrier = std::move(carrier);
  c->inbound = true;
  c->half_open = true;
  ++half_open_;
  ++totals_->half_open;
  Watch(c);
  return c;
}

// Lets one stranger go for another. False if all places are taken by dials of our own.
bool ControlPlane::MakeRoom(const SockAddr& from) {
  ++totals_->refused;
  std::vector<Stranger> waiting;
  for (const auto& [number, c] : connections_) {
    const bool stranger = c->half_open && !c->shared->admitted;
    if (stranger && c->dial == 0) waiting.push_back({number, OriginOf(c->remote)});
  }
  const ConnectionPtr goes = Find(WhoHasToGo(waiting, OriginOf(from)));
  if (goes) {
    Fail(goes, Error(ErrorKind::kSilent, "admission",
                     goes->remote.ToString() + " was not admitted before others needed its place"));
  }
  return goes != nullptr;
}

void ControlPlane::Watch(const ConnectionPtr& c) {
  const int fd = c->stream ? c->stream->fd() : c->fd.get();
  // A weak pointer: the reactor must not keep alive what the table has dropped.
  loop_.Add(fd, Reactor::kRead, [this, weak = std::weak_ptr<Connection>(c)](uint32_t events) {
    if (auto self = weak.lock(); self && !self->gone) OnIo(self, events);
  });
}

void ControlPlane::UpdateInterest(Connection& c) {
  if (c.gone || !c.stream) return;
  const bool write = c.stream->unsent() || c.out_begin < c.out.size() || !c.queue.empty();
  loop_.Modify(c.stream->fd(), Reactor::kRead | (write ? Reactor::kWrite : 0));
}

void ControlPlane::OnIo(const ConnectionPtr& c, uint32_t events) {
  switch (c->phase) {
    case Phase::kFirstByte:
      OnFirstByte(c);
      break;
    case Phase::kHandshake:
      OnHandshake(c);
      break;
    case Phase::kRefusal:
      ReadFrames(c);
      break;
    case Phase::kUp:
      if (events & Reactor::kRead) ReadFrames(c);
      if (!c->gone && c->phase == Phase::kUp && (events & Reactor::kWrite)) WriteFrames(c);
      break;
    case Phase::kBulkHello:
      OnBulkHello(c);
      break;
    case Phase::kLinger:
      OnLinger(c);
      break;
    case Phase::kCarrier:
      OnCarrierPreamble(c);
      break;
    case Phase::kRelay:
      OnRelayHello(c);
      break;
    case Phase::kTellAddress:
      OnTellAddress(c);
      break;
    case Phase::kAskAddress:
      OnAskAddress(c);
      break;
  }
}

void ControlPlane::OnFirstByte(const ConnectionPtr& c) {
  uint8_t first = 0;
  const ssize_t n = recv(c->fd.get(), &first, 1, MSG_PEEK);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return HungUpEarly(c);
  if (first == kTlsFirstByte) {
    const auto dial = dials_.find(c->dial);
    std::optional<PeerId> expected;
    if (dial != dials_.end()) expected = dial->second.options.expected;
    return BeginTls(c, false, expected);
  }
  if (first == kCarrierPreamble[0] && !c->carrier) {
    c->phase = Phase::kCarrier;
    return OnCarrierPreamble(c);
  }
  if (first == kRelayByte && !c->carrier) {
    c->phase = Phase::kRelay;
    return OnRelayHello(c);
  }
  if (first == kTellAddressByte && !c->carrier) {
    c->phase = Phase::kTellAddress;
    return OnTellAddress(c);
  }
  if (first == kPlainFirstByte && !options_.encrypt_bulk) {
    c->stream = std::make_unique<Stream>(std::move(c->fd));
    c->phase = Phase::kBulkHello;
    return OnBulkHello(c);
  }
  ++totals_->protocol_errors;
  Fail(c, Error(ErrorKind::kNotDecentral, "handshake",
                c->target + " answers, but not with TLS: is it a web server?"));
}

// Before its first byte was understood.
void ControlPlane::HungUpEarly(const ConnectionPtr& c) {
  Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                c->target +
                    (c->relayed ? kRelayGone : " closed the connection before it said a word")));
}

void ControlPlane::OnHandshake(const ConnectionPtr& c) {
  const IoStatus status = c->stream->Handshake();
  Meter(*c);
  if (status == IoStatus::kOk) return HandshakeDone(c);
  if (status == IoStatus::kAgain) return UpdateInterest(*c);
  if (c->inbound && status != IoStatus::kEof) ++totals_->protocol_errors;
  Fail(c, HandshakeError(*c, status));
}

Error ControlPlane::HandshakeError(const Connection& c, IoStatus status) const {
  const Stream& s = *c.stream;
  if (s.verdict() != ErrorKind::kNone) {
    return Error(s.verdict(), "handshake", c.target + ": " + s.reason());
  }
  if (status == IoStatus::kEof && c.relayed) {
    return Error(ErrorKind::kUnreachable, "handshake", c.target + kRelayGone);
  }
  if (status == IoStatus::kEof) {
    return Error(ErrorKind::kUnreachable, "handshake",
                 c.target +
                     " closed the connection during the handshake: it is too busy, or it"
                     " is no decentral peer");
  }
  if (s.saw_tls_alert()) {
    return Error(ErrorKind::kNotDecentral, "handshake",
                 c.target + " speaks TLS, but not as a decentral peer (" + s.reason() + ")");
  }
  return Error(ErrorKind::kNotDecentral, "handshake",
               c.target + " answers, but not with TLS: is it a web server?");
}

void ControlPlane::HandshakeDone(const ConnectionPtr& c) {
  const std::string alpn = c->stream->alpn();
  c->peer = c->stream->peer();
  if (c->bulk_of != 0) {
    if (alpn.rfind(kAlpnBulk, 0) == 0) return SendHello(c);
    return Fail(c, Error(ErrorKind::kNotDecentral, "bulk", c->target + " takes no bulk streams"));
  }
  for (const uint16_t version : tls_.versions()) {  // a rogue server may pick what none offered
    if (alpn != kAlpnControl + std::to_string(version)) continue;
    c->version = version;
    return LinkUp(c);
  }
  if (alpn == kAlpnRefuse && c->tls_client) {
    c->phase = Phase::kRefusal;
    return ReadFrames(c);
  }
  if (alpn == kAlpnRefuse) {
    c->phase = Phase::kRefusal;
    ++totals_->refused;
    const Error why(ErrorKind::kVersionMismatch, "handshake",
                    c->target + " speaks none of the protocol versions " +
                        VersionList(tls_.versions()) + " that this peer speaks");
    return Retire(c, why, {.type = FrameType::kRefuse}, VersionList(tls_.versions()));
  }
  if (alpn.rfind(kAlpnBulk, 0) == 0 && !c->tls_client && c->dial == 0) {
    c->phase = Phase::kBulkHello;
    return OnBulkHello(c);
  }
  Fail(c, Error(ErrorKind::kNotDecentral, "handshake",
                c->target + " speaks TLS, but not the decentral protocol"));
}

void ControlPlane::LinkUp(const ConnectionPtr& c) {
  FindDialOf(c);
  c->phase = Phase::kUp;
  c->last_heard = Clock::now();
  {
    std::lock_guard<std::mutex> lock(registry_mutex_);
    registry_[c->id] = {c->shared, c->peer, c->tls_client, c->carrier};
  }
  Meter(*c);
  TuneLinkSocket(c->stream->fd(), {.silence_limit_ms = options_.silence_limit_ms, .control = true});
  if (c->dial != 0) DialDone(c->dial);
  ++totals_->links_up;
  Event event;
  event.type = Event::Type::kLinkUp;
  event.link = c->id;
  event.dial = c->dial;
  event.peer = c->peer;
  event.inbound = c->inbound;
  event.address = c->remote.ToString();
  event.carrier = c->carrier != nullptr;
  event.exporter = c->stream->Exporter();
  events_->Push(std::move(event));
  UpdateInterest(*c);
  ReadFrames(c);  // what came with the handshake's last bytes is inside OpenSSL already
}

void ControlPlane::Tick() {
  const auto now = Clock::now();
  const auto period = std::chrono::milliseconds(tick_ms_);
  // Had this very process been stopped, everybody would look silent: their words may be waiting
  // in our sockets. Whatever time we slept through does not count against them.
  const auto slept = now - last_tick_ > 3 * period ? now - last_tick_ - period : Clock::duration();
  last_tick_ = now;
  auto all = connections_;
  for (auto& [id, c] : all) {
    if (c->gone) continue;
    c->last_heard += slept;
    if (c->phase == Phase::kUp && c->shared->admitted) {
      CheckLiveness(c, now);
    } else if (now >= c->deadline) {
      const std::string limit = std::to_string(options_.handshake_timeout_ms) + " ms";
      if (c->phase == Phase::kUp) {
        Fail(c,
             Error(ErrorKind::kSilent, "admission", Who(*c) + " was not admitted within " + limit));
      } else {
        Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                      c->target + " accepts connections, but did not finish the handshake within " +
                          limit));
      }
    }
  }
  loop_.After(tick_ms_, [this] { Tick(); });
}

LinkStats ControlPlane::Stats(LinkId link) const {
  std::lock_guard<std::mutex> lock(registry_mutex_);
  const auto at = registry_.find(link);
  return at == registry_.end() ? LinkStats{} : Read(*at->second.shared);
}

// Of several links to one peer, the one with bulk streams serves.
LinkStats ControlPlane::StatsOf(const PeerId& peer) const {
  LinkStats out;
  std::lock_guard<std::mutex> lock(registry_mutex_);
  for (const auto& [id, link] : registry_) {
    if (link.peer != peer) continue;
    const LinkStats stats = Read(*link.shared);
    if (out.rtt_us == 0 || stats.bulk_streams > out.bulk_streams) out = stats;
  }
  return out;
}

LinkStats ControlPlane::Read(const LinkShared& m) {
  LinkStats out;
  out.control_bytes_sent = m.control_sent;
  out.control_bytes_received = m.control_received;
  out.bulk_bytes_sent = m.bulk_sent;
  out.bulk_bytes_received = m.bulk_received;
  out.queued_bytes = m.queued;
  out.rtt_us = m.rtt_us;
  out.min_rtt_us = m.min_rtt_us;
  out.bulk_streams = m.streams;
  out.carrier = m.carrier;
  return out;
}

}  // namespace decentral
