// What an operation must give, computed from the plans alone: whole segments, one step after the
// other, no engine, no chunks. The C++ sister of collectives/reference.py.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "check.h"
#include "collective/engine.h"

namespace decentral::test {

// Every member's buffer after the operation that `specs` (by rank) describe. Of a reduce-scatter
// only a member's own segments mean something.
inline std::vector<std::vector<float>> Execute(const std::vector<OpSpec>& specs,
                                               const std::vector<std::vector<float>>& sources) {
  using Kind = PlanStep::Kind;
  using Bytes = std::vector<uint8_t>;
  const size_t n = specs.size();
  std::vector<std::vector<float>> out;
  for (size_t r = 0; r < n; ++r) out.emplace_back(specs[r].count);
  std::map<std::pair<size_t, size_t>, std::deque<Bytes>> wires;
  // By rank and segment: contributions taken and still to come; the final value's bytes.
  struct State {
    int taken = 0, left = 0;
    Bytes final;
  };
  std::vector<std::vector<State>> states;

  const auto encode = [](Codec codec, const float* values, uint64_t count, float weight) {
    Bytes bytes(EncodedSize(codec, count));
    Encode(codec, values, count, weight, bytes.data());
    return bytes;
  };
  const auto complete = [&](size_t r, uint32_t index) {
    const OpSpec& spec = specs[r];
    const Segment& s = spec.segments[index];
    float* const at = out[r].data() + s.offset;
    const Codec codec =
        spec.kind == OpKind::kReduceScatter ? Codec::kFp32 : spec.final_codec.value_or(spec.codec);
    Bytes& final = states[r][index].final;
    final = encode(codec, at, s.count, spec.scale);
    Decode(codec, final.data(), s.count, at);
  };
  const auto run = [&](size_t r, const PlanStep& step) {
    const OpSpec& spec = specs[r];
    const Segment& s = spec.segments[step.segment];
    State& state = states[r][step.segment];
    float* const at = out[r].data() + s.offset;
    const float* const source = sources[r].data() + s.offset;
    if (step.kind == Kind::kSendPartial) {
      const bool own = state.taken == 0;
      wires[{r, step.peer}].push_back(
          encode(spec.codec, own ? source : at, s.count, own ? spec.weight : 1.0f));
      return;
    }
    if (step.kind == Kind::kSendFinal) {
      wires[{r, step.peer}].push_back(state.final);
      return;
    }
    Bytes bytes = std::move(wires[{step.peer, r}].front());
    wires[{step.peer, r}].pop_front();
    if (step.kind == Kind::kRecvFinal) {
      Decode(spec.final_codec.value_or(spec.codec), bytes.data(), s.count, at);
      state.final = std::move(bytes);
      return;
    }
    const bool first = state.taken++ == 0;
    DecodeAdd(spec.codec, bytes.data(), s.count, first ? source : at, first ? spec.weight : 1.0f,
              at);
    if (--state.left == 0 && s.owner == r) complete(r, step.segment);
  };

  std::vector<std::deque<PlanStep>> left;
  for (size_t r = 0; r < n; ++r) {
    states.emplace_back(specs[r].segments.size());
    left.emplace_back(specs[r].steps.begin(), specs[r].steps.end());
    for (const PlanStep& step : specs[r].steps) {
      states[r][step.segment].left += step.kind == Kind::kRecvReduce;
    }
  }
  for (size_t r = 0; r < n; ++r) {
    for (uint32_t i = 0; i < specs[r].segments.size(); ++i) {
      const Segment& s = specs[r].segments[i];
      if (s.owner != r || states[r][i].left > 0) continue;
      Encode(Codec::kFp32, sources[r].data() + s.offset, s.count, specs[r].weight,
             reinterpret_cast<uint8_t*>(out[r].data() + s.offset));
      complete(r, i);
    }
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t r = 0; r < n; ++r) {
      while (!left[r].empty()) {
        const PlanStep step = left[r].front();
        const bool receives = step.kind == Kind::kRecvReduce || step.kind == Kind::kRecvFinal;
        if (receives && wires[{step.peer, r}].empty()) break;
        left[r].pop_front();
        run(r, step);
        moved = true;
      }
    }
  }
  for (const auto& steps : left) CHECK(steps.empty());  // else the plans wait for each other
  return out;
}

}  // namespace decentral::test
