// The receiving side of an operation.
#include <algorithm>
#include <cstring>

#include "collective/op.h"

namespace decentral {
namespace {

// Reduce, scale and encode in pieces that stay in the first-level cache (whole int8 blocks).
constexpr uint64_t kCacheElements = 4096;
// A grant goes out when this part of a window has been applied.
constexpr uint64_t kGrantParts = 4;

}  // namespace

Piece OpImpl::ChunkOf(uint32_t segment, uint64_t chunk) const {
  const Segment& s = spec_.segments[segment];
  return {s.offset + chunk * grain_, std::min(grain_, s.count - chunk * grain_)};
}

bool OpImpl::Locate(const RecvLane& lane, uint64_t sequence, uint32_t* step,
                    uint64_t* chunk) const {
  if (sequence >= lane.seen.size()) return false;
  const auto after = std::upper_bound(lane.first.begin(), lane.first.end(), sequence);
  // Steps over empty segments share their `first` with the next one: upper_bound skips them.
  const size_t position = static_cast<size_t>(after - lane.first.begin()) - 1;
  *step = lane.steps[position];
  *chunk = sequence - lane.first[position];
  return true;
}

uint8_t* OpImpl::OnHeader(uint32_t rank, int stream, const FrameHeader& header) {
  if (!running()) return nullptr;
  RecvLane& lane = recv_[rank];
  const uint64_t sequence = header.sequence & UINT32_MAX;
  Landing landing;
  const bool known =
      sequence < lane.granted && Locate(lane, sequence, &landing.step, &landing.chunk);
  const PlanStep* step = known ? &spec_.steps[landing.step] : nullptr;
  const Piece piece = known ? ChunkOf(step->segment, landing.chunk) : Piece{};
  if (!known || lane.seen[sequence] || landings_.count({rank, stream}) > 0 ||
      header.length != EncodedSize(CodecOf(*step), piece.count)) {
    Fail(Error(ErrorKind::kProtocol, Phase(),
               Name(rank) + " sent a chunk that our plan does not expect (number " +
                   std::to_string(sequence) + ", " + std::to_string(header.length) + " bytes).",
               spec_.members[rank]),
         Tell::kEverybody);
    return nullptr;
  }
  lane.seen[sequence] = true;
  Heard(rank);
  const SegmentState& segment = segments_[step->segment];
  const bool final = step->kind == PlanStep::Kind::kRecvFinal;
  if (final && final_codec_ == Codec::kFp32 &&
      segment.received[landing.chunk] == ordinal_[landing.step]) {
    landing.data = reinterpret_cast<uint8_t*>(dst_ + piece.offset);
    landing.in_place = landing.borrows = true;
    ++borrowed_;
  } else {
    landing.scratch = context_.pool.Take(header.length);
    landing.data = landing.scratch.data();
  }
  return landings_.emplace(std::pair(rank, stream), std::move(landing)).first->second.data;
}

void OpImpl::OnPayload(uint32_t rank, int stream, const FrameHeader& header) {
  const auto it = landings_.find({rank, stream});
  if (it == landings_.end()) return;
  Landing landing = std::move(it->second);
  landings_.erase(it);
  if (landing.borrows) --borrowed_;
  landing.borrows = false;
  if (!running()) {
    context_.pool.Give(std::move(landing.scratch));
    return Settle();
  }
  Heard(rank);
  bytes_received_ += FrameHeader::kSize + header.length;
  Arrived(std::move(landing));
  PumpAll();
  FinishIfComplete();
}

// Everything that goes before it has been applied, and what it is added to is there.
bool OpImpl::InTurn(const Landing& landing) const {
  const PlanStep& step = spec_.steps[landing.step];
  if (segments_[step.segment].received[landing.chunk] != ordinal_[landing.step]) return false;
  if (step.kind != PlanStep::Kind::kRecvReduce || ordinal_[landing.step] > 0) return true;
  const Piece piece = ChunkOf(step.segment, landing.chunk);
  return piece.offset + piece.count <= source_ready_;
}

// Applies a chunk, and whatever early chunks it makes room for, in the plan's order.
void OpImpl::Arrived(Landing landing) {
  const uint32_t index = spec_.steps[landing.step].segment;
  SegmentState& segment = segments_[index];
  const uint64_t chunk = landing.chunk;
  const Failpoint here = spec_.steps[landing.step].kind == PlanStep::Kind::kRecvFinal
                             ? Failpoint::kAllGather
                             : Failpoint::kReduceScatter;
  if (FailHere(here)) {
    context_.pool.Give(std::move(landing.scratch));
    return FailedAt(here);
  }
  if (!InTurn(landing)) {
    early_.emplace(std::tuple(index, chunk, ordinal_[landing.step]), std::move(landing));
    return;
  }
  for (;;) {
    Apply(landing);
    context_.pool.Give(std::move(landing.scratch));
    ++segment.received[chunk];
    --chunks_left_;
    const PlanStep& step = spec_.steps[landing.step];
    if (step.kind == PlanStep::Kind::kRecvReduce) --reduces_left_;
    ++recv_[step.peer].applied;
    Grant(step.peer);
    const auto next = early_.find(std::tuple(index, chunk, segment.received[chunk]));
    if (next == early_.end() || !running()) return;
    landing = std::move(next->second);
    early_.erase(next);
  }
}

// Its receiver cuts as we do, so that what we pass on is what we got.
bool OpImpl::PassesOn(const Landing& landing) const {
  const int64_t to = passes_to_[landing.step];
  return to >= 0 && spec_.codec == Codec::kFp32 && send_[to].ready && send_[to].grain == grain_ &&
         passing_.size() < kMaxPassing;
}

void OpImpl::Apply(Landing& landing) {
  const PlanStep& step = spec_.steps[landing.step];
  const Piece piece = ChunkOf(step.segment, landing.chunk);
  float* const out = dst_ + piece.offset;
  if (step.kind == PlanStep::Kind::kRecvFinal) {
    if (!landing.in_place) Decode(final_codec_, landing.data, piece.count, out);
    return BecameFinal(piece);
  }
  // The first contribution meets our source, later ones meet the sum so far.
  const bool first = ordinal_[landing.step] == 0;
  const float* const addend = first ? src_ + piece.offset : out;
  const float weight = first ? spec_.weight : 1.0f;
  if (PassesOn(landing)) {
    DecodeAdd(spec_.codec, landing.data, piece.count, addend, weight,
              reinterpret_cast<float*>(landing.data));
    passing_.emplace(std::pair(step.segment, landing.chunk), std::move(landing.scratch));
    return;
  }
  const bool completes = spec_.segments[step.segment].owner == spec_.rank &&
                         ordinal_[landing.step] + 1 == segments_[step.segment].receives;
  for (uint64_t at = 0; at < piece.count; at += kCacheElements) {
    const uint64_t n = std::min(kCacheElements, piece.count - at);
    DecodeAdd(spec_.codec, landing.data + EncodedSize(spec_.codec, at), n, addend + at, weight,
              out + at);
    if (completes) CompleteOwned(step.segment, {piece.offset + at, n});
  }
  if (completes) BecameFinal(piece);
}

void OpImpl::BecameFinal(Piece piece) {
  if (!spec_.staged) return;
  std::lock_guard lock(mutex_);
  final_.push_back(piece);
}

// More of src is there: chunks that waited for it, and sends.
void OpImpl::OnSource(uint64_t elements) {
  if (!running() || elements <= source_ready_) return;
  source_ready_ = std::min(elements, spec_.count);
  std::vector<Landing> ready;
  for (auto it = early_.begin(); it != early_.end();) {
    if (!InTurn(it->second)) {
      ++it;
      continue;
    }
    ready.push_back(std::move(it->second));
    it = early_.erase(it);
  }
  for (Landing& landing : ready) {
    if (!running()) return;
    Arrived(std::move(landing));
  }
  if (source_ready_ == spec_.count) CompleteAlone();
  if (serial_ == 0) return;  // not started yet
  PumpAll();
  FinishIfComplete();
}

// What nobody else contributes to is complete as it is.
void OpImpl::CompleteAlone() {
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    if (spec_.segments[i].owner != spec_.rank || segments_[i].receives > 0) continue;
    for (uint64_t chunk = 0; chunk < segments_[i].chunks; ++chunk) {
      CompleteOwned(i, ChunkOf(i, chunk));
      BecameFinal(ChunkOf(i, chunk));
    }
  }
}

// dst = decode(encode(scale * sum)): the owner takes what everybody else will get, if there is
// somebody else to get it.
void OpImpl::CompleteOwned(uint32_t segment, Piece piece) {
  float* const out = dst_ + piece.offset;
  if (segments_[segment].receives == 0 && src_ != dst_) {  // nobody contributes but us
    Encode(Codec::kFp32, src_ + piece.offset, piece.count, spec_.weight,
           reinterpret_cast<uint8_t*>(out));
  }
  if (final_codec_ == Codec::kFp32 || spec_.kind == OpKind::kReduceScatter) {
    if (spec_.scale != 1.0f) {
      Encode(Codec::kFp32, out, piece.count, spec_.scale, reinterpret_cast<uint8_t*>(out));
    }
    return;
  }
  ScratchPool::Buffer scratch = context_.pool.Take(EncodedSize(final_codec_, piece.count));
  Encode(final_codec_, out, piece.count, spec_.scale, scratch.data());
  Decode(final_codec_, scratch.data(), piece.count, out);
  context_.pool.Give(std::move(scratch));
}

void OpImpl::Grant(uint32_t rank) {
  RecvLane& lane = recv_[rank];
  if (!lane.windowed || lane.applied + window_ < lane.granted + window_ / kGrantParts) return;
  if (lane.granted >= lane.seen.size()) return;
  lane.granted = lane.applied + window_;
  SendProgress(rank);
}

}  // namespace decentral
