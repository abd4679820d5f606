// ControlPlane: dials that make many attempts at once (see birthday.h). TLS runs on each that
// completes, and the first link that is up is the dial's.
#include "link/control_plane.h"

namespace decentral {
namespace {

constexpr int kShyMs = 20;

}  // namespace

void ControlPlane::StartBirthday(uint64_t number) {
  PendingDial& dial = dials_.at(number);
  BirthdayOptions how;
  how.to = *ParseLiteral(dial.options.host, dial.options.port);
  how.local_port = dial.options.local_port;
  how.sockets = dial.options.sockets;
  how.spray = dial.options.spray;
  dial.birthday =
      std::make_unique<Birthday>(&loop_, how, [this, number](Fd fd, const SockAddr& remote) {
        // Not from within: the first that is up ends all attempts.
        auto holder = std::make_shared<Fd>(std::move(fd));
        loop_.Post([this, number, holder, remote] {
          if (dials_.count(number) == 0) return;
          const ConnectionPtr c = ConnectedFor(number, std::move(*holder), remote);
          Begin(c, DialOptions(dials_.at(number).options));
        });
      });
  // What came in before this dial began is as good.
  std::vector<ConnectionPtr> earlier;
  for (const auto& [id, c] : connections_) {
    if (c->inbound && c->dial == 0 && !c->further_lane && dial.birthday->Matches(c->remote)) {
      earlier.push_back(c);
    }
  }
  for (const auto& c : earlier) {
    if (c->phase == Phase::kUp && c->peer == dial.options.expected) {
      return DialFailed(number, Error(ErrorKind::kAborted, "dial",
                                      "the other end's connection came first", c->peer));
    }
    if (IsClient(dial.options)) AdoptIfSilent(c, number);
  }
  dial.birthday->Start();
}

// The answer to one of many knocks may come in through the listener, and from any port. Its sender
// waits for us to speak if we are the client; a stranger from the same host speaks first.
void ControlPlane::AdoptIfSilent(const ConnectionPtr& c, uint64_t number) {
  loop_.After(kShyMs, [this, number, weak = std::weak_ptr<Connection>(c)] {
    const ConnectionPtr c = weak.lock();
    const auto at = dials_.find(number);
    if (!c || c->gone || c->dial != 0 || c->phase != Phase::kFirstByte || at == dials_.end()) {
      return;
    }
    c->dial = number;
    Begin(c, DialOptions(at->second.options));
  });
}

}  // namespace decentral
