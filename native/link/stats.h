// What any thread may see of a link or an endpoint while the two loops work on it.
#pragma once

#include <atomic>
#include <cstdint>

namespace decentral {

struct LinkShared {
  // Set by Admit itself, not in its turn on the control thread: what the other end sends because
  // it was admitted may arrive before that turn.
  std::atomic<bool> admitted{false};
  std::atomic<uint64_t> read_limit{UINT64_MAX};  // bytes in all, TLS's own included
  std::atomic<uint64_t> control_sent{0}, control_received{0};
  std::atomic<uint64_t> bulk_sent{0}, bulk_received{0};
  std::atomic<uint64_t> queued{0};       // given to Send, not yet written
  std::atomic<uint64_t> undelivered{0};  // of messages that nobody has taken yet
  std::atomic<uint64_t> rtt_us{0};       // smoothed
  std::atomic<uint64_t> min_rtt_us{0};   // of the path without load; 0: not known
  std::atomic<int> streams{0};
  std::atomic<bool> carrier{false};
};

struct EndpointMeters {
  std::atomic<uint64_t> links_up{0}, refused{0}, half_open{0}, protocol_errors{0};
  std::atomic<uint64_t> bytes_sent{0}, bytes_received{0};
};

// What SetStamp says; the control and the data thread both put it on their frames.
struct Stamp {
  std::atomic<uint64_t> run{0}, lineage{0}, epoch{0};
};

}  // namespace decentral
