// ControlPlane: from an address to a connection, and who plays which part in TLS.
#include "core/failpoint.h"
#include "link/control_plane.h"

namespace decentral {
namespace {

constexpr int kMaxSockets = 512;
constexpr int kMaxSpray = 8192;

}  // namespace

uint64_t ControlPlane::Dial(const DialOptions& options) { return Post(Purpose::kLink, options); }

uint64_t ControlPlane::Post(Purpose purpose, const DialOptions& options) {
  const uint64_t number = next_id_++;
  loop_.Post([this, number, purpose, options] { StartDial(number, purpose, options); });
  return number;
}

bool ControlPlane::IsClient(const DialOptions& options) const {
  if (options.role == Role::kById) return tls_.id() < options.expected;
  return options.role == Role::kClient;
}

Error ControlPlane::CheckDial(const DialOptions& options) const {
  const auto wrong = [](const char* says) { return Error(ErrorKind::kConfig, "dial", says); };
  const bool birthday = options.sockets != 1 || options.spray != 0;
  if (options.role != Role::kClient && !options.has_expected) {
    return wrong("this role in TLS needs to know the peer id to expect");
  }
  const std::string& token = options.relay_token;
  if (!token.empty() && (token.size() != kRelayTokenBytes || options.relay_side > 1)) {
    return wrong("a relay's token has 32 bytes, and the side is 0 or 1");
  }
  if (!birthday) return Error();
  if (options.role != Role::kById || !token.empty() || !ParseLiteral(options.host, options.port)) {
    return wrong("many attempts at once need an address in digits, and roles by peer id");
  }
  if (options.sockets < 1 || options.sockets > kMaxSockets || options.spray < 0 ||
      options.spray > kMaxSpray || (options.sockets > 1) == (options.spray > 0)) {
    return wrong("many attempts at once: up to 512 sockets, or a spray of up to 8192");
  }
  if ((options.spray > 0) != (options.local_port != 0)) {
    return wrong("a spray has a local port, many sockets have none");
  }
  return Error();
}

void ControlPlane::StartDial(uint64_t number, Purpose purpose, const DialOptions& options) {
  PendingDial& dial = dials_[number];
  dial.options = options;
  dial.purpose = purpose;
  dial.timer = loop_.After(options.timeout_ms, [this, number] { DialExpired(number); });
  TcpDialOptions how;
  how.host = options.host;
  how.port = options.port;
  how.local_port = options.local_port;
  how.patient = purpose == Purpose::kLink && options.local_port != 0;
  const auto tcp = std::make_shared<TcpDial>(
      &loop_, gate_, how, [this, number](Fd fd, const SockAddr& remote, const Error& why) {
        Connected(number, std::move(fd), remote, why);
      });
  dial.tcp = tcp;  // Connected may erase the dial
  if (const Error wrong = CheckDial(options)) return DialFailed(number, wrong);
  const bool meets = options.role != Role::kClient && options.relay_token.empty();
  if (meets && AdoptEarlier(number, options)) return;
  if (options.sockets > 1 || options.spray > 0) return StartBirthday(number);
  tcp->Start();
}

// The other end may have been quicker: its connection is here already.
bool ControlPlane::AdoptEarlier(uint64_t number, const DialOptions& options) {
  const auto literal = ParseLiteral(options.host, options.port);
  if (!literal) return false;
  for (auto& [id, c] : connections_) {
    if (!c->inbound || c->dial != 0 || c->further_lane || !(c->remote == *literal)) continue;
    const bool serving = c->phase == Phase::kHandshake && !IsClient(options);
    if (c->phase == Phase::kFirstByte || serving) {
      const ConnectionPtr found = c;
      AdoptForDial(found, number);
      return true;
    }
    if (c->phase == Phase::kUp && c->peer == options.expected) {
      DialFailed(number, Error(ErrorKind::kAborted, "dial", "the other end's connection came first",
                               c->peer));
      return true;
    }
  }
  return false;
}

void ControlPlane::Connected(uint64_t number, Fd fd, const SockAddr& remote, const Error& why) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  if (why) return DialFailed(number, why);
  if (at->second.purpose == Purpose::kKnock) return Knocked(number, remote);
  const ConnectionPtr c = ConnectedFor(number, std::move(fd), remote);
  at->second.connection = c->id;
  if (at->second.purpose == Purpose::kReflexive) return AskAddress(c);
  Begin(c, DialOptions(at->second.options));  // a copy: should it fail, the dial is gone
}

ControlPlane::ConnectionPtr ControlPlane::ConnectedFor(uint64_t number, Fd fd,
                                                       const SockAddr& remote) {
  ConnectionPtr c = NewConnection(std::move(fd), remote);
  const PendingDial& dial = dials_.at(number);
  if (!dial.birthday) c->target = dial.tcp->target();
  c->dial = number;
  Watch(c);
  return c;
}

// The connection stands. The TLS client speaks first, and whether it wants a carrier shows then.
void ControlPlane::Begin(const ConnectionPtr& c, const DialOptions& options) {
  c->inbound = !IsClient(options);
  if (!options.relay_token.empty() && !SayRelayHello(c, options)) return;
  if (!IsClient(options)) return;  // kFirstByte
  if (options.carrier && !PutOnCarrier(c, true)) return;
  std::optional<PeerId> expected;
  if (options.has_expected) expected = options.expected;
  BeginTls(c, true, expected);
}

// The simultaneous open's connection came in through the listener.
void ControlPlane::AdoptForDial(const ConnectionPtr& c, uint64_t number) {
  PendingDial& dial = dials_.at(number);
  dial.tcp->Cancel();
  dial.connection = c->id;
  c->dial = number;
  c->target = dial.tcp->target();
  if (c->phase == Phase::kFirstByte) Begin(c, DialOptions(dial.options));
}

// A link that came in by itself may be the one that a dial was about.
void ControlPlane::FindDialOf(const ConnectionPtr& c) {
  if (c->dial != 0 || !c->inbound) return;
  for (const auto& [number, dial] : dials_) {
    const DialOptions& options = dial.options;
    if (options.role == Role::kClient || !options.relay_token.empty()) continue;
    if (dial.connection == 0 && options.expected == c->peer) {
      c->dial = number;
      return;
    }
  }
}

// One of many may fail; the dial goes on.
void ControlPlane::FailDialOf(const ConnectionPtr& c, const Error& why) {
  const auto at = dials_.find(c->dial);
  if (at != dials_.end() && at->second.connection == c->id) DialFailed(c->dial, why);
}

void ControlPlane::BeginTls(const ConnectionPtr& c, bool client,
                            const std::optional<PeerId>& expected) {
  if (FailHere(client ? Failpoint::kHandshakeDial : Failpoint::kHandshakeAccept)) {
    return Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                         c->target + ": a failpoint broke the connection"));
  }
  c->tls_client = client;
  c->inbound = !client;
  c->stream = client ? tls_.Client(std::move(c->fd), tls_.ControlAlpn(), expected)
                     : tls_.Server(std::move(c->fd), expected);
  c->shared->read_limit = options_.max_unadmitted_bytes;
  c->stream->LimitReads({c->shared, &c->shared->read_limit});
  c->phase = Phase::kHandshake;
  OnHandshake(c);
}

void ControlPlane::DialExpired(uint64_t number) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  const PendingDial& dial = at->second;
  const std::string target = dial.tcp->target();
  const std::string limit = std::to_string(dial.options.timeout_ms) + " ms";
  if (ConnectionPtr c = Find(dial.connection); c && c->relayed) {
    return Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                         "the other end was not to be met at " + c->target + " within " + limit));
  }
  if (ConnectionPtr c = Find(dial.connection)) {
    return Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                         target + " accepts connections, but did not finish the handshake within " +
                             limit));
  }
  if (dial.birthday) {
    return DialFailed(
        number, Error(ErrorKind::kUnreachable, "dial",
                      "none of many attempts met the peer at " + target + " within " + limit));
  }
  const bool resolving = dial.tcp->resolving();
  DialFailed(number, Error(ErrorKind::kUnreachable, "dial",
                           resolving ? "the name in " + target + " did not resolve within " + limit
                                     : target + " did not answer within " + limit));
}

void ControlPlane::DialFailed(uint64_t number, const Error& why) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  Event event;
  event.type = Event::Type::kDialFailed;
  event.dial = number;
  event.address = HostPort(at->second.options.host, at->second.options.port);
  event.error = why;
  if (why.peer == PeerId{} && at->second.options.has_expected) {
    event.error.peer = at->second.options.expected;
  }
  event.peer = event.error.peer;
  DialDone(number);
  events_->Push(std::move(event));
}

void ControlPlane::DialDone(uint64_t number) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  at->second.tcp->Cancel();
  loop_.Cancel(at->second.timer);
  const bool many = at->second.birthday != nullptr;
  dials_.erase(at);
  if (!many) return;
  std::vector<ConnectionPtr> others;
  for (const auto& [id, c] : connections_) {
    if (c->dial == number && c->phase != Phase::kUp) others.push_back(c);
  }
  for (const auto& c : others) Drop(c);
}

}  // namespace decentral
