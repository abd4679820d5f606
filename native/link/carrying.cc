// ControlPlane: links that go over a carrier. The carrier takes the place of the connection, and
// the connection goes on with lane 0 of it, as if that had been accepted or dialled.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "link/control_plane.h"

namespace decentral {

void ControlPlane::OnCarrierPreamble(const ConnectionPtr& c) {
  char buffer[kCarrierPreambleBytes];
  while (c->hello.size() < kCarrierPreambleBytes) {
    const ssize_t n = recv(c->fd.get(), buffer, kCarrierPreambleBytes - c->hello.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return HungUpEarly(c);
    c->hello.append(buffer, n);
  }
  if (std::memcmp(c->hello.data(), kCarrierPreamble, kCarrierPreambleBytes) != 0) {
    ++totals_->protocol_errors;
    return Fail(c, Error(ErrorKind::kNotDecentral, "handshake",
                         c->target + " answers, but not as a decentral peer"));
  }
  c->hello.clear();
  if (!PutOnCarrier(c, false)) return;
  c->phase = Phase::kFirstByte;
}

bool ControlPlane::PutOnCarrier(const ConnectionPtr& c, bool opener) {
  auto [far, inner] = LocalPair();
  if (!far) {
    Fail(c, Error(ErrorKind::kConfig, "carrier", "the system has no descriptor left for us"));
    return false;
  }
  loop_.Remove(c->fd.get());
  TuneBulkSocket(c->fd.get(), options_.congestion);
  const auto weak = std::make_shared<std::weak_ptr<Carrier>>();
  c->carrier = carriers_.Start(
      std::move(c->fd), opener, std::move(inner),
      [this, weak, remote = c->remote](Fd fd) {
        auto holder = std::make_shared<Fd>(std::move(fd));
        loop_.Post([this, weak, remote, holder] {
          if (auto carrier = weak->lock()) Accepted(std::move(*holder), remote, carrier);
        });
      },
      [this] { ++totals_->protocol_errors; });
  *weak = c->carrier;
  c->fd = std::move(far);
  c->shared->carrier = true;
  Watch(c);
  return true;
}

// The dialer's part of opening bulk streams: further lanes instead of further connections.
void ControlPlane::OpenLanes(const ConnectionPtr& c, bool plain) {
  for (int i = 0; i < c->bulk_count; ++i) {
    auto holder = std::make_shared<Fd>(c->carrier->Open());
    Error why;
    if (!*holder) why = Error(ErrorKind::kConfig, "bulk", "the system has no descriptor left");
    loop_.Post([this, link = c->id, i, plain, holder, remote = c->remote, why] {
      BulkConnected(link, i, plain, std::move(*holder), remote, why);
    });
  }
}

}  // namespace decentral
