// ControlPlane: probes, heartbeats, and when a link counts as dead.
#include "link/control_plane.h"

namespace decentral {
namespace {

// Incarnations count one by one. Several claims of peer/fields.py's LEAP are still answered.
constexpr uint32_t kIncarnationLeap = 1 << 24;

uint64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch())
      .count();
}

std::string Bytes(uint64_t value) {
  std::string out(sizeof value, '\0');
  for (size_t i = 0; i < sizeof value; ++i) out[i] = static_cast<char>(value >> (8 * i));
  return out;
}

uint64_t Number(const std::string& bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size() && i < sizeof value; ++i) {
    value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  }
  return value;
}

}  // namespace

void ControlPlane::Probe(LinkId link, uint64_t seq, uint32_t suspected_incarnation) {
  loop_.Post([this, link, seq, suspected_incarnation] {
    if (const ConnectionPtr c = FindLink(link)) QueueProbe(c, seq, suspected_incarnation, 0);
  });
}

void ControlPlane::QueueProbe(const ConnectionPtr& c, uint64_t seq, uint32_t suspected,
                              uint8_t flags) {
  FrameHeader probe{.type = FrameType::kProbe, .flags = flags};
  probe.attempt = suspected;
  probe.sequence = seq;
  Queue(c, probe, Bytes(NowUs()), 0);
}

void ControlPlane::CheckLiveness(const ConnectionPtr& c, Clock::time_point now) {
  // Bulk bytes are a sign of life too: on a full line a heartbeat may have to wait behind them.
  if (const uint64_t heard = c->shared->bulk_received; heard != c->bulk_heard) {
    c->bulk_heard = heard;
    c->last_heard = now;
  }
  if (c->bulk == BulkState::kOpening && now >= c->bulk_deadline) {
    BulkOpenFailed(c,
                   Error(ErrorKind::kUnreachable, "bulk",
                         "the bulk streams to " + Who(*c) + " did not open in time"),
                   true);
  }
  if (now - c->last_heard > std::chrono::milliseconds(options_.silence_limit_ms)) {
    return Fail(c, Error(ErrorKind::kSilent, "link",
                         "nothing was heard from " + Who(*c) + " for " +
                             std::to_string(options_.silence_limit_ms) + " ms"));
  }
  if (now >= c->next_heartbeat) {
    c->next_heartbeat = now + std::chrono::milliseconds(options_.heartbeat_ms);
    QueueProbe(c, 0, 0, kFlagHeartbeat);
  }
}

void ControlPlane::OnProbe(const ConnectionPtr& c, const FrameHeader& header,
                           const std::string& payload) {
  uint32_t mine = incarnation_.load();
  if (c->shared->admitted && !(header.flags & kFlagHeartbeat)) {
    // Suspected under our present name: take a higher one, which refutes it. Who names one far
    // above ours wants us to run out of names.
    while (header.attempt >= mine && header.attempt - mine < kIncarnationLeap &&
           header.attempt != UINT32_MAX) {
      const uint32_t higher = header.attempt + 1;
      if (incarnation_.compare_exchange_weak(mine, higher)) mine = higher;
    }
  }
  FrameHeader ack{.type = FrameType::kProbeAck, .flags = header.flags};
  ack.sequence = header.sequence;
  if (c->shared->admitted) {
    ack.attempt = mine;
    ack.round = progress_.load();
  }
  Queue(c, ack, payload, 0);
}

void ControlPlane::OnProbeAck(const ConnectionPtr& c, const FrameHeader& header,
                              const std::string& payload) {
  const uint64_t sent_us = Number(payload), now_us = NowUs();
  if (payload.size() != kProbeBytes || sent_us > now_us) return;  // we asked no such thing
  const uint64_t rtt_us = now_us - sent_us;
  const uint64_t smooth_us = c->shared->rtt_us.load();
  c->shared->rtt_us = smooth_us == 0 ? rtt_us : (7 * smooth_us + rtt_us) / 8;
  const uint64_t least_us = c->shared->min_rtt_us.load();
  if (least_us == 0 || rtt_us < least_us) c->shared->min_rtt_us = std::max<uint64_t>(rtt_us, 1);
  if (header.flags & kFlagHeartbeat) return;
  Event event;
  event.type = Event::Type::kProbeAck;
  event.link = c->id;
  event.peer = c->peer;
  event.seq = header.sequence;
  event.incarnation = header.attempt;
  event.progress = header.round;
  event.rtt_us = rtt_us;
  events_->Push(std::move(event));
}

}  // namespace decentral
