// A switch whose lines have a rate, a delay, a loss and worse. Pure: no sockets, no clock.
//
//   A ──▶ [up: rate, ≤ queue] ── loss? flip? ── delay(A→B) ──▶ [down of B: rate, ≤ queue] ──▶ B
//                  │ full                                               │ full
//                  ▼ drop                                               ▼ drop
//
// A queue at a constant rate needs no queue: when a packet comes, it is known when it will leave.
// So a packet is two entries in one heap of events (it reaches B's queue; it is delivered), and
// being served late by a busy machine costs no throughput: all times are the line's, not ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace decentral::netlab {

inline constexpr size_t kMaxPacket = 1536;

// One direction of one host's line. `queue_ns`: what a packet may wait; beyond, it is dropped.
class Shaper {
 public:
  void set_rate(double mbit_per_s) { ns_per_byte_ = mbit_per_s > 0 ? 8e3 / mbit_per_s : 0; }
  // When a packet that comes at `now` has left; -1: the queue is full, it is dropped.
  int64_t Leave(int64_t now, size_t bytes, int64_t queue_ns);

 private:
  double ns_per_byte_ = 0;  // 0: no limit
  int64_t clear_ns_ = 0;    // when all that was accepted has left
};

struct HostCounters {
  uint64_t sent_packets = 0, sent_bytes = 0;            // came from the host
  uint64_t delivered_packets = 0, delivered_bytes = 0;  // reached the host
  uint64_t dropped_up = 0, dropped_down = 0;            // queue full
  uint64_t lost = 0, cut = 0, astray = 0;               // by chance; cable cut; no such destination
  uint64_t blocked = 0, corrupted = 0;                  // of those that came from the host
};

class LineSwitch {
 public:
  // `addresses`: IPv4, network byte order, one per host. `packets`: how many may be on the way.
  LineSwitch(std::vector<uint32_t> addresses, size_t packets, uint64_t seed);

  int hosts() const { return static_cast<int>(hosts_.size()); }

  // Where the next packet shall be read into: kMaxPacket bytes. Always valid.
  uint8_t* Buffer() { return At(next_); }
  // `size` bytes in Buffer() came from a host. Takes a copy of nothing: Buffer() moves on.
  void Arrive(int from, size_t size, int64_t now);

  // Works off what is due. The packet to deliver (valid until the next call), or false.
  struct Delivery {
    int to;
    const uint8_t* data;
    size_t size;
  };
  bool NextDelivery(int64_t now, Delivery* out);
  // When something is due next; INT64_MAX: never.
  int64_t NextEvent() const { return events_.empty() ? INT64_MAX : events_.front().at; }

  // Changes count for packets that come from now on. Rates: Mbit/s, 0: no limit.
  void SetUp(int host, double mbit_per_s) { hosts_[host].up.set_rate(mbit_per_s); }
  void SetDown(int host, double mbit_per_s) { hosts_[host].down.set_rate(mbit_per_s); }
  void SetQueue(int host, int64_t ns) { hosts_[host].queue_ns = ns; }
  void SetDelay(int from, int to, int64_t ns) { delay_ns_[from * hosts_.size() + to] = ns; }
  void SetLoss(double probability) { loss_ = probability; }
  void SetLoss(int host, double probability) { hosts_[host].loss = probability; }
  void SetCorruption(int host, double probability) { hosts_[host].corruption = probability; }
  void SetBlocked(int from, int to, bool on) { blocked_[from * hosts_.size() + to] = on; }
  void SetCut(int host, bool cut) { hosts_[host].cut = cut; }

  const HostCounters& Counters(int host) const { return hosts_[host].counters; }

 private:
  struct Host {
    uint32_t address = 0;
    Shaper up, down;
    int64_t queue_ns = 50'000'000;
    double loss = 0, corruption = 0;  // of what it sends and of what it gets
    bool cut = false;
    HostCounters counters;
  };
  struct Event {
    int64_t at;
    uint32_t order;   // ties leave in the order in which they came
    uint32_t packet;  // index; the top bit: it is delivered now (else: it reaches the down queue)
  };
  struct Packet {
    uint16_t size;
    uint16_t to;
  };
  static bool Later(const Event& a, const Event& b) {
    return a.at != b.at ? a.at > b.at : static_cast<int32_t>(a.order - b.order) > 0;
  }

  uint8_t* At(uint32_t packet) { return bytes_.get() + size_t{packet} * kMaxPacket; }
  int FindHost(uint32_t address) const;
  uint64_t Random();
  bool Chance(double probability);
  bool Corrupt(uint8_t* ip, size_t size);  // false: there is no TCP payload in it
  void Push(int64_t at, uint32_t packet);
  void Free(uint32_t packet) { free_.push_back(packet); }

  std::vector<Host> hosts_;
  std::vector<int64_t> delay_ns_;    // [from][to]
  std::vector<int64_t> reached_ns_;  // [from][to]: a shorter delay lets nobody overtake
  std::vector<bool> blocked_;        // [from][to]
  double loss_ = 0;
  uint64_t random_;
  std::unique_ptr<uint8_t[]> bytes_;  // never zeroed: only what was used is resident
  std::vector<Packet> packets_;
  std::vector<uint32_t> free_;  // a stack: the last one used is still in the cache
  std::vector<Event> events_;   // a heap, earliest first; capacity for all packets
  uint32_t order_ = 0;
  uint32_t next_ = 0;       // Buffer()
  uint32_t delivered_ = 0;  // given out by NextDelivery, freed by the next one
  bool has_delivered_ = false;
};

}  // namespace decentral::netlab
