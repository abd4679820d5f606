// ControlPlane: how connections end, and who is told.
#include "link/control_plane.h"

namespace decentral {
namespace {

constexpr auto kLinger = std::chrono::milliseconds(2000);

}  // namespace

// Tells whoever waits for this connection, then drops it.
void ControlPlane::Fail(const ConnectionPtr& c, Error why) {
  if (c->gone) return;
  if (why.peer == PeerId{}) why.peer = c->peer;
  if (why.kind == ErrorKind::kProtocol) ++totals_->protocol_errors;
  if (c->phase == Phase::kUp) {
    LeaveLink(*c, why);
  } else if (c->phase != Phase::kLinger && c->bulk_of != 0) {
    if (ConnectionPtr link = FindLink(c->bulk_of)) BulkOpenFailed(link, why, true);
  } else if (c->phase != Phase::kLinger) {
    FailDialOf(c, why);
  }
  if (why.kind == ErrorKind::kSilent || c->phase == Phase::kLinger) {  // nobody answers
    if (c->carrier) c->carrier->Abort();
    if (c->stream && !c->carrier) ResetOnClose(c->stream->fd());
  }
  Drop(c);
}

void ControlPlane::LeaveLink(Connection& c, const Error& why) {
  Event event;
  event.type = Event::Type::kLinkDown;
  event.link = c.id;
  event.dial = c.dial;
  event.peer = c.peer;
  event.inbound = c.inbound;
  event.address = c.remote.ToString();
  event.error = why;
  for (auto& dial : c.bulk_dials) dial->Cancel();
  c.bulk_dials.clear();
  std::vector<ConnectionPtr> orphans;
  for (auto& [id, other] : connections_) {
    if (other->bulk_of == c.id) orphans.push_back(other);
  }
  for (auto& orphan : orphans) Drop(orphan);
  --totals_->links_up;
  {
    std::lock_guard<std::mutex> lock(registry_mutex_);
    registry_.erase(c.id);
    data_->LinkDown(c.id, why);
  }
  events_->Push(std::move(event));
}

// Sends what is queued and one last frame, and closes when the other end has closed, or soon.
// Closing at once could reset the connection, and the last frame would be lost with it.
void ControlPlane::Retire(const ConnectionPtr& c, const Error& why, const FrameHeader& last,
                          const std::string& text) {
  if (c->gone || c->phase == Phase::kLinger) return;
  const bool was_up = c->phase == Phase::kUp;
  Queue(c, last, text.substr(0, kMaxRefusal), kPriorities - 1);
  if (c->gone) return;
  WriteFrames(c);
  if (c->gone || c->phase == Phase::kLinger) return;
  Error with_peer = why;
  with_peer.peer = c->peer;
  if (was_up) LeaveLink(*c, with_peer);
  if (!was_up) FailDialOf(c, with_peer);
  c->phase = Phase::kLinger;
  c->deadline = Clock::now() + kLinger;
  OnLinger(c);
}

void ControlPlane::OnLinger(const ConnectionPtr& c) {
  if (!c->finished_writing) {
    WriteFrames(c);
    if (c->gone) return;
    if (c->queue.empty() && c->out_begin == c->out.size() && !c->stream->unsent()) {
      c->stream->FinishWriting();
      c->finished_writing = true;
    }
  }
  uint8_t waste[4096];
  for (int i = 0; i < 64; ++i) {
    const IoResult got = c->stream->Read(waste, sizeof waste);
    if (got.status == IoStatus::kAgain) return UpdateInterest(*c);
    if (got.status != IoStatus::kOk) return Drop(c);
  }
  UpdateInterest(*c);
}

void ControlPlane::Drop(const ConnectionPtr& c) {
  if (c->gone) return;
  c->gone = true;
  if (c->half_open) {
    --half_open_;
    --totals_->half_open;
  }
  Meter(*c);
  const int fd = c->stream ? c->stream->fd() : c->fd.get();
  if (fd >= 0) loop_.Remove(fd);
  connections_.erase(c->id);
  // The caller may be in the middle of the stream: it goes when the last holder lets go.
  loop_.Post([c] {});
}

}  // namespace decentral
