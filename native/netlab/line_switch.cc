#include "netlab/line_switch.h"

#include <algorithm>
#include <cstring>

namespace decentral::netlab {
namespace {

constexpr uint32_t kDeliver = 1u << 31;
// A line that was idle may catch up on this much: we may have been asleep, not the sender.
constexpr int64_t kBurstNs = 1'000'000;

// Network byte order.
uint32_t Load16(const uint8_t* at) { return uint32_t{at[0]} << 8 | at[1]; }
void Store16(uint8_t* at, uint32_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}

// Of two things that happen by chance, at least one.
double Either(double a, double b) { return a + b - a * b; }

}  // namespace

int64_t Shaper::Leave(int64_t now, size_t bytes, int64_t queue_ns) {
  if (ns_per_byte_ == 0) return now;
  const int64_t clear = std::max(clear_ns_, now - kBurstNs) +
                        static_cast<int64_t>(ns_per_byte_ * static_cast<double>(bytes));
  if (clear - now > queue_ns) return -1;
  clear_ns_ = clear;
  return std::max(now, clear);
}

LineSwitch::LineSwitch(std::vector<uint32_t> addresses, size_t packets, uint64_t seed)
    : hosts_(addresses.size()),
      delay_ns_(addresses.size() * addresses.size()),
      reached_ns_(addresses.size() * addresses.size()),
      blocked_(addresses.size() * addresses.size()),
      random_(seed),
      bytes_(new uint8_t[packets * kMaxPacket]),
      packets_(packets) {
  for (size_t i = 0; i < addresses.size(); ++i) hosts_[i].address = addresses[i];
  events_.reserve(packets);
  free_.reserve(packets);
  for (uint32_t i = static_cast<uint32_t>(packets) - 1; i > 0; --i) free_.push_back(i);
}

int LineSwitch::FindHost(uint32_t address) const {
  for (size_t i = 0; i < hosts_.size(); ++i) {
    if (hosts_[i].address == address) return static_cast<int>(i);
  }
  return -1;
}

// splitmix64: the same seed and the same packets lose the same ones.
uint64_t LineSwitch::Random() {
  uint64_t x = random_ += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

bool LineSwitch::Chance(double probability) {
  return probability > 0 && static_cast<double>(Random() >> 11) * 0x1p-53 < probability;
}

// The checksum is corrected by the difference (RFC 1624): one that was wrong before stays wrong.
bool LineSwitch::Corrupt(uint8_t* ip, size_t size) {
  constexpr uint8_t kTcp = 6;
  constexpr size_t kTcpHeader = 20, kChecksum = 16;
  const size_t total = std::min<size_t>(size, Load16(ip + 2));
  const size_t tcp = size_t{ip[0]} % 16 * 4;
  const bool fragment = (Load16(ip + 6) & 0x3FFF) != 0;
  if (ip[9] != kTcp || fragment || tcp < 20 || total < tcp + kTcpHeader) return false;
  const size_t payload = tcp + size_t{ip[tcp + 12]} / 16 * 4;
  if (payload < tcp + kTcpHeader || payload >= total) return false;
  const uint64_t random = Random();
  const size_t victim = payload + random % (total - payload);
  const auto flip = static_cast<uint8_t>(1u << (random >> 61));
  const uint32_t weight = (victim - tcp) % 2 == 0 ? 256 : 1;
  const uint32_t was = ip[victim] * weight;
  ip[victim] ^= flip;
  uint32_t sum = (~Load16(ip + tcp + kChecksum) & 0xFFFF) + (~was & 0xFFFF) + ip[victim] * weight;
  while (sum > 0xFFFF) sum = (sum & 0xFFFF) + (sum >> 16);
  Store16(ip + tcp + kChecksum, ~sum & 0xFFFF);
  return true;
}

void LineSwitch::Push(int64_t at, uint32_t packet) {
  events_.push_back({at, order_++, packet});
  std::push_heap(events_.begin(), events_.end(), Later);
}

void LineSwitch::Arrive(int from, size_t size, int64_t now) {
  Host& host = hosts_[from];
  uint8_t* ip = Buffer();
  if (size < 20 || ip[0] >> 4 != 4) return;  // IPv6 router solicitations and the like
  ++host.counters.sent_packets;
  host.counters.sent_bytes += size;
  uint32_t destination;
  std::memcpy(&destination, ip + 16, sizeof destination);
  const int to = FindHost(destination);
  if (to < 0) {
    ++host.counters.astray;
    return;
  }
  if (host.cut || hosts_[to].cut) {
    ++host.counters.cut;
    return;
  }
  const size_t pair = from * hosts_.size() + to;
  if (blocked_[pair]) {
    ++host.counters.blocked;
    return;
  }
  const int64_t left = host.up.Leave(now, size, host.queue_ns);
  if (left < 0 || free_.empty()) {
    ++host.counters.dropped_up;
    return;
  }
  if (Chance(Either(loss_, Either(host.loss, hosts_[to].loss)))) {
    ++host.counters.lost;
    return;
  }
  if (Chance(Either(host.corruption, hosts_[to].corruption)) && Corrupt(ip, size)) {
    ++host.counters.corrupted;
  }
  reached_ns_[pair] = std::max(reached_ns_[pair], left + delay_ns_[pair]);
  packets_[next_] = {static_cast<uint16_t>(size), static_cast<uint16_t>(to)};
  Push(reached_ns_[pair], next_);
  next_ = free_.back();
  free_.pop_back();
}

bool LineSwitch::NextDelivery(int64_t now, Delivery* out) {
  if (has_delivered_) Free(delivered_);
  has_delivered_ = false;
  while (!events_.empty() && events_.front().at <= now) {
    const Event event = events_.front();
    std::pop_heap(events_.begin(), events_.end(), Later);
    events_.pop_back();
    const uint32_t packet = event.packet & ~kDeliver;
    const Packet& about = packets_[packet];
    Host& host = hosts_[about.to];
    if (host.cut) {
      ++host.counters.cut;
      Free(packet);
    } else if (event.packet & kDeliver) {
      ++host.counters.delivered_packets;
      host.counters.delivered_bytes += about.size;
      delivered_ = packet;
      has_delivered_ = true;
      *out = {about.to, At(packet), about.size};
      return true;
    } else if (const int64_t left = host.down.Leave(event.at, about.size, host.queue_ns);
               left >= 0) {
      Push(left, packet | kDeliver);
    } else {
      ++host.counters.dropped_down;
      Free(packet);
    }
  }
  return false;
}

}  // namespace decentral::netlab
