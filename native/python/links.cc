// Endpoint, its events and counters, as Python sees them.
#include "python/py_endpoint.h"

namespace decentral {
namespace {

const char* TypeName(Event::Type type) {
  switch (type) {
    case Event::Type::kLinkUp:
      return "link-up";
    case Event::Type::kLinkDown:
      return "link-down";
    case Event::Type::kDialFailed:
      return "dial-failed";
    case Event::Type::kMessage:
      return "message";
    case Event::Type::kProbeAck:
      return "probe-ack";
    case Event::Type::kBlob:
      return "blob";
    case Event::Type::kBlobFailed:
      return "blob-failed";
    case Event::Type::kBlobSent:
      return "blob-sent";
    case Event::Type::kReflexive:
      return "reflexive";
    case Event::Type::kKnocked:
      return "knocked";
    case Event::Type::kRelayEnded:
      return "relay-ended";
  }
  return "";
}

Role ParseRole(const std::string& name) {
  if (name == "client") return Role::kClient;
  if (name == "by-id") return Role::kById;
  if (name == "server") return Role::kServer;
  throw nb::value_error(("role: client, by-id or server, not '" + name + "'").c_str());
}

}  // namespace

void BindLinks(nb::module_& m) {
  nb::class_<Event>(m, "Event", "Something that happened on the network; see link/endpoint.h.")
      .def_prop_ro("type", [](const Event& e) { return TypeName(e.type); })
      .def_ro("link", &Event::link)
      .def_ro("dial", &Event::dial)
      .def_prop_ro("peer", [](const Event& e) { return ToBytes(e.peer); })
      .def_ro("inbound", &Event::inbound)
      .def_ro("address", &Event::address)
      .def_ro("carrier", &Event::carrier)
      .def_prop_ro("exporter", [](const Event& e) { return ToBytes(e.exporter); })
      .def_prop_ro("data", [](const Event& e) { return ToBytes(e.data); })
      .def_ro("seq", &Event::seq)
      .def_ro("incarnation", &Event::incarnation)
      .def_ro("progress", &Event::progress)
      .def_ro("rtt_us", &Event::rtt_us)
      .def_prop_ro(
          "error", [](const Event& e) { return ToTuple(e.error); },
          "None, or (kind, phase, peer, text)");

  nb::class_<LinkStats>(m, "LinkStats")
      .def_ro("control_bytes_sent", &LinkStats::control_bytes_sent)
      .def_ro("control_bytes_received", &LinkStats::control_bytes_received)
      .def_ro("bulk_bytes_sent", &LinkStats::bulk_bytes_sent)
      .def_ro("bulk_bytes_received", &LinkStats::bulk_bytes_received)
      .def_ro("queued_bytes", &LinkStats::queued_bytes)
      .def_ro("rtt_us", &LinkStats::rtt_us)
      .def_ro("min_rtt_us", &LinkStats::min_rtt_us)
      .def_ro("bulk_streams", &LinkStats::bulk_streams)
      .def_ro("carrier", &LinkStats::carrier);

  nb::class_<RelaySession>(m, "RelaySession")
      .def_prop_ro(
          "token", [](const RelaySession& s) { return ToBytes(s.token); }, "Its first 8 bytes.")
      .def_prop_ro(
          "bytes", [](const RelaySession& s) { return std::tuple(s.bytes[0], s.bytes[1]); },
          "Taken from side 0, from side 1.")
      .def_ro("age_s", &RelaySession::age_s)
      .def_ro("spliced", &RelaySession::spliced);

  nb::class_<EndpointCounters>(m, "EndpointCounters")
      .def_ro("links_up", &EndpointCounters::links_up)
      .def_ro("refused", &EndpointCounters::refused)
      .def_ro("half_open", &EndpointCounters::half_open)
      .def_ro("protocol_errors", &EndpointCounters::protocol_errors)
      .def_ro("bytes_sent", &EndpointCounters::bytes_sent)
      .def_ro("bytes_received", &EndpointCounters::bytes_received);

  nb::class_<PyEndpoint>(m, "Endpoint", "One peer's presence on the network; see link/endpoint.h.")
      .def(
          "__init__",
          [](PyEndpoint* self, const nb::bytes& seed, const std::vector<uint16_t>& versions,
             int bulk_streams, bool encrypt_bulk, int handshake_timeout_ms, int max_half_open,
             uint32_t max_unadmitted_bytes, int silence_limit_ms, int heartbeat_ms,
             int max_bulk_streams, const std::string& congestion, uint64_t max_upload_bytes_s,
             uint64_t relay_max_bytes_s) {
            EndpointOptions o;
            o.seed = FromBytes(seed, "the key's seed");
            o.versions = versions;
            o.bulk_streams = bulk_streams;
            o.encrypt_bulk = encrypt_bulk;
            o.handshake_timeout_ms = handshake_timeout_ms;
            o.max_half_open = max_half_open;
            o.max_unadmitted_bytes = max_unadmitted_bytes;
            o.silence_limit_ms = silence_limit_ms;
            o.heartbeat_ms = heartbeat_ms;
            o.max_bulk_streams = std::max(bulk_streams, max_bulk_streams);
            o.congestion = congestion;
            o.max_upload_bytes_s = max_upload_bytes_s;
            o.relay_max_bytes_s = relay_max_bytes_s;
            new (self) PyEndpoint(o);
          },
          "seed"_a, nb::kw_only(), "versions"_a = std::vector<uint16_t>{1}, "bulk_streams"_a = 2,
          "encrypt_bulk"_a = true, "handshake_timeout_ms"_a = 5000, "max_half_open"_a = 256,
          "max_unadmitted_bytes"_a = 64 << 10, "silence_limit_ms"_a = 5000, "heartbeat_ms"_a = 1000,
          "max_bulk_streams"_a = 64, "congestion"_a = "", "max_upload_bytes_s"_a = 0,
          "relay_max_bytes_s"_a = 0)
      .def_prop_ro("id", [](PyEndpoint& e) { return ToBytes(e.get().id()); })
      .def(
          "listen",
          [](PyEndpoint& e, const std::string& host, uint16_t port) {
            nb::gil_scoped_release release;
            return e.get().Listen(host, port);
          },
          "host"_a, "port"_a)
      .def(
          "dial",
          [](PyEndpoint& e, const std::string& host, uint16_t port,
             std::optional<nb::bytes> expected, int timeout_ms, uint16_t local_port,
             const std::string& role, bool carrier, const nb::bytes& relay_token,
             uint8_t relay_side, int sockets, int spray) {
            DialOptions o;
            o.host = host;
            o.port = port;
            o.has_expected = expected.has_value();
            if (expected) o.expected = FromBytes(*expected, "the expected peer's id");
            o.timeout_ms = timeout_ms;
            o.local_port = local_port;
            o.role = ParseRole(role);
            o.carrier = carrier;
            o.relay_token.assign(relay_token.c_str(), relay_token.size());
            o.relay_side = relay_side;
            o.sockets = sockets;
            o.spray = spray;
            return e.get().Dial(o);
          },
          "host"_a, "port"_a, nb::kw_only(), "expected"_a = nb::none(), "timeout_ms"_a = 5000,
          "local_port"_a = 0, "role"_a = "client", "carrier"_a = false,
          "relay_token"_a = nb::bytes("", 0), "relay_side"_a = 0, "sockets"_a = 1, "spray"_a = 0)
      .def(
          "reflexive",
          [](PyEndpoint& e, const std::string& host, uint16_t port, uint16_t local_port,
             int timeout_ms) { return e.get().Reflexive(host, port, local_port, timeout_ms); },
          "host"_a, "port"_a, nb::kw_only(), "local_port"_a = 0, "timeout_ms"_a = 2000,
          "Ask an endpoint which address it sees; a reflexive or dial-failed event follows.")
      .def(
          "knock",
          [](PyEndpoint& e, const std::string& host, uint16_t port, int timeout_ms) {
            return e.get().Knock(host, port, timeout_ms);
          },
          "host"_a, "port"_a, nb::kw_only(), "timeout_ms"_a = 2000,
          "Connect as a stranger and hang up; a knocked or dial-failed event follows.")
      .def(
          "offer_relay",
          [](PyEndpoint& e, const nb::bytes& token, uint64_t max_bytes_s, int ttl_ms) {
            e.get().OfferRelay(std::string(token.c_str(), token.size()), max_bytes_s, ttl_ms);
          },
          "token"_a, nb::kw_only(), "max_bytes_s"_a = 0, "ttl_ms"_a = 10000,
          "Splice the two connections that show this token; a relay-ended event follows.")
      .def(
          "end_relay",
          [](PyEndpoint& e, const nb::bytes& token) {
            e.get().EndRelay(std::string(token.c_str(), token.size()));
          },
          "token"_a)
      .def(
          "set_relay_limit",
          [](PyEndpoint& e, uint64_t max_bytes_s) { e.get().SetRelayLimit(max_bytes_s); },
          "max_bytes_s"_a, "Cap on all that is relayed, shared evenly; 0: none.")
      .def("relay_stats",
           [](PyEndpoint& e) {
             nb::gil_scoped_release release;
             return e.get().RelayStats();
           })
      .def(
          "admit", [](PyEndpoint& e, LinkId link) { e.get().Admit(link); }, "link"_a)
      .def(
          "refuse",
          [](PyEndpoint& e, LinkId link, const std::string& says) { e.get().Refuse(link, says); },
          "link"_a, "says"_a)
      .def(
          "send",
          [](PyEndpoint& e, LinkId link, const nb::bytes& message, int priority) {
            e.get().Send(link, std::string(message.c_str(), message.size()), priority);
          },
          "link"_a, "message"_a, "priority"_a = 1)
      .def(
          "close_link",
          [](PyEndpoint& e, LinkId link, const std::string& reason) {
            e.get().Close(link, reason);
          },
          "link"_a, "reason"_a)
      .def(
          "probe",
          [](PyEndpoint& e, LinkId link, uint64_t seq, uint32_t suspected) {
            e.get().Probe(link, seq, suspected);
          },
          "link"_a, "seq"_a, "suspected_incarnation"_a = 0)
      .def(
          "set_progress", [](PyEndpoint& e, uint64_t p) { e.get().SetProgress(p); }, "progress"_a)
      .def_prop_ro("incarnation", [](PyEndpoint& e) { return e.get().incarnation(); })
      .def(
          "set_stamp",
          [](PyEndpoint& e, uint64_t run, uint64_t lineage, uint64_t epoch) {
            e.get().SetStamp(run, lineage, epoch);
          },
          "run"_a, "lineage"_a, "epoch"_a)
      .def("send_blob", &PyEndpoint::SendBlob, "link"_a, "key"_a, "data"_a,
           "Send a uint8 array; it is borrowed until it has left, and a blob-sent event follows.")
      .def("post_blob", &PyEndpoint::PostBlob, "link"_a, "key"_a, "into"_a,
           "Receive into a writable uint8 array; a blob or blob-failed event follows.")
      .def("cancel_blob", &PyEndpoint::CancelBlob, "key"_a)
      .def("take_events", &PyEndpoint::TakeEvents)
      .def_prop_ro("event_fd", [](PyEndpoint& e) { return e.get().event_fd(); })
      .def(
          "stats", [](PyEndpoint& e, LinkId link) { return e.get().Stats(link); }, "link"_a)
      .def(
          "stats_of",
          [](PyEndpoint& e, const nb::bytes& peer) {
            return e.get().StatsOf(FromBytes(peer, "a peer's id"));
          },
          "peer"_a, "Of the link that serves; all zero without one.")
      .def(
          "rates",
          [](PyEndpoint& e) {
            const NetworkRates r = e.get().Rates();
            return std::tuple(r.up, r.down);
          },
          "(up, down) in bytes/s: the best of this period and the last one; 0: not known.")
      .def("end_rate_period", [](PyEndpoint& e) { e.get().EndRatePeriod(); })
      .def("counters", [](PyEndpoint& e) { return e.get().Counters(); })
      .def("close", &PyEndpoint::Close, "Close every link and join the threads; idempotent.");
}

}  // namespace decentral
