// One TCP connection that the control thread looks after, from its first byte to its last.
//
//   accept ─▶ kFirstByte ─┬▶ kHandshake ─┬▶ kUp ──── a link ─────────────▶ kLinger ─▶ gone
//   connect ──────────────┘      │       ├▶ kRefusal (the server will name its versions)
//                                │       └▶ kBulkHello ─▶ handed to the data thread
//   plain bulk ──────────────────┴───────────▲
//   carrier ─▶ kCarrier ─▶ lane 0 of it takes the connection's place: kFirstByte
//   "relay me" ─▶ kRelay ─▶ handed to the relay's thread
//   "who am I?" ── kTellAddress (asked), kAskAddress (asking) ──▶ gone
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/reactor.h"
#include "io/socket.h"
#include "link/carrier.h"
#include "link/control_queue.h"
#include "link/control_reader.h"
#include "link/stats.h"
#include "link/stream.h"
#include "link/tcp_dial.h"

namespace decentral {

enum class Phase : uint8_t {
  kFirstByte,
  kHandshake,
  kRefusal,
  kUp,
  kBulkHello,
  kLinger,
  kCarrier,
  kRelay,
  kTellAddress,
  kAskAddress
};
enum class BulkState : uint8_t { kNone, kAsked, kOpening, kUp };

struct Connection {
  Connection(uint64_t number, uint32_t max_message_bytes) : id(number), reader(max_message_bytes) {}

  const uint64_t id;  // once up: the LinkId
  Phase phase = Phase::kFirstByte;
  bool gone = false;  // closed; whoever still holds it must let go
  Fd fd;              // until there is a stream
  std::unique_ptr<Stream> stream;
  std::shared_ptr<Carrier> carrier;  // what it is a lane of, if it is
  bool relayed = false;              // remote is a relay
  bool further_lane = false;         // not lane 0: no link of its own
  SockAddr remote;
  std::string target;       // what the user dialled, or the remote address: for sentences
  bool inbound = false;     // as events say it
  bool half_open = false;   // counts against max_half_open
  bool tls_client = false;  // this end opens the bulk streams
  uint64_t dial = 0;
  Clock::time_point deadline;  // of handshake and admission, or of the lingering

  // A bulk connection of our own, on its way to being handed over.
  uint64_t bulk_of = 0;  // the link
  int bulk_index = 0;
  std::string hello;  // what has arrived of kBulkHello, or of another opening of fixed length

  // A link.
  PeerId peer{};
  uint16_t version = 0;
  std::shared_ptr<LinkShared> shared = std::make_shared<LinkShared>();
  ControlQueue queue;
  ControlReader reader;
  std::string out;  // frames being written: [out_begin, size)
  size_t out_begin = 0;
  bool finished_writing = false;  // kLinger
  Clock::time_point last_heard, next_heartbeat;
  uint64_t bulk_heard = 0;  // shared->bulk_received when last looked at
  uint64_t read_seen = 0, written_seen = 0;

  // Its bulk streams while they are being opened.
  BulkState bulk = BulkState::kNone;
  bool bulk_asked_early = false;  // kBulkWanted came before we admitted
  uint8_t bulk_flags = 0;         // of that kBulkWanted
  std::string token;              // acceptor: what a kBulkHello must show
  int bulk_count = 0;             // of the streams being opened
  int bulk_open = 0;              // of those that are up already
  int bulk_more = 0;              // how many we want to add; 0: the default number
  uint64_t bulk_bound = 0;        // bit i: stream i has been handed over
  bool bulk_dialling = false;     // dialer: the token came
  Clock::time_point bulk_deadline;
  std::vector<std::shared_ptr<TcpDial>> bulk_dials;
};

}  // namespace decentral
