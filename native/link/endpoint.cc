#include "link/endpoint.h"

#include "io/fd.h"
#include "io/socket.h"
#include "link/control_plane.h"
#include "link/data_plane.h"
#include "link/event_queue.h"
#include "link/tls.h"

namespace decentral {
namespace {

void Check(bool ok, const char* says) {
  if (!ok) throw Error(ErrorKind::kConfig, "start", says);
}

EndpointOptions Checked(const EndpointOptions& o) {
  Check(o.bulk_streams >= 1 && o.bulk_streams <= kMaxBulkStreams, "bulk_streams: 1 to 64");
  Check(o.max_bulk_streams >= o.bulk_streams && o.max_bulk_streams <= kMaxBulkStreams,
        "max_bulk_streams: bulk_streams to 64");
  if (const std::string why = CongestionError(o.congestion); !why.empty()) {
    throw Error(ErrorKind::kConfig, "start", why);
  }
  Check(o.handshake_timeout_ms > 0 && o.silence_limit_ms > 0, "time limits must be positive");
  Check(o.heartbeat_ms > 0 && o.heartbeat_ms < o.silence_limit_ms,
        "heartbeat_ms must be positive and below silence_limit_ms");
  Check(o.max_half_open > 0, "max_half_open must be positive");
  Check(o.max_unadmitted_bytes >= 4096, "max_unadmitted_bytes: a handshake alone takes 4 KiB");
  Check(o.max_message_bytes > 0 && o.max_chunk_bytes > 0, "size limits must be positive");
  return o;
}

}  // namespace

struct Endpoint::Impl {
  explicit Impl(const EndpointOptions& options)
      : tls(options.seed, options.versions),
        data(options, &events, &meters, &stamp),
        control(options, tls, &events, &meters, &stamp) {
    data.Start(&control);
    control.Start(&data);
  }

  const uint32_t generation = ForkGeneration();
  EventQueue events;
  EndpointMeters meters;
  Stamp stamp;
  TlsContext tls;
  DataPlane data;
  ControlPlane control;
};

Endpoint::Endpoint(EndpointOptions options) : impl_(std::make_unique<Impl>(Checked(options))) {}

Endpoint::~Endpoint() {
  if (impl_->generation != ForkGeneration()) {
    // A forked child: descriptors are closed, threads never were here. The rest is the parent's.
    (void)impl_.release();
    return;
  }
  impl_->control.Stop();
  impl_->data.Stop();
}

const PeerId& Endpoint::id() const { return impl_->tls.id(); }
uint16_t Endpoint::Listen(const std::string& host, uint16_t port) {
  return impl_->control.Listen(host, port);
}
uint64_t Endpoint::Dial(const DialOptions& options) { return impl_->control.Dial(options); }
uint64_t Endpoint::Reflexive(const std::string& host, uint16_t port, uint16_t local_port,
                             int timeout_ms) {
  return impl_->control.Reflexive(host, port, local_port, timeout_ms);
}
uint64_t Endpoint::Knock(const std::string& host, uint16_t port, int timeout_ms) {
  return impl_->control.Knock(host, port, timeout_ms);
}
void Endpoint::OfferRelay(const std::string& token, uint64_t max_bytes_s, int ttl_ms) {
  impl_->control.OfferRelay(token, max_bytes_s, ttl_ms);
}
void Endpoint::EndRelay(const std::string& token) { impl_->control.relay().End(token); }
void Endpoint::SetRelayLimit(uint64_t max_bytes_s) { impl_->control.relay().Limit(max_bytes_s); }
std::vector<RelaySession> Endpoint::RelayStats() const { return impl_->control.relay().Stats(); }
void Endpoint::Admit(LinkId link) { impl_->control.Admit(link); }
void Endpoint::Refuse(LinkId link, const std::string& says) { impl_->control.Refuse(link, says); }
void Endpoint::Send(LinkId link, std::string message, int priority) {
  impl_->control.Send(link, std::move(message), priority);
}
void Endpoint::Close(LinkId link, const std::string& reason) { impl_->control.Close(link, reason); }
void Endpoint::Probe(LinkId link, uint64_t seq, uint32_t suspected_incarnation) {
  impl_->control.Probe(link, seq, suspected_incarnation);
}
void Endpoint::SetProgress(uint64_t progress) { impl_->control.SetProgress(progress); }
uint32_t Endpoint::incarnation() const { return impl_->control.incarnation(); }
void Endpoint::SetStamp(uint64_t run, uint64_t lineage, uint64_t epoch) {
  impl_->stamp.run = run;
  impl_->stamp.lineage = lineage;
  impl_->stamp.epoch = epoch;
}
void Endpoint::SendBlob(LinkId link, uint64_t key, const uint8_t* data, uint64_t size,
                        std::function<void()> done) {
  impl_->data.SendBlob(link, key, data, size, std::move(done));
}
void Endpoint::PostBlob(LinkId link, uint64_t key, uint8_t* into, uint64_t size) {
  impl_->data.PostBlob(link, key, into, size);
}
void Endpoint::CancelBlob(uint64_t key) { impl_->data.CancelBlob(key); }
std::vector<Event> Endpoint::TakeEvents() {
  std::vector<Event> events = impl_->events.Take();
  impl_->control.Taken(events);
  return events;
}
int Endpoint::event_fd() const { return impl_->events.fd(); }
LinkStats Endpoint::Stats(LinkId link) const { return impl_->control.Stats(link); }
LinkStats Endpoint::StatsOf(const PeerId& peer) const { return impl_->control.StatsOf(peer); }
NetworkRates Endpoint::Rates() const { return impl_->data.Rates(); }
void Endpoint::EndRatePeriod() { impl_->data.EndRatePeriod(); }
EndpointCounters Endpoint::Counters() const {
  const EndpointMeters& m = impl_->meters;
  EndpointCounters out;
  out.links_up = m.links_up;
  out.refused = m.refused;
  out.half_open = m.half_open;
  out.protocol_errors = m.protocol_errors;
  out.bytes_sent = m.bytes_sent;
  out.bytes_received = m.bytes_received;
  return out;
}
BulkTransport& Endpoint::bulk() { return impl_->data; }
void Endpoint::SetBulkHandler(BulkHandler* handler) { impl_->data.SetHandler(handler); }

}  // namespace decentral
