// The line's arithmetic on a clock of its own: delay, rate, queue, loss, cut, order.
#include "netlab/line_switch.h"

#include <cstring>

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
  for (const char* wrong :
       {"", "nonsense", "rate 0 up", "rate 3 up 5", "rate 0 sideways 5", "rate 0 up -1",
        "rate 0 up 5x", "rate 0.5 up 1", "delay 0 1 nan", "loss 1.5", "cut", "stats 1"}) {
    CHECK(Execute(lines, wrong).rfind("error: ", 0) == 0);
  }
  CHECK(Execute(lines, "stats").rfind("{\"hosts\": [{\"sent_packets\": 0", 0) == 0);
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
