// ControlPlane: relayed connections, on the relay and at its two users. All three speak of one
// token, which the layer above has passed round:
//
//   user 0 ── 0x03, token, 0 ──▶ relay ◀── 0x03, token, 1 ── user 1
//   and from then on, end to end: a carrier, or TLS at once
#include <sys/socket.h>

#include <cerrno>

#include "link/control_plane.h"

namespace decentral {
namespace {

constexpr size_t kHelloBytes = 1 + kRelayTokenBytes + 1;

}  // namespace

void ControlPlane::OfferRelay(const std::string& token, uint64_t max_bytes_s, int ttl_ms) {
  if (token.size() != kRelayTokenBytes) {
    throw Error(ErrorKind::kConfig, "relay", "a relay's token has 32 bytes");
  }
  relay_.Offer(token, max_bytes_s, ttl_ms);
}

void ControlPlane::RelayEnded(const std::string& token, uint64_t bytes, const Error& why) {
  Event event;
  event.type = Event::Type::kRelayEnded;
  event.exporter = token;
  event.seq = bytes;
  event.error = why;
  events_->Push(std::move(event));
}

// Somebody wants to be relayed. Not a byte beyond the hello is read here.
void ControlPlane::OnRelayHello(const ConnectionPtr& c) {
  char buffer[kHelloBytes];
  while (c->hello.size() < kHelloBytes) {
    const ssize_t n = recv(c->fd.get(), buffer, kHelloBytes - c->hello.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return Drop(c);
    c->hello.append(buffer, n);
  }
  const int side = static_cast<uint8_t>(c->hello.back());
  if (side > 1) {
    ++totals_->protocol_errors;
    return Drop(c);
  }
  loop_.Remove(c->fd.get());
  const auto refused = [this] { ++totals_->refused; };
  if (!relay_.Join(c->hello.substr(1, kRelayTokenBytes), side, std::move(c->fd), refused)) {
    refused();
  }
  Drop(c);
}

// The user's part: the relay takes the connection from here.
bool ControlPlane::SayRelayHello(const ConnectionPtr& c, const DialOptions& options) {
  const std::string hello =
      static_cast<char>(kRelayByte) + options.relay_token + static_cast<char>(options.relay_side);
  c->relayed = true;
  c->target = "the relay at " + c->target;
  // The other end may need all of this dial's time to come.
  c->deadline = std::max(c->deadline, Clock::now() + std::chrono::milliseconds(options.timeout_ms));
  if (send(c->fd.get(), hello.data(), hello.size(), kNoSignal) ==
      static_cast<ssize_t>(hello.size())) {
    return true;
  }
  Fail(c, Error(ErrorKind::kUnreachable, "relay", c->target + " closed the connection"));
  return false;
}

}  // namespace decentral
