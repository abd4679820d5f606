// ControlPlane: from an address to a connection, and who plays which part in TLS.
#include "link/control_plane.h"

namespace decentral {

uint64_t ControlPlane::Dial(const DialOptions& options) {
  const uint64_t number = next_id_++;
  loop_.Post([this, number, options] { StartDial(number, options); });
  return number;
}

void ControlPlane::StartDial(uint64_t number, const DialOptions& options) {
  PendingDial& dial = dials_[number];
  dial.options = options;
  if (options.role_by_id && !options.has_expected) {
    return DialFailed(number, Error(ErrorKind::kConfig, "dial",
                                    "roles by peer id need to know the peer id to expect"));
  }
  dial.timer = loop_.After(options.timeout_ms, [this, number] { DialExpired(number); });
  dial.tcp =
      std::make_shared<TcpDial>(&loop_, gate_, options.host, options.port, options.local_port,
                                [this, number](Fd fd, const SockAddr& remote, const Error& why) {
                                  Connected(number, std::move(fd), remote, why);
                                });
  const auto tcp = dial.tcp;  // Connected may erase the dial
  if (options.role_by_id) {
    // The other end may have been quicker: its connection is here already.
    if (const auto literal = ParseLiteral(options.host, options.port)) {
      for (auto& [id, c] : connections_) {
        if (!c->inbound || c->dial != 0 || !(c->remote == *literal)) continue;
        const bool serving = c->phase == Phase::kHandshake && tls_.id() > options.expected;
        if (c->phase == Phase::kFirstByte || serving) {
          const ConnectionPtr found = c;
          return AdoptForDial(found, number);
        }
        if (c->phase == Phase::kUp && c->peer == options.expected) {
          return DialFailed(number, Error(ErrorKind::kAborted, "dial",
                                          "the other end's connection came first", c->peer));
        }
      }
    }
  }
  tcp->Start();
}

void ControlPlane::Connected(uint64_t number, Fd fd, const SockAddr& remote, const Error& why) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  if (why) return DialFailed(number, why);
  const DialOptions& options = at->second.options;
  ConnectionPtr c = NewConnection(std::move(fd), remote);
  c->target = at->second.tcp->target();
  c->dial = number;
  at->second.connection = c->id;
  Watch(c);
  std::optional<PeerId> expected;
  if (options.has_expected) expected = options.expected;
  BeginTls(c, !options.role_by_id || tls_.id() < options.expected, expected);
}

// The simultaneous open's connection came in through the listener.
void ControlPlane::AdoptForDial(const ConnectionPtr& c, uint64_t number) {
  PendingDial& dial = dials_.at(number);
  dial.tcp->Cancel();
  dial.connection = c->id;
  c->dial = number;
  c->inbound = false;
  c->target = dial.tcp->target();
  if (c->phase == Phase::kFirstByte) {
    BeginTls(c, tls_.id() < dial.options.expected, dial.options.expected);
  }
}

void ControlPlane::BeginTls(const ConnectionPtr& c, bool client,
                            const std::optional<PeerId>& expected) {
  c->tls_client = client;
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
  if (ConnectionPtr c = Find(dial.connection)) {
    return Fail(c, Error(ErrorKind::kUnreachable, "handshake",
                         target + " accepts connections, but did not finish the handshake within " +
                             limit));
  }
  const bool resolving = dial.tcp->resolving();
  DialFailed(number, Error(ErrorKind::kUnreachable, "dial",
                           resolving ? "the name in " + target + " did not resolve within " + limit
                                     : target + " did not answer within " + limit));
}

void ControlPlane::DialFailed(uint64_t number, const Error& why) {
  const auto at = dials_.find(number);
  if (at == dials_.end()) return;
  if (at->second.tcp) at->second.tcp->Cancel();
  if (at->second.timer != 0) loop_.Cancel(at->second.timer);
  Event event;
  event.type = Event::Type::kDialFailed;
  event.dial = number;
  event.address = HostPort(at->second.options.host, at->second.options.port);
  event.error = why;
  if (why.peer == PeerId{} && at->second.options.has_expected) {
    event.error.peer = at->second.options.expected;
  }
  event.peer = event.error.peer;
  dials_.erase(at);
  events_->Push(std::move(event));
}

}  // namespace decentral
