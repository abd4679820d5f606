#include "collective/spec_check.h"

#include <cmath>
#include <set>
#include <string>

namespace decentral {
namespace {

[[noreturn]] void Refuse(const std::string& what) {
  throw Error(ErrorKind::kConfig, "all-reduce", what);
}

void CheckMembers(const OpSpec& spec, const PeerId& self) {
  if (spec.rank >= spec.members.size()) {
    Refuse("rank " + std::to_string(spec.rank) + " in a group of " +
           std::to_string(spec.members.size()));
  }
  if (spec.members[spec.rank] != self) Refuse("the member at our rank is another peer");
  if (std::set<PeerId>(spec.members.begin(), spec.members.end()).size() != spec.members.size()) {
    Refuse("a peer is a member twice");
  }
}

void CheckSegments(const OpSpec& spec) {
  uint64_t end = 0;
  for (const Segment& s : spec.segments) {
    if (s.offset != end || s.count > spec.count - end) Refuse("segments must tile the buffer");
    if (s.owner >= spec.members.size()) Refuse("a segment is owned by a rank outside the group");
    end += s.count;
  }
  if (end != spec.count) Refuse("segments must tile the buffer");
}

// Per segment, what has happened so far in list order.
struct Seen {
  bool reduced = false, sent_partial = false, took_final = false, sent_final = false;
};

void CheckSteps(const OpSpec& spec) {
  std::vector<Seen> seen(spec.segments.size());
  for (const PlanStep& step : spec.steps) {
    if (step.peer >= spec.members.size() || step.peer == spec.rank) {
      Refuse("a step names rank " + std::to_string(step.peer) + " as the other end");
    }
    if (step.segment >= spec.segments.size()) Refuse("a step names a segment that is not there");
    Seen& s = seen[step.segment];
    const bool ours = spec.segments[step.segment].owner == spec.rank;
    switch (step.kind) {
      case PlanStep::Kind::kSendPartial:
        if (ours) Refuse("the owner of a segment sends no partial sum of it");
        if (s.sent_partial) Refuse("a partial sum leaves once, else it counts twice");
        if (s.took_final) Refuse("a partial sum cannot be sent after the final value arrived");
        s.sent_partial = true;
        break;
      case PlanStep::Kind::kRecvReduce:
        if (s.sent_partial || s.took_final || s.sent_final) {
          Refuse("a contribution is received after its sum has left");
        }
        s.reduced = true;
        break;
      case PlanStep::Kind::kSendFinal:
        if (!ours && !s.took_final) Refuse("a final value is forwarded before it is received");
        s.sent_final = true;
        break;
      case PlanStep::Kind::kRecvFinal:
        if (ours || s.took_final) Refuse("a final value is received twice, or by its owner");
        if (s.reduced && !s.sent_partial) Refuse("a sum is overwritten before it is sent");
        s.took_final = true;
        break;
    }
  }
}

// A sum of such values cannot be encoded again: only what is our own may leave.
void CheckSentOnce(const OpSpec& spec) {
  std::vector<bool> reduced(spec.segments.size());
  for (const PlanStep& step : spec.steps) {
    if (step.kind == PlanStep::Kind::kRecvReduce) reduced[step.segment] = true;
    if (step.kind == PlanStep::Kind::kSendPartial && reduced[step.segment]) {
      Refuse(std::string("codec ") + InfoOf(spec.codec).name +
             " cannot carry sums of several members: choose a butterfly");
    }
  }
}

}  // namespace

void CheckSpec(const OpSpec& spec, const PeerId& self, const float* src, const float* dst) {
  CheckMembers(spec, self);
  if (spec.count > uint64_t{1} << 38) Refuse("more than 2^38 elements");
  if (spec.count > 0 && (src == nullptr || dst == nullptr)) Refuse("no buffer");
  const auto s = reinterpret_cast<uintptr_t>(src), d = reinterpret_cast<uintptr_t>(dst);
  const uint64_t bytes = spec.count * sizeof(float);
  // Where nothing is added up, a member's own part may lie in place.
  const bool in_place =
      s == d && (spec.kind == OpKind::kAllGather || spec.kind == OpKind::kBroadcast);
  if (spec.count > 0 && s < d + bytes && d < s + bytes && !in_place) Refuse("src and dst overlap");
  if (s % alignof(float) != 0 || d % alignof(float) != 0) Refuse("a buffer is not aligned");
  for (const Codec codec : {spec.codec, spec.final_codec.value_or(spec.codec)}) {
    if (InfoOf(static_cast<uint32_t>(codec)) == nullptr) Refuse("no such codec");
  }
  if (spec.schedule.size() > kMaxScheduleName) Refuse("a schedule's name has 16 bytes at most");
  if (spec.staged && spec.kind != OpKind::kAllReduce) Refuse("only an all-reduce can be staged");
  if (!std::isfinite(spec.weight) || !std::isfinite(spec.scale)) {
    Refuse("weight and scale must be finite");
  }
  if (spec.chunk_bytes > kMaxChunkBytes) Refuse("chunk_bytes is above 4 MiB");
  if (spec.silence_limit_ms <= 0 || spec.start_limit_ms <= 0) Refuse("limits must be positive");
  CheckSegments(spec);
  CheckSteps(spec);
  if (!InfoOf(spec.codec).rides_ring) CheckSentOnce(spec);
}

}  // namespace decentral
