// ControlPlane: what others can say about where we are. A peer behind a NAT does not know the
// address that the rest of the world sees, nor whom that address lets in.
//
//   asker                                     any endpoint
//     │ ── 0x04, 15 zeros ──────────────────▶ │
//     │ ◀─ length, "203.0.113.7:40112" ────── │  what accept() said
//     │ ── RST ─────────────────────────────▶ │
#include <sys/socket.h>

#include <cerrno>

#include "link/control_plane.h"

namespace decentral {
namespace {

// "203.0.113.7:40112", "[2001:db8::1]:40112"; anything else is no address that we would pass on.
bool IsAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || text.size() - colon > 6) return false;
  const std::string port = text.substr(colon + 1);
  if (port.empty() || port.find_first_not_of("0123456789") != std::string::npos) return false;
  const int number = std::stoi(port);
  if (number < 1 || number > UINT16_MAX) return false;
  const auto literal = ParseLiteral(text.substr(0, colon), static_cast<uint16_t>(number));
  return literal && literal->ToString() == text;
}

bool WouldBlock() { return errno == EAGAIN || errno == EINTR; }

}  // namespace

uint64_t ControlPlane::Reflexive(const std::string& host, uint16_t port, uint16_t local_port,
                                 int timeout_ms) {
  return Post(Purpose::kReflexive,
              {.host = host, .port = port, .timeout_ms = timeout_ms, .local_port = local_port});
}

uint64_t ControlPlane::Knock(const std::string& host, uint16_t port, int timeout_ms) {
  return Post(Purpose::kKnock, {.host = host, .port = port, .timeout_ms = timeout_ms});
}

void ControlPlane::Knocked(uint64_t number, const SockAddr& remote) {
  Event event;
  event.type = Event::Type::kKnocked;
  event.dial = number;
  event.address = remote.ToString();
  DialDone(number);
  events_->Push(std::move(event));
}

// ---- the one who is asked

void ControlPlane::OnTellAddress(const ConnectionPtr& c) {
  char buffer[kTellAddressBytes];
  while (true) {
    const ssize_t n = recv(c->fd.get(), buffer, sizeof buffer, 0);
    if (n < 0 && WouldBlock()) return;
    if (n <= 0) return Drop(c);
    const bool answered = c->hello.size() == kTellAddressBytes;
    c->hello.append(buffer, n);
    const std::string asks = static_cast<char>(kTellAddressByte) + std::string(15, '\0');
    if (answered || c->hello != asks.substr(0, c->hello.size())) {
      ++totals_->protocol_errors;
      return Drop(c);
    }
    if (c->hello.size() < kTellAddressBytes) continue;
    const std::string text = c->remote.ToString();
    const std::string answer = static_cast<char>(text.size()) + text;
    if (send(c->fd.get(), answer.data(), answer.size(), kNoSignal) !=
        static_cast<ssize_t>(answer.size())) {
      return Drop(c);
    }
  }
}

// ---- the one who asks

void ControlPlane::AskAddress(const ConnectionPtr& c) {
  c->phase = Phase::kAskAddress;
  const std::string asks = static_cast<char>(kTellAddressByte) + std::string(15, '\0');
  if (send(c->fd.get(), asks.data(), asks.size(), kNoSignal) != static_cast<ssize_t>(asks.size())) {
    Fail(c, Error(ErrorKind::kUnreachable, "reflexive", c->target + " closed the connection"));
  }
}

void ControlPlane::OnAskAddress(const ConnectionPtr& c) {
  char buffer[1 + kMaxAddressText];
  while (c->hello.empty() || c->hello.size() < 1u + static_cast<uint8_t>(c->hello[0])) {
    const ssize_t n = recv(c->fd.get(), buffer, sizeof buffer, 0);
    if (n < 0 && WouldBlock()) return;
    if (n <= 0) {
      return Fail(c, Error(ErrorKind::kUnreachable, "reflexive",
                           c->target + " closed the connection without an answer: it is too busy,"
                                       " or it is no decentral peer"));
    }
    c->hello.append(buffer, n);
    if (static_cast<uint8_t>(c->hello[0]) > kMaxAddressText || c->hello.size() > sizeof buffer) {
      break;
    }
  }
  const std::string text = c->hello.substr(1);
  if (text.size() != static_cast<uint8_t>(c->hello[0]) || !IsAddress(text)) {
    return Fail(c, Error(ErrorKind::kNotDecentral, "reflexive",
                         c->target + " answers, but not with an address"));
  }
  // No TIME_WAIT: it would keep this port from reaching that address again for a minute.
  ResetOnClose(c->fd.get());
  Event event;
  event.type = Event::Type::kReflexive;
  event.dial = c->dial;
  event.address = text;
  DialDone(c->dial);
  Drop(c);
  c->fd.reset();  // now: whoever hears of it may want the port again
  events_->Push(std::move(event));
}

}  // namespace decentral
