// The sending side of an operation.
#include <algorithm>

#include "collective/op.h"

namespace decentral {
namespace {

// Frames per stream in the transport's hands: one being written, one to go on with.
constexpr int kAheadPerStream = 2;

}  // namespace

void OpImpl::PumpAll() {
  for (const uint32_t rank : neighbours_) Pump(rank);
}

void OpImpl::Pump(uint32_t rank) {
  SendLane& lane = send_[rank];
  if (lane.steps.empty() || lane.pumping) return;  // pumping: OnSent came from inside Send
  lane.pumping = true;
  while (running() && lane.ready && lane.streams > 0 &&
         lane.in_flight < kAheadPerStream * lane.streams && NextIsReady(lane)) {
    SendNext(rank);
  }
  lane.pumping = false;
}

// Moves the cursor past what is complete. True: the next chunk is there to be sent.
bool OpImpl::NextIsReady(SendLane& lane) {
  while (lane.step < lane.steps.size() &&
         lane.chunk * lane.grain >=
             spec_.segments[spec_.steps[lane.steps[lane.step]].segment].count) {
    ++lane.step;
    lane.chunk = 0;
  }
  if (lane.step == lane.steps.size()) {
    if (!lane.finished) --lanes_left_;
    lane.finished = true;
    return false;
  }
  if (lane.sequence >= lane.granted) return false;
  const uint32_t index = lane.steps[lane.step];
  const PlanStep& step = spec_.steps[index];
  const SegmentState& segment = segments_[step.segment];
  const uint64_t first = lane.chunk * lane.grain;
  const uint64_t last = std::min(first + lane.grain, spec_.segments[step.segment].count);
  if (step.kind == PlanStep::Kind::kSendPartial && ordinal_[index] == 0 &&
      spec_.segments[step.segment].offset + last > source_ready_) {
    return false;
  }
  for (uint64_t chunk = first / grain_; chunk * grain_ < last; ++chunk) {
    if (segment.received[chunk] < ordinal_[index]) return false;
  }
  return true;
}

void OpImpl::SendNext(uint32_t rank) {
  SendLane& lane = send_[rank];
  const uint32_t index = lane.steps[lane.step];
  const PlanStep& step = spec_.steps[index];
  const Segment& segment = spec_.segments[step.segment];
  const uint64_t first = lane.chunk * lane.grain;
  const uint64_t count = std::min(lane.grain, segment.count - first);
  const Codec codec = CodecOf(step);
  const size_t size = EncodedSize(codec, count);

  InFlight frame;
  frame.rank = rank;
  const void* payload = nullptr;
  // A partial sum that received nothing yet is our own source.
  const bool own = step.kind == PlanStep::Kind::kSendPartial && ordinal_[index] == 0;
  const float* values = (own ? src_ : dst_) + segment.offset + first;
  const float weight = own ? spec_.weight : 1.0f;
  const auto passing = own ? passing_.end() : passing_.find({step.segment, lane.chunk});
  if (step.kind == PlanStep::Kind::kSendPartial && passing != passing_.end()) {
    frame.scratch = std::move(passing->second);
    payload = frame.scratch.data();
    passing_.erase(passing);
  } else if (codec == Codec::kFp32 && weight == 1.0f) {
    payload = values;
    frame.borrows = true;
    ++borrowed_;
  } else {
    if (FailHere(Failpoint::kQuantize)) return FailedAt(Failpoint::kQuantize);
    frame.scratch = context_.pool.Take(size);
    Encode(codec, values, count, weight, frame.scratch.data());
    payload = frame.scratch.data();
  }

  FrameHeader header = Header(FrameType::kChunk);
  header.length = static_cast<uint32_t>(size);
  header.sequence = uint64_t{lane.ticket} << 32 | lane.sequence;
  auto& load = context_.stream_load[spec_.members[rank]];
  load.resize(std::max(load.size(), static_cast<size_t>(lane.streams)));
  const auto emptiest = std::min_element(load.begin(), load.begin() + lane.streams);
  frame.stream = static_cast<uint32_t>(emptiest - load.begin());
  ++*emptiest;
  const uint64_t cookie = uint64_t{serial_} << 32 | ++last_cookie_;
  ++lane.chunk;
  ++lane.sequence;
  ++lane.in_flight;
  bytes_sent_ += FrameHeader::kSize + size;
  const int stream = static_cast<int>(frame.stream);
  in_flight_.emplace(cookie, std::move(frame));
  context_.transport.Send(spec_.members[rank], stream, header, payload, cookie, spec_.priority);
}

void OpImpl::OnSent(uint64_t cookie) {
  const auto it = in_flight_.find(cookie);
  if (it == in_flight_.end()) return;  // the link went down meanwhile
  const uint32_t rank = it->second.rank;
  auto& load = context_.stream_load[spec_.members[rank]];
  if (it->second.stream < load.size() && load[it->second.stream] > 0) --load[it->second.stream];
  if (it->second.borrows) --borrowed_;
  context_.pool.Give(std::move(it->second.scratch));
  in_flight_.erase(it);
  --send_[rank].in_flight;
  if (running()) {
    Pump(rank);
    FinishIfComplete();
  } else {
    Settle();
  }
}

}  // namespace decentral
