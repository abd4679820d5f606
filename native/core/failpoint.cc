#include "core/failpoint.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace decentral {
namespace {

constexpr size_t kCount = static_cast<size_t>(Failpoint::kCount);
constexpr std::array<const char*, kCount> kNames = {
    "handshake-dial", "handshake-accept", "quantize", "reduce-scatter", "all-gather",
};
constexpr size_t kMaxRemembered = 256;

struct Armed {
  FailAction action = FailAction::kCrash;
  double stall_s = 0;
  uint64_t left = 0;  // passages until it acts; 0: not armed
};

struct Registry {
  std::mutex mutex;
  std::array<Armed, kCount> armed;  // GUARDED_BY(mutex)
  std::deque<FailedHere> failed;    // GUARDED_BY(mutex)
};

Registry& All() {
  static Registry* const all = new Registry;  // never destroyed: threads may outlive main
  return *all;
}

uint32_t Bit(Failpoint point) { return uint32_t{1} << static_cast<uint32_t>(point); }

double NowS() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// For whoever reads the log of a process that is about to die: no buffers, no locks.
void Say(Failpoint point, const char* action) {
  const std::string line = std::string("failpoint ") + NameOf(point) + ": " + action + "\n";
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

const char* NameOf(Failpoint point) { return kNames[static_cast<size_t>(point)]; }

std::optional<Failpoint> FailpointNamed(std::string_view name) {
  for (size_t i = 0; i < kCount; ++i) {
    if (name == kNames[i]) return static_cast<Failpoint>(i);
  }
  return std::nullopt;
}

void ArmFailpoint(Failpoint point, FailAction action, double stall_s, uint64_t passage) {
  std::lock_guard lock(All().mutex);
  All().armed[static_cast<size_t>(point)] = {action, stall_s, passage};
  internal::armed_failpoints.fetch_or(Bit(point), std::memory_order_relaxed);
}

void DisarmFailpoint(Failpoint point) {
  std::lock_guard lock(All().mutex);
  All().armed[static_cast<size_t>(point)] = {};
  internal::armed_failpoints.fetch_and(~Bit(point), std::memory_order_relaxed);
}

std::vector<FailedHere> FailedSoFar() {
  std::lock_guard lock(All().mutex);
  return {All().failed.begin(), All().failed.end()};
}

bool internal::PassArmedFailpoint(Failpoint point) {
  Armed armed;
  {
    std::lock_guard lock(All().mutex);
    Armed& kept = All().armed[static_cast<size_t>(point)];
    if (kept.left == 0 || --kept.left > 0) return false;
    armed = std::exchange(kept, {});
    internal::armed_failpoints.fetch_and(~Bit(point), std::memory_order_relaxed);
    All().failed.push_back({point, armed.action, NowS()});
    if (All().failed.size() > kMaxRemembered) All().failed.pop_front();
  }
  switch (armed.action) {
    case FailAction::kCrash:
      Say(point, "crash");
      kill(getpid(), SIGKILL);  // no atexit, no flush, no goodbye
      return true;
    case FailAction::kStall:
      Say(point, "stall");
      std::this_thread::sleep_for(std::chrono::duration<double>(armed.stall_s));
      return false;
    case FailAction::kError:
      Say(point, "error");
      return true;
  }
  return false;
}

}  // namespace decentral
