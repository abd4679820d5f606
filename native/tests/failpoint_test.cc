// Failpoints: what they do, when, and that a passage is free while none is armed.
#include "core/failpoint.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine_cluster.h"

namespace decentral::test {
namespace {

TEST(names_are_unique_and_found) {
  std::set<std::string> names;
  for (size_t i = 0; i < static_cast<size_t>(Failpoint::kCount); ++i) {
    const auto point = static_cast<Failpoint>(i);
    CHECK(names.insert(NameOf(point)).second);
    CHECK(FailpointNamed(NameOf(point)) == point);
  }
  CHECK(!FailpointNamed("nonesuch") && !FailpointNamed(""));
}

TEST(an_error_comes_at_the_nth_passage_and_once) {
  CHECK(!FailHere(Failpoint::kQuantize));
  ArmFailpoint(Failpoint::kQuantize, FailAction::kError, 0, 3);
  CHECK(!FailHere(Failpoint::kAllGather));  // another one's passages do not count
  CHECK(!FailHere(Failpoint::kQuantize) && !FailHere(Failpoint::kQuantize));
  CHECK(FailHere(Failpoint::kQuantize));
  CHECK(!FailHere(Failpoint::kQuantize));
  CHECK(internal::armed_failpoints == 0);
  const auto failed = FailedSoFar();
  CHECK(failed.size() == 1 && failed[0].where == Failpoint::kQuantize);
  CHECK(failed[0].action == FailAction::kError && failed[0].at_s > 0);
}

TEST(what_is_disarmed_does_nothing) {
  ArmFailpoint(Failpoint::kAllGather, FailAction::kCrash, 0, 1);
  ArmFailpoint(Failpoint::kQuantize, FailAction::kError, 0, 1);
  DisarmFailpoint(Failpoint::kAllGather);
  CHECK(!FailHere(Failpoint::kAllGather) && FailHere(Failpoint::kQuantize));
}

TEST(a_stall_sleeps_in_whoever_passes) {
  ArmFailpoint(Failpoint::kQuantize, FailAction::kStall, 0.05, 1);
  const auto before = std::chrono::steady_clock::now();
  CHECK(!FailHere(Failpoint::kQuantize));
  CHECK(std::chrono::steady_clock::now() - before >= std::chrono::milliseconds(50));
}

TEST(of_many_threads_one_fails) {
  ArmFailpoint(Failpoint::kQuantize, FailAction::kError, 0, 100);
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 1000; ++n) failed += FailHere(Failpoint::kQuantize);
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(failed == 1);
}

TEST(a_crash_is_a_kill) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    ArmFailpoint(Failpoint::kQuantize, FailAction::kCrash, 0, 1);
    FailHere(Failpoint::kQuantize);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

// An operation that fails at any of its points ends everywhere with an error, and the next attempt
// succeeds: with every planner, in every member that happens to pass first.
TEST(an_operation_that_fails_here_fails_for_all_and_can_be_tried_again) {
  for (const Failpoint point :
       {Failpoint::kQuantize, Failpoint::kReduceScatter, Failpoint::kAllGather}) {
    for (uint64_t passage = 1; passage <= 40; ++passage) {
      Setup s{.n = 3, .count = 5000, .codec = Codec::kInt8, .seed = passage};
      s.planner = passage % 2 ? Ring : Butterfly;
      ArmFailpoint(point, FailAction::kError, 0, passage);
      Cluster c(s);
      c.BeginAll();
      c.Run();
      if (internal::armed_failpoints != 0) {  // fewer passages than that: it went through
        DisarmFailpoint(point);
        CheckResult(c);
        CHECK(passage > 2);
        continue;
      }
      int failed = 0;
      for (int i = 0; i < 3; ++i) {
        const Error error = c.ops[i]->error();
        failed += error.kind != ErrorKind::kNone;
        CHECK(!error || error.kind == ErrorKind::kAborted);
        CHECK(!error || error.text.find(NameOf(point)) != std::string::npos);
      }
      CHECK(failed >= 1);
      for (int i = 0; i < 3; ++i) {
        OpSpec again = c.Spec(i);
        again.attempt = 1;
        c.Begin(i, again);
      }
      c.Run();
      CheckResult(c);
    }
  }
}

TEST(a_passage_is_free) {
  constexpr int kPassages = 20'000'000;
  const auto before = std::chrono::steady_clock::now();
  for (int i = 0; i < kPassages; ++i) CHECK(!FailHere(Failpoint::kReduceScatter));
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - before;
  std::printf("(%.2f ns) ", took.count() / kPassages);
  CHECK(took.count() / kPassages < 50);  // a sanitizer's build on a busy machine too
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
