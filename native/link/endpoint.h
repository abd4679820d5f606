// One peer's presence on the network: a listener, links to other peers, and nothing that knows
// what the messages mean. Two threads: the control thread (listener, handshakes, control streams,
// probes) and the data thread (bulk streams; see bulk_transport.h). Events come out through a
// queue with an eventfd, so that an event loop of any kind can wait for them.
//
//      dial / accept ── TCP ── TLS 1.3, both pin the other's Ed25519 key ── kLinkUp (unadmitted)
//                                                                             │ layer above checks
//      kMessage … ◀── control stream, prioritized ◀── Admit(link) ◀───────────┘ the credential
//      kChunk, kBlob ◀── N bulk streams, opened by the dialer on first need
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/types.h"
#include "link/bulk_transport.h"
#include "link/relay.h"

namespace decentral {

using LinkId = uint64_t;  // never reused within an endpoint; 0: none

struct EndpointOptions {
  std::array<uint8_t, 32> seed{};     // Ed25519 private key seed: who we are
  std::vector<uint16_t> versions{1};  // protocol versions we speak, best first
  int bulk_streams = 2;               // per link, to begin with; the dialer's number counts
  int max_bulk_streams = 64;          // up to so many where more of them carry more
  std::string congestion = {};        // of bulk streams: "bbr", "cubic", …; empty: the system's
  uint64_t max_upload_bytes_s = 0;    // cap on all bulk streams together; 0: none
  uint64_t relay_max_bytes_s = 0;     // cap on all that this endpoint relays; 0: none
  bool encrypt_bulk = true;           // false: bulk bytes in the clear (trusted networks, bench)
  int handshake_timeout_ms = 5000;    // from accept/connect to admission
  int max_half_open = 256;            // connections that are not yet admitted
  uint32_t max_unadmitted_bytes = 64 << 10;  // what an unadmitted connection may send in all
  uint32_t max_message_bytes = 4 << 20;      // a control message
  uint32_t max_chunk_bytes = 4 << 20;        // a bulk frame's payload
  uint64_t max_queued_bytes = 64 << 20;      // control bytes per link that are not yet sent, and
                                             // messages not yet taken; beyond: link closes
  int silence_limit_ms = 5000;  // nothing heard on an admitted link (heartbeats count): dead
  int heartbeat_ms = 1000;
};

// Who is the TLS client of a connection that this end dials.
enum class Role : uint8_t {
  kClient,  // the dialer, as usual
  kById,    // whoever has the lower peer id: both ends of a simultaneous open say so
  kServer,  // not the dialer: the other end, which dialled as well (both called a relay, say)
};

struct DialOptions {
  std::string host;
  uint16_t port = 0;
  bool has_expected = false;
  PeerId expected{};  // refuse anybody else
  int timeout_ms = 5000;
  uint16_t local_port = 0;    // != 0: bind it (SO_REUSEADDR|SO_REUSEPORT), for simultaneous open
  Role role = Role::kClient;  // kById and kServer need `expected`
  // Birthday punching (see link/birthday.h), with role kById and the host's address in digits. The
  // first link that comes up among all that connect, or come in, is the dial's.
  int sockets = 1;               // > 1: so many to host:port, from fresh ports
  int spray = 0;                 // > 0: from local_port to so many other ports of host, at random
  std::string relay_token = {};  // 32 bytes: host:port is a relay, and this is what it knows us by
  uint8_t relay_side = 0;        // 0 or 1: the other end says the other
  bool carrier = false;  // the TLS client puts all streams of the link on this one connection; its
                         // server need not know beforehand
};

struct Event {
  enum class Type : uint8_t {
    kLinkUp,      // handshake done, peer proven; not admitted yet
    kLinkDown,    // error says why; the last event of a link that was up
    kDialFailed,  // dial says which; error says why
    kMessage,     // data: the message's bytes
    kProbeAck,    // seq, incarnation, progress, rtt_us
    kBlob,        // seq: blob key; the posted buffer is full
    kBlobFailed,  // seq: blob key; error says why
    kBlobSent,    // seq: blob key; it has left, or never will: its memory is free
    kReflexive,   // dial: of Reflexive; address: ours, as the other end sees it
    kKnocked,     // dial: of Knock; somebody took the connection
    kRelayEnded,  // exporter: the token; seq: bytes relayed, both ways; error: why, if not at the
                  // wish of both sides
  };
  Type type{};
  LinkId link = 0;
  uint64_t dial = 0;  // the Dial call it stems from; 0: inbound
  PeerId peer{};
  bool inbound = false;  // true on exactly one end of a link: that of the TLS server
  std::string address;   // kLinkUp: remote "host:port"
  bool carrier = false;  // kLinkUp: all its streams share one connection (see link/carrier.h)
  std::string exporter;  // kLinkUp: 32 bytes of keying material (RFC 9266), same on both ends
  std::string data;
  uint64_t seq = 0;
  uint32_t incarnation = 0;
  uint64_t progress = 0;
  uint64_t rtt_us = 0;
  Error error;
};

struct LinkStats {
  uint64_t control_bytes_sent = 0, control_bytes_received = 0;
  uint64_t bulk_bytes_sent = 0, bulk_bytes_received = 0;
  uint64_t queued_bytes = 0;  // control bytes not yet given to the kernel
  uint64_t rtt_us = 0;        // smoothed, from heartbeats and probes
  uint64_t min_rtt_us = 0;    // the smallest of them: the path without load
  int bulk_streams = 0;
  bool carrier = false;
};

// Bytes per second, all bulk streams together, at the best of times lately; 0: not known.
struct NetworkRates {
  double up = 0, down = 0;
};

struct EndpointCounters {
  uint64_t links_up = 0, refused = 0, half_open = 0, protocol_errors = 0;
  uint64_t bytes_sent = 0, bytes_received = 0;  // all streams, payload and headers
};

class Endpoint {
 public:
  explicit Endpoint(EndpointOptions);  // throws Error(kConfig)
  ~Endpoint();                         // closes everything, joins both threads
  Endpoint(const Endpoint&) = delete;

  const PeerId& id() const;

  // The port is probed without SO_REUSEPORT first, so that a second peer on it is told.
  // host may be an IPv4 or IPv6 literal or a name; port 0 takes a free one. Throws Error.
  uint16_t Listen(const std::string& host, uint16_t port);
  // Answers later with kLinkUp or kDialFailed that carry the returned number.
  uint64_t Dial(const DialOptions&);
  // Asks another endpoint for the address that it sees this one come from, from local_port if that
  // is not 0. Answers with kReflexive or kDialFailed.
  uint64_t Reflexive(const std::string& host, uint16_t port, uint16_t local_port, int timeout_ms);
  // Does that address let a stranger in? Connects from a fresh port and hangs up without a word.
  // Answers with kKnocked or kDialFailed.
  uint64_t Knock(const std::string& host, uint16_t port, int timeout_ms);
  // Relay for others: two connections that show this token (32 bytes), sides 0 and 1, are spliced
  // if they come within ttl_ms. kRelayEnded follows, once per offer.
  void OfferRelay(const std::string& token, uint64_t max_bytes_s, int ttl_ms);
  void EndRelay(const std::string& token);
  void SetRelayLimit(uint64_t max_bytes_s);  // as relay_max_bytes_s, from now on
  std::vector<RelaySession> RelayStats() const;
  // The layer above has checked the other end's credential: lift the limits, start heartbeats.
  void Admit(LinkId);
  // Send a kRefuse frame with one sentence, then close: the other end gets kLinkDown(kRefused).
  void Refuse(LinkId, const std::string& says);
  // priority 0 goes before 1 goes before 2; order is kept within a priority.
  void Send(LinkId, std::string message, int priority = 1);
  void Close(LinkId, const std::string& reason);

  // A probe is answered by the other end's native code, whatever its Python is doing. If
  // suspected_incarnation >= its own, the answering peer first raises its own above it: that
  // refutes the suspicion.
  void Probe(LinkId, uint64_t seq, uint32_t suspected_incarnation);
  void SetProgress(uint64_t progress);  // carried by every kProbeAck
  uint32_t incarnation() const;
  // First 8 bytes of run and lineage id and the epoch, stamped on every frame we send.
  void SetStamp(uint64_t run, uint64_t lineage, uint64_t epoch);

  // State transfer: a blob is `size` bytes under a key that both ends agreed on by message.
  // Sender: the memory is borrowed until done() is called (data thread), also on failure.
  void SendBlob(LinkId, uint64_t key, const uint8_t* data, uint64_t size,
                std::function<void()> done);
  // Receiver: post before asking for it (returns once the data thread knows the buffer). kBlob or
  // kBlobFailed follows exactly once. Blobs that nobody posted are drained and forgotten.
  void PostBlob(LinkId, uint64_t key, uint8_t* into, uint64_t size);
  void CancelBlob(uint64_t key);  // returns when the buffer is no longer touched

  // Events so far, without waiting. event_fd() is readable while there are any.
  std::vector<Event> TakeEvents();
  int event_fd() const;

  LinkStats Stats(LinkId) const;
  LinkStats StatsOf(const PeerId&) const;  // of the link that serves; all zero: there is none
  // What the network has carried, over this period and the one before; a period ends when the
  // caller says so.
  NetworkRates Rates() const;
  void EndRatePeriod();
  EndpointCounters Counters() const;

  // The data plane, for collectives: at most one handler besides the blob transfers, which
  // share the streams (kChunk, kOp* go to the handler; kBlob does not).
  BulkTransport& bulk();
  void SetBulkHandler(BulkHandler*);  // nullptr detaches; returns when no callback is running

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace decentral
