// ControlPlane: the frames of a link's control stream.
#include "link/control_plane.h"

namespace decentral {
namespace {

constexpr size_t kReadBudget = 256 << 10;          // per wake-up: other links want their turn
constexpr size_t kWriteAhead = 2 * kMessageSlice;  // encoded ahead: all that priority 0 waits for

}  // namespace

void ControlPlane::Meter(Connection& c) {
  if (!c.stream) return;
  const uint64_t read = c.stream->bytes_read(), written = c.stream->bytes_written();
  totals_->bytes_received += read - c.read_seen;
  totals_->bytes_sent += written - c.written_seen;
  c.read_seen = read;
  c.written_seen = written;
  c.shared->control_received = read;
  c.shared->control_sent = written;
}

// ---- in

void ControlPlane::ReadFrames(const ConnectionPtr& c) {
  uint8_t buffer[kMessageSlice];
  size_t budget = kReadBudget;
  while (!c->gone && (c->phase == Phase::kUp || c->phase == Phase::kRefusal)) {
    const IoResult got = c->stream->Read(buffer, sizeof buffer);
    if (got.status == IoStatus::kAgain) break;
    const char* phase = c->shared->admitted ? "link" : "admission";
    switch (got.status) {
      case IoStatus::kEof:
        return Fail(c,
                    Error(ErrorKind::kClosed, phase,
                          c->phase == Phase::kRefusal ? c->target + " closed the connection"
                          : c->reader.in_frame()
                              ? "the connection to " + Who(*c) + " broke in the middle of a frame"
                              : "the connection to " + Who(*c) + " is closed: it died or left"));
      case IoStatus::kLimit:
        return Fail(
            c, Error(ErrorKind::kProtocol, phase,
                     Who(*c) + " sent more than " + std::to_string(options_.max_unadmitted_bytes) +
                         " bytes before it was admitted"));
      case IoStatus::kBroken:
        return Fail(c, Error(ErrorKind::kProtocol, phase,
                             "TLS with " + Who(*c) + " broke: " + c->stream->reason()));
      default:
        break;
    }
    c->last_heard = Clock::now();
    const std::string wrong =
        c->reader.Feed(buffer, got.bytes, [&](const FrameHeader& header, std::string payload) {
          return OnFrame(c, header, std::move(payload)) && !c->gone;
        });
    if (!wrong.empty()) {
      return Fail(c, Error(ErrorKind::kProtocol, phase, Who(*c) + " " + wrong));
    }
    if (got.bytes >= budget) {
      // Bytes inside OpenSSL would not wake us.
      if (c->stream->buffered()) loop_.Post([this, c] { ReadFrames(c); });
      break;
    }
    budget -= got.bytes;
  }
  if (c->gone) return;
  Meter(*c);
  UpdateInterest(*c);
}

bool ControlPlane::OnFrame(const ConnectionPtr& c, const FrameHeader& header, std::string payload) {
  if (c->phase == Phase::kRefusal) {
    if (header.type != FrameType::kRefuse) return true;
    Fail(c, Error(ErrorKind::kVersionMismatch, "handshake",
                  c->target + " speaks version " + Printable(payload) +
                      " of the protocol, this peer speaks " + VersionList(tls_.versions()) +
                      ": update the older of the two"));
    return false;
  }
  if (c->phase != Phase::kUp) return false;
  switch (header.type) {
    case FrameType::kMessage: {
      const uint64_t waiting = c->shared->undelivered += payload.size() + sizeof(Event);
      if (waiting > options_.max_queued_bytes) {
        Fail(c, Error(ErrorKind::kProtocol, "link",
                      Who(*c) + " sends faster than its messages are taken: more than " +
                          std::to_string(options_.max_queued_bytes) + " bytes wait here"));
        return false;
      }
      Event event;
      event.type = Event::Type::kMessage;
      event.link = c->id;
      event.peer = c->peer;
      event.inbound = c->inbound;
      event.data = std::move(payload);
      events_->Push(std::move(event));
      return true;
    }
    case FrameType::kProbe:
      OnProbe(c, header, payload);
      return true;
    case FrameType::kProbeAck:
      OnProbeAck(c, header, payload);
      return true;
    case FrameType::kRefuse:
      if (header.flags & kFlagGoodbye) {
        Fail(c, Error(ErrorKind::kClosed, "link",
                      Who(*c) + " closed the link: " + Printable(payload)));
      } else {
        Fail(c, Error(ErrorKind::kRefused, "admission",
                      c->target + " refused: " + Printable(payload)));
      }
      return false;
    case FrameType::kBulkWanted:
      OnBulkWanted(c, header, payload);
      return true;
    case FrameType::kOpReady:
    case FrameType::kOpAbort:
      if (c->shared->admitted) data_->ControlFrame(c->id, header, std::move(payload));
      return true;
    default:
      return true;
  }
}

// ---- out

void ControlPlane::Queue(const ConnectionPtr& c, FrameHeader header, std::string payload,
                         int priority) {
  if (c->gone || c->phase == Phase::kLinger) return;
  if (header.run == 0) header.run = stamp_->run;
  if (header.lineage == 0) header.lineage = stamp_->lineage;
  if (header.epoch == 0) header.epoch = stamp_->epoch;
  const bool idle = c->queue.empty() && c->out_begin == c->out.size();
  c->shared->queued += FrameHeader::kSize + payload.size();
  if (c->shared->queued > options_.max_queued_bytes) {  // answers to a flood of probes count too
    return Fail(c, Error(ErrorKind::kSilent, "link",
                         Who(*c) + " does not read: more than " +
                             std::to_string(options_.max_queued_bytes) + " bytes wait for it"));
  }
  c->queue.Push(header, std::move(payload), priority);
  // At the end of this turn of the loop, so that what is queued together leaves together.
  if (idle) loop_.Post([this, c] { WriteFrames(c); });
}

void ControlPlane::WriteFrames(const ConnectionPtr& c) {
  if (c->gone || !c->stream || c->phase == Phase::kHandshake) return;
  const uint64_t before = c->queue.bytes();
  bool broken = false;
  while (true) {
    if (c->out_begin == c->out.size()) {
      c->out.clear();
      c->out_begin = 0;
    }
    while (c->out.size() - c->out_begin < kWriteAhead && c->queue.Next(&c->out)) {
    }
    if (c->out_begin == c->out.size()) break;
    const iovec part{c->out.data() + c->out_begin, c->out.size() - c->out_begin};
    const IoResult put = c->stream->Write(&part, 1);
    if (put.status == IoStatus::kAgain) break;
    if (put.status != IoStatus::kOk) {
      broken = true;
      break;
    }
    c->out_begin += put.bytes;
    if (c->out_begin > 4 * kWriteAhead) {
      c->out.erase(0, c->out_begin);
      c->out_begin = 0;
    }
  }
  if (!broken) broken = c->stream->Flush() == IoStatus::kEof;
  c->shared->queued -= before - c->queue.bytes();
  Meter(*c);
  if (broken) {
    // The other end's last words may still wait to be read; they say more than EPIPE does.
    if (c->phase == Phase::kUp) ReadFrames(c);
    if (!c->gone) {
      Fail(c, Error(ErrorKind::kClosed, "link", "the connection to " + Who(*c) + " broke"));
    }
    return;
  }
  UpdateInterest(*c);
}

void ControlPlane::Send(LinkId link, std::string message, int priority) {
  {
    std::lock_guard<std::mutex> lock(registry_mutex_);
    const auto at = registry_.find(link);
    if (at == registry_.end()) return;  // kLinkDown is on its way, or has been taken
    at->second.shared->queued += message.size();
  }
  loop_.Post([this, link, priority, message = std::move(message)]() mutable {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    if (message.size() > options_.max_message_bytes) {
      return Fail(c, Error(ErrorKind::kConfig, "link",
                           "a message of " + std::to_string(message.size()) +
                               " bytes is over the limit of " +
                               std::to_string(options_.max_message_bytes)));
    }
    c->shared->queued -= message.size();  // Queue counts it again
    Queue(c, {.type = FrameType::kMessage}, std::move(message), priority);
  });
}

void ControlPlane::Taken(const std::vector<Event>& events) {
  std::lock_guard<std::mutex> lock(registry_mutex_);
  for (const Event& event : events) {
    if (event.type != Event::Type::kMessage) continue;
    const auto at = registry_.find(event.link);
    if (at != registry_.end()) at->second.shared->undelivered -= event.data.size() + sizeof(Event);
  }
}

void ControlPlane::SendControl(LinkId link, const FrameHeader& header, std::string payload) {
  loop_.Post([this, link, header, payload = std::move(payload)]() mutable {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    Queue(c, header, std::move(payload), 0);
  });
}

void ControlPlane::Admit(LinkId link) {
  {
    std::lock_guard<std::mutex> lock(registry_mutex_);
    const auto at = registry_.find(link);
    if (at == registry_.end()) return;
    if (at->second.shared->admitted.exchange(true)) return;
    at->second.shared->read_limit = UINT64_MAX;
    if (at->second.carrier) at->second.carrier->Admit();
    data_->LinkAdmitted(link, at->second.peer, at->second.dialer, at->second.shared);
  }
  loop_.Post([this, link] {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    if (c->half_open) {
      c->half_open = false;
      --half_open_;
      --totals_->half_open;
    }
    c->last_heard = Clock::now();
    c->next_heartbeat = c->last_heard;
    if (c->bulk_asked_early) {
      c->bulk_asked_early = false;
      OnBulkWanted(c, {.type = FrameType::kBulkWanted, .flags = c->bulk_flags}, c->token);
    }
  });
}

void ControlPlane::Refuse(LinkId link, const std::string& says) {
  loop_.Post([this, link, says] {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    ++totals_->refused;
    Retire(c, Error(ErrorKind::kRefused, "admission", "refused " + Who(*c) + ": " + says),
           {.type = FrameType::kRefuse}, says);
  });
}

void ControlPlane::Close(LinkId link, const std::string& reason) {
  loop_.Post([this, link, reason] {
    const ConnectionPtr c = FindLink(link);
    if (!c) return;
    Retire(c, Error(ErrorKind::kAborted, "link", "closed the link to " + Who(*c) + ": " + reason),
           {.type = FrameType::kRefuse, .flags = kFlagGoodbye}, reason);
  });
}

}  // namespace decentral
