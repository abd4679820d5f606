// The line's arithmetic on a clock of its own: delay, rate, queue, loss, cut, order, flipped bytes.
#include "netlab/line_switch.h"

#include <cstring>
#include <vector>

#include "netlab/commands.h"
#include "tests/check.h"

namespace decentral::test {
namespace {

using netlab::Execute;
using netlab::LineSwitch;

constexpr int64_t kMs = 1'000'000;

LineSwitch Make(int hosts = 3, uint64_t seed = 1) {
  std::vector<uint32_t> addresses;
  for (int host = 0; host < hosts; ++host) addresses.push_back(100 + host);
  return LineSwitch(addresses, 4096, seed);
}

void Arrive(LineSwitch& lines, int from, int to, int64_t now, size_t size = 1250,
            uint8_t mark = 0) {
  uint8_t* ip = lines.Buffer();
  std::memset(ip, 0, size);
  ip[0] = 0x45;
  const uint32_t address = 100 + to;
  std::memcpy(ip + 16, &address, sizeof address);
  ip[20] = mark;
  lines.Arrive(from, size, now);
}

// How many come out by then, and the last one's time by the line's own clock.
int Drain(LineSwitch& lines, int64_t until, int64_t* last = nullptr) {
  int count = 0;
  LineSwitch::Delivery out;
  while (lines.NextEvent() <= until) {
    const int64_t at = lines.NextEvent();
    while (lines.NextDelivery(at, &out)) {
      ++count;
      if (last) *last = at;
    }
  }
  return count;
}

TEST(delay_is_per_direction) {
  LineSwitch lines = Make();
  CHECK(Execute(lines, "delay 0 1 25") == "ok");
  CHECK(Execute(lines, "delay 1 0 5.5") == "ok");
  Arrive(lines, 0, 1, 0);
  CHECK(lines.NextEvent() == 25 * kMs);
  CHECK(Drain(lines, 25 * kMs - 1) == 0 && Drain(lines, 25 * kMs) == 1);
  Arrive(lines, 1, 0, 30 * kMs);
  CHECK(lines.NextEvent() == 30 * kMs + 5'500'000);
  CHECK(lines.Counters(0).sent_packets == 1 && Drain(lines, 100 * kMs) == 1);
  CHECK(lines.Counters(0).delivered_bytes == 1250 && lines.Counters(2).delivered_packets == 0);
}

TEST(the_rate_spaces_packets_and_the_queue_is_bounded) {
  LineSwitch lines = Make();
  Execute(lines, "rate 0 up 100");  // 1250 bytes: 0.1 ms
  Execute(lines, "queue 0 10");
  for (int i = 0; i < 1000; ++i) Arrive(lines, 0, 1, kMs * 1000);
  int64_t last = 0;
  const int through = Drain(lines, INT64_MAX - 1, &last);
  // 10 ms of queue, and the millisecond of burst of a line that was idle.
  CHECK(through == 110 && lines.Counters(0).dropped_up == 890);
  CHECK(last == 1010 * kMs);
}

TEST(a_late_reader_costs_no_throughput) {
  LineSwitch lines = Make();
  Execute(lines, "rate * down 100");
  for (int i = 0; i < 300; ++i) Arrive(lines, i % 2, 2, kMs * 1000);
  LineSwitch::Delivery out;
  int count = 0;
  while (lines.NextDelivery(1100 * kMs, &out)) ++count;  // nobody looked for 100 ms
  CHECK(count == 300 && out.to == 2);
}

TEST(an_overload_at_the_far_end_is_dropped_there) {
  LineSwitch lines = Make();
  Execute(lines, "rate 2 down 10");
  Execute(lines, "queue 2 20");
  for (int i = 0; i < 100; ++i) Arrive(lines, 0, 2, 0);
  CHECK(Drain(lines, INT64_MAX - 1) == 20 && lines.Counters(2).dropped_down == 80);
}

TEST(loss_is_seeded) {
  uint64_t lost[3];
  for (int run = 0; run < 3; ++run) {
    LineSwitch lines = Make(3, run == 2 ? 7 : 1);
    Execute(lines, "loss 0.1");
    for (int i = 0; i < 4000; ++i) {
      Arrive(lines, 0, 1, i);
      Drain(lines, i);
    }
    lost[run] = lines.Counters(0).lost;
    CHECK(lost[run] > 300 && lost[run] < 500);
  }
  CHECK(lost[0] == lost[1] && lost[0] != lost[2]);
}

TEST(a_cut_takes_what_is_under_way) {
  LineSwitch lines = Make();
  Execute(lines, "delay * * 10");
  Arrive(lines, 0, 1, 0);
  Execute(lines, "cut 1");
  Arrive(lines, 1, 2, kMs);
  Arrive(lines, 0, 2, kMs);
  CHECK(Drain(lines, 100 * kMs) == 1);
  CHECK(lines.Counters(1).cut == 2);
  Execute(lines, "heal 1");
  Arrive(lines, 0, 1, 200 * kMs);
  CHECK(Drain(lines, 300 * kMs) == 1);
}

TEST(a_shorter_delay_lets_nobody_overtake) {
  LineSwitch lines = Make();
  Execute(lines, "delay 0 1 50");
  Arrive(lines, 0, 1, 0, 1250, 1);
  Execute(lines, "delay 0 1 1");
  Arrive(lines, 0, 1, kMs, 1250, 2);
  LineSwitch::Delivery out;
  CHECK(lines.NextDelivery(60 * kMs, &out) && out.data[20] == 1);
  CHECK(lines.NextDelivery(60 * kMs, &out) && out.data[20] == 2);
}

TEST(a_block_is_of_one_direction) {
  LineSwitch lines = Make();
  CHECK(Execute(lines, "block 0 1 on") == "ok");
  Arrive(lines, 0, 1, 0);
  Arrive(lines, 1, 0, 0);
  Arrive(lines, 0, 2, 0);
  Arrive(lines, 2, 1, 0);
  CHECK(Drain(lines, kMs) == 3 && lines.Counters(1).delivered_packets == 1);
  CHECK(lines.Counters(0).blocked == 1 && lines.Counters(1).blocked == 0);
  CHECK(Execute(lines, "block 0 1 off") == "ok");
  Arrive(lines, 0, 1, 2 * kMs);
  CHECK(Drain(lines, 3 * kMs) == 1);
  Execute(lines, "block * 2 on");
  Arrive(lines, 0, 2, 4 * kMs);
  Arrive(lines, 1, 2, 4 * kMs);
  Arrive(lines, 2, 1, 4 * kMs);
  CHECK(Drain(lines, 5 * kMs) == 1 && lines.Counters(1).blocked == 1);
}

TEST(a_host_can_have_a_loss_of_its_own) {
  LineSwitch lines = Make();
  CHECK(Execute(lines, "loss 2 0.1") == "ok");
  for (int i = 0; i < 4000; ++i) {
    Arrive(lines, 0, 2, i);
    Arrive(lines, 2, 1, i);
    Arrive(lines, 0, 1, i);
    Drain(lines, i);
  }
  for (const int host : {0, 2}) {
    CHECK(lines.Counters(host).lost > 300 && lines.Counters(host).lost < 500);
  }
  CHECK(lines.Counters(1).delivered_packets == 8000 - lines.Counters(2).lost);
  Execute(lines, "loss 0.5");
  for (int i = 0; i < 1000; ++i) Arrive(lines, 0, 1, kMs);
  const int half = Drain(lines, kMs);
  CHECK(half > 400 && half < 600);
}

// The one's complement sum over the pseudo header and the segment: 0xFFFF where the checksum fits.
uint32_t TcpSum(const uint8_t* ip, size_t size) {
  uint32_t sum = 6 + static_cast<uint32_t>(size) - 20;
  for (size_t i = 12; i < size; ++i) sum += i % 2 == 0 ? ip[i] << 8 : ip[i];
  while (sum > 0xFFFF) sum = (sum & 0xFFFF) + (sum >> 16);
  return sum;
}

// A TCP packet with options and a payload of 'x'; its checksum fits.
std::vector<uint8_t> Segment(size_t payload, uint8_t protocol = 6) {
  std::vector<uint8_t> ip(20 + 32 + payload, 'x');
  std::memset(ip.data(), 0, 52);
  ip[0] = 0x45;
  ip[2] = static_cast<uint8_t>(ip.size() >> 8);
  ip[3] = static_cast<uint8_t>(ip.size());
  ip[9] = protocol;
  const uint32_t from = 100, to = 101;
  std::memcpy(&ip[12], &from, 4);
  std::memcpy(&ip[16], &to, 4);
  ip[32] = 8 << 4;
  const uint32_t sum = TcpSum(ip.data(), ip.size());
  ip[36] = static_cast<uint8_t>(~sum >> 8);
  ip[37] = static_cast<uint8_t>(~sum);
  return ip;
}

// How many bytes of the packet's payload are others at the far end; -1: more than that.
int Changed(LineSwitch& lines, const std::vector<uint8_t>& sent, int64_t now) {
  std::memcpy(lines.Buffer(), sent.data(), sent.size());
  lines.Arrive(0, sent.size(), now);
  LineSwitch::Delivery out;
  if (!lines.NextDelivery(now, &out) || out.size != sent.size()) return -1;
  if (sent[9] == 6 && TcpSum(out.data, out.size) != 0xFFFF) return -1;
  int changed = 0;
  for (size_t i = 0; i < sent.size(); ++i) {
    if (out.data[i] == sent[i]) continue;
    if (i < 52 && i != 36 && i != 37) return -1;
    changed += i >= 52;
  }
  return changed;
}

TEST(a_flipped_byte_is_in_the_payload_and_its_checksum_fits) {
  LineSwitch lines = Make();
  const std::vector<uint8_t> packet = Segment(1001);
  CHECK(Changed(lines, packet, 0) == 0);
  CHECK(Execute(lines, "corrupt 1 1") == "ok");
  for (int i = 1; i <= 2000; ++i) CHECK(Changed(lines, packet, i) == 1);
  CHECK(Changed(lines, Segment(1), 3000) == 1);
  CHECK(lines.Counters(0).corrupted == 2001 && lines.Counters(1).corrupted == 0);
}

TEST(some_packets_are_corrupted_and_headers_never) {
  LineSwitch lines = Make();
  Execute(lines, "corrupt 0 0.25");
  int corrupted = 0;
  for (int i = 0; i < 4000; ++i) corrupted += Changed(lines, Segment(100), i);
  CHECK(corrupted > 850 && corrupted < 1150);
  Execute(lines, "corrupt 0 1");
  CHECK(Changed(lines, Segment(0), 5000) == 0);        // a bare acknowledgement
  CHECK(Changed(lines, Segment(100, 17), 5000) == 0);  // UDP
  std::vector<uint8_t> piece = Segment(100);
  piece[6] = 0x20;  // more fragments follow: the checksum is over all of them
  CHECK(Changed(lines, piece, 5000) == 0);
  for (const uint8_t offset : {0x00, 0x40, 0xF0}) {  // of the data: within the header, or beyond
    std::vector<uint8_t> odd = Segment(8);
    odd[32] = offset;
    LineSwitch::Delivery out;
    std::memcpy(lines.Buffer(), odd.data(), odd.size());
    lines.Arrive(0, odd.size(), 5000);
    CHECK(lines.NextDelivery(5000, &out) && std::memcmp(out.data, odd.data(), odd.size()) == 0);
  }
  CHECK(lines.Counters(0).corrupted == static_cast<uint64_t>(corrupted));
}

TEST(a_full_switch_drops_and_recovers) {
  LineSwitch lines({100, 101}, 16, 1);
  Execute(lines, "delay * * 10");
  for (int i = 0; i < 50; ++i) Arrive(lines, 0, 1, 0);
  CHECK(lines.Counters(0).dropped_up == 35);
  CHECK(Drain(lines, 10 * kMs) == 15);
  for (int i = 0; i < 10; ++i) Arrive(lines, 0, 1, 20 * kMs);
  CHECK(Drain(lines, 100 * kMs) == 10);
}

TEST(what_is_no_packet_for_us_goes_nowhere) {
  LineSwitch lines = Make();
  Arrive(lines, 0, 77, 0);
  CHECK(lines.Counters(0).astray == 1);
  std::memset(lines.Buffer(), 0x60, 60);
  lines.Arrive(0, 60, 0);
  lines.Arrive(0, 3, 0);
  CHECK(Drain(lines, INT64_MAX - 1) == 0 && lines.Counters(0).sent_packets == 1);
}

TEST(wrong_commands_are_answered_in_words) {
  LineSwitch lines = Make();
  for (const char* wrong : {"", "nonsense", "rate 0 up", "rate 3 up 5", "rate 0 sideways 5",
                            "rate 0 up -1", "rate 0 up 5x", "rate 0.5 up 1", "delay 0 1 nan",
                            "loss 1.5", "loss 3 0.5", "loss 0 1 2", "corrupt 0.5", "corrupt 0 2",
                            "block 0 1", "block 0 1 maybe", "block 0 3 on", "cut", "stats 1"}) {
    CHECK(Execute(lines, wrong).rfind("error: ", 0) == 0);
  }
  CHECK(Execute(lines, "stats").rfind("{\"hosts\": [{\"sent_packets\": 0", 0) == 0);
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
