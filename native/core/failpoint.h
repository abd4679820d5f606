// Failpoints of native code: named places where a test makes this process die, stall or fail.
//
//   if (FailHere(Failpoint::kAllGather)) return Fail(…);   an error of the kind that the place has
//
// Compiled in always; while none is armed, a passage is one relaxed load. decentral/failpoints.py
// has the syntax, the names of both languages, and what each place means.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace decentral {

enum class Failpoint : uint8_t {
  kHandshakeDial,    // TLS begins with whom we dialled: control thread
  kHandshakeAccept,  // TLS begins with whoever dialled us: control thread
  kQuantize,         // a chunk is to be encoded: data thread
  kReduceScatter,    // a contribution is to be added: data thread
  kAllGather,        // a final value came: data thread
  kCount,
};

enum class FailAction : uint8_t { kCrash, kStall, kError };

struct FailedHere {
  Failpoint where;
  FailAction action;
  double at_s;  // CLOCK_MONOTONIC
};

namespace internal {
inline std::atomic<uint32_t> armed_failpoints{0};  // a bit each
bool PassArmedFailpoint(Failpoint);
}  // namespace internal

const char* NameOf(Failpoint);
std::optional<Failpoint> FailpointNamed(std::string_view name);
// Acts at the `passage`-th passage from now (the first is 1), once. Replaces what was armed there.
void ArmFailpoint(Failpoint, FailAction, double stall_s, uint64_t passage);
void DisarmFailpoint(Failpoint);
inline bool IsArmed(Failpoint point) {
  return (internal::armed_failpoints >> static_cast<uint32_t>(point) & 1) != 0;
}
// What happened so far, oldest first; the last few.
std::vector<FailedHere> FailedSoFar();

// True: this passage is to fail. Dies or sleeps right here if that is what was asked for.
inline bool FailHere(Failpoint point) {
  const uint32_t armed = internal::armed_failpoints.load(std::memory_order_relaxed);
  if (armed == 0) [[likely]] {
    return false;
  }
  return (armed >> static_cast<uint32_t>(point) & 1) != 0 && internal::PassArmedFailpoint(point);
}

}  // namespace decentral
