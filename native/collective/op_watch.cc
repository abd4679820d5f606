// Who is waited for, and who has fallen silent.
#include <algorithm>

#include "collective/op.h"

namespace decentral {

// A silent peer is one that we wait for and that shows no sign of life: no chunk, no word about
// this operation. Every member says that it is still at it now and then, on the control stream:
// so a slow link is not silence, and in a ring only the one who stopped is blamed, not everyone
// behind it. One that has not started yet gets the longer limit: its trainer may be busy.
void OpImpl::Tick() {
  if (!running()) return;
  const int64_t now = context_.now_ms();
  // If we were suspended ourselves, the others' silence is our own deafness: start over.
  const bool was_away = now - ticked_ms_ > std::max(spec_.silence_limit_ms / 2, 2 * kTickMs);
  ticked_ms_ = now;
  int64_t longest = 0;
  int64_t silent = -1;
  for (const uint32_t rank : neighbours_) {
    if (was_away) heard_ms_[rank] = now;
    const int64_t silence = now - heard_ms_[rank];
    const int64_t limit = met_[rank] ? spec_.silence_limit_ms
                                     : std::max(spec_.start_limit_ms, spec_.silence_limit_ms);
    if (WaitsFor(rank) && silence >= limit && silence > longest) {
      longest = silence;
      silent = rank;
    }
  }
  if (silent >= 0) {
    const auto rank = static_cast<uint32_t>(silent);
    return Fail(Error(ErrorKind::kSilent, Phase(),
                      Name(rank) +
                          (met_[rank] ? " gave no sign of life for "
                                      : " has not started the operation within ") +
                          std::to_string(longest) + " ms.",
                      spec_.members[rank]),
                Tell::kEverybody);
  }
  for (const uint32_t rank : neighbours_) {
    if (now - spoke_ms_[rank] >= spec_.silence_limit_ms / 5) SendSign(rank);
  }
}

void OpImpl::Heard(uint32_t rank) {
  heard_ms_[rank] = context_.now_ms();
  met_[rank] = true;
}

bool OpImpl::WaitsFor(uint32_t rank) const {
  const SendLane& send = send_[rank];
  const RecvLane& recv = recv_[rank];
  const bool for_chunks = recv.applied < recv.seen.size();
  const bool for_permission =
      !send.finished && !send.steps.empty() && (!send.ready || send.sequence >= send.granted);
  return for_chunks || for_permission;
}

std::string OpImpl::Phase() const {
  bool started = true;
  bool partials_left = false;
  for (const SendLane& lane : send_) {
    if (lane.steps.empty() || lane.finished) continue;
    if (!lane.ready) started = false;
    partials_left |= spec_.steps[lane.steps[lane.step]].kind == PlanStep::Kind::kSendPartial;
  }
  if (!started) return "start";
  return reduces_left_ > 0 || partials_left ? "reduce-scatter" : "all-gather";
}

// A sign of life. To those who send to us it is the permission once more: the first one may have
// come before the other end was able to hear it.
void OpImpl::SendSign(uint32_t rank) {
  if (recv_[rank].steps.empty()) return SendProgress(rank);
  SendReady(rank);
}

void OpImpl::SendReady(uint32_t rank) {
  ReadyFrame ready = ours_;
  ready.ticket = serial_;
  ready.granted = static_cast<uint32_t>(recv_[rank].granted);
  SendControl(rank, FrameType::kOpReady, kReadyFlag, EncodeReady(ready));
}

void OpImpl::SendProgress(uint32_t rank) {
  const RecvLane& lane = recv_[rank];
  const ProgressFrame frame{lane.steps.empty() ? 0 : serial_, static_cast<uint32_t>(lane.granted)};
  SendControl(rank, FrameType::kOpReady, kProgressFlag, EncodeProgress(frame));
}

}  // namespace decentral
