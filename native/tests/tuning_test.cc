// What the data thread learns from what it sees: streams per link, rates, and the upload cap.
#include <chrono>
#include <cmath>

#include "check.h"
#include "link/blob_yield.h"
#include "link/rate_meter.h"
#include "link/stream_tuner.h"
#include "link/upload_gate.h"

namespace decentral::test {
namespace {

// A path where each stream carries `per_stream` bytes/ms until the pipe is full at `pipe`.
struct Path {
  double per_stream, pipe;
  int64_t now_ms = 0;
  double sent = 0;

  // Runs for `ms` with a tuner; returns how many streams there are in the end.
  int Run(StreamTuner* tuner, int open, int64_t ms, uint64_t rtt_us, bool blocked = true) {
    for (const int64_t end = now_ms + ms; now_ms < end;) {
      now_ms += 50;
      sent += 50 * std::min(per_stream * open, pipe);
      open = tuner->Sample(now_ms, static_cast<uint64_t>(sent), blocked, rtt_us, open);
    }
    return open;
  }
};

TEST(streams_grow_while_more_of_them_carry_more) {
  StreamTuner tuner(64);
  Path lossy{.per_stream = 550, .pipe = 25000};  // 4.4 of 200 Mbit/s each
  CHECK(lossy.Run(&tuner, 2, 20000, 100000) == 64);
}

TEST(streams_stop_growing_when_the_pipe_is_full) {
  StreamTuner tuner(64);
  Path path{.per_stream = 8000, .pipe = 25000};
  const int streams = path.Run(&tuner, 2, 30000, 100000);
  CHECK(streams == 8 || streams == 16);  // 4 fill it; more had to be tried
  CHECK(path.Run(&tuner, streams, 300000, 100000) == streams);
}

TEST(a_pipe_that_became_wider_is_found_in_time) {
  StreamTuner tuner(64);
  Path path{.per_stream = 550, .pipe = 1200};
  const int before = path.Run(&tuner, 2, 10000, 100000);
  path.pipe = 25000;
  CHECK(before <= 8 && path.Run(&tuner, before, 60000, 100000) == 64);
}

TEST(short_paths_and_idle_links_keep_what_they_have) {
  StreamTuner near(64), idle(64), limited(4);
  Path path{.per_stream = 550, .pipe = 25000};
  CHECK(path.Run(&near, 2, 20000, 200) == 2);
  CHECK(path.Run(&idle, 2, 20000, 100000, false) == 2);
  CHECK(path.Run(&limited, 2, 20000, 100000) == 4);
}

// Bytes at `rate` per ms for `ms`, after `burst` bytes at once.
void Feed(RateMeter* meter, int64_t* now_ms, uint64_t* total, double rate, int64_t ms,
          uint64_t burst = 0) {
  *total += burst;
  for (const int64_t end = *now_ms + ms; *now_ms < end;) {
    *now_ms += RateMeter::kSampleMs;
    *total += static_cast<uint64_t>(rate * RateMeter::kSampleMs);
    meter->Sample(*now_ms, *total);
  }
}

bool Near(double a, double b) { return std::abs(a - b) < 0.02 * b; }

TEST(a_rate_is_that_of_the_best_window_without_the_burst_before_it) {
  RateMeter meter;
  int64_t now_ms = 1000;
  uint64_t total = 0;
  Feed(&meter, &now_ms, &total, 12500, 120, 256 << 10);
  CHECK(meter.estimate() == 0);  // too short to tell
  Feed(&meter, &now_ms, &total, 12500, 400);
  CHECK(Near(meter.estimate(), 12.5e6));
  now_ms += 5000;  // a pause, and another burst
  Feed(&meter, &now_ms, &total, 6000, 1000, 256 << 10);
  CHECK(Near(meter.estimate(), 12.5e6));
}

TEST(a_slower_network_shows_after_two_periods_and_a_faster_one_at_once) {
  RateMeter meter;
  int64_t now_ms = 1000;
  uint64_t total = 0;
  Feed(&meter, &now_ms, &total, 50000, 1000);
  meter.EndPeriod();
  Feed(&meter, &now_ms, &total, 12500, 1000);
  CHECK(Near(meter.estimate(), 50e6));
  meter.EndPeriod();
  Feed(&meter, &now_ms, &total, 12500, 1000);
  CHECK(Near(meter.estimate(), 12.5e6));
  Feed(&meter, &now_ms, &total, 40000, 1000);
  CHECK(Near(meter.estimate(), 40e6));
  meter.EndPeriod();
  meter.EndPeriod();  // one without traffic has no opinion
  CHECK(Near(meter.estimate(), 40e6));
}

TEST(the_gate_lets_its_rate_through_and_no_more) {
  UploadGate gate(1000000);
  auto now = UploadGate::Clock::now();
  double passed = 0;
  for (int i = 0; i < 2000; ++i) {  // two seconds, greedy
    now += std::chrono::milliseconds(1);
    const size_t allowance = gate.Allowance(now);
    gate.Spend(allowance);
    passed += static_cast<double>(allowance);
  }
  CHECK(passed > 1.95e6 && passed < 2.05e6);
  now += std::chrono::seconds(60);
  CHECK(gate.Allowance(now) <= 20000);  // a pause is not saved up
  CHECK(!UploadGate(0).capped() && gate.capped());
}

TEST(blobs_wait_while_a_collective_moves_and_none_starves) {
  BlobYield yield;
  CHECK(yield.MayGo(1000));
  yield.Collective(1000, 0);  // announced
  CHECK(!yield.MayGo(1001) && !yield.MayGo(1099) && yield.MayGo(1100));
  uint64_t blobs = 0;
  for (int64_t now = 2000; now < 4000; ++now) {  // 50 MB of a collective
    yield.Collective(now, 25000);
    if (!yield.MayGo(now)) continue;
    yield.Went(16384);
    blobs += 16384;
  }
  CHECK(blobs > 900000 && blobs < 1100000);  // one byte in fifty
  yield.Went(1 << 30);
  CHECK(yield.MayGo(4100));  // what went in quiet times is not held against anybody
  yield.Collective(4100, 50 * 16384);
  CHECK(yield.MayGo(4100));
  yield.Collective(5000, 0);
  yield.Over(5010);  // the last one is over: rounds may be quicker than 100 ms
  CHECK(!yield.MayGo(5029) && yield.MayGo(5030));
  yield.Over(9000);
  CHECK(yield.MayGo(9000));
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
