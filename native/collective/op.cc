#include "collective/op.h"

#include <algorithm>

namespace decentral {
namespace {

constexpr uint32_t kNoLimit = UINT32_MAX;

bool IsSend(PlanStep::Kind kind) {
  return kind == PlanStep::Kind::kSendPartial || kind == PlanStep::Kind::kSendFinal;
}

}  // namespace

OpImpl::OpImpl(OpContext& context, OpSpec spec, const float* src, float* dst)
    : context_(context),
      spec_(std::move(spec)),
      final_codec_(spec_.final_codec.value_or(spec_.codec)),
      src_(src),
      dst_(dst),
      ours_(Describe(spec_)) {
  BuildState();
}

// ---- any thread -------------------------------------------------------------------------------

bool OpImpl::Wait(double timeout_s) {
  std::unique_lock lock(mutex_);
  const auto over = [this] { return done_; };
  if (timeout_s >= 0) {
    return changed_.wait_for(lock, std::chrono::duration<double>(std::min(timeout_s, 1e8)), over);
  }
  changed_.wait(lock, over);
  return true;
}

bool OpImpl::done() const {
  std::lock_guard lock(mutex_);
  return done_;
}

Error OpImpl::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}

OpStats OpImpl::stats() const {
  const std::chrono::duration<double> so_far = std::chrono::steady_clock::now() - started_;
  std::lock_guard lock(mutex_);
  return {bytes_sent_, bytes_received_, done_ ? seconds_ : so_far.count()};
}

void OpImpl::SourceReady(uint64_t elements) {
  context_.transport.Post([op = shared_from_this(), elements] { op->OnSource(elements); });
}

std::vector<Piece> OpImpl::TakeFinal() {
  std::lock_guard lock(mutex_);
  return std::exchange(final_, {});
}

void OpImpl::Abort(const std::string& reason) {
  if (done()) return;
  Error error(ErrorKind::kAborted, "", reason, context_.self);
  if (std::this_thread::get_id() == context_.thread) return Fail(error, Tell::kEverybody);
  context_.transport.Post([op = shared_from_this(), error] { op->Fail(error, Tell::kEverybody); });
  Wait(-1);
}

// ---- data thread ------------------------------------------------------------------------------

void OpImpl::BuildState() {
  grain_ = ChunkElements(spec_.chunk_bytes);
  source_ready_ = spec_.staged ? 0 : spec_.count;
  const size_t n = spec_.members.size();
  const uint64_t window_bytes = std::min(kMaxWindowBytes, spec_.count / std::max<size_t>(1, n - 1));
  window_ = std::max(kMinWindow, window_bytes / (grain_ * sizeof(float)));
  send_.resize(n);
  recv_.resize(n);
  heard_ms_.assign(n, 0);
  met_.assign(n, false);
  spoke_ms_.assign(n, 0);
  segments_.resize(spec_.segments.size());
  for (size_t i = 0; i < segments_.size(); ++i) {
    segments_[i].chunks = (spec_.segments[i].count + grain_ - 1) / grain_;
    segments_[i].received.assign(segments_[i].chunks, 0);
  }
  passes_to_.assign(spec_.steps.size(), -1);
  std::vector<uint32_t> last_receive(segments_.size());
  for (uint32_t i = 0; i < spec_.steps.size(); ++i) {
    AddLaneStep(i);
    const PlanStep& step = spec_.steps[i];
    if (!IsSend(step.kind)) last_receive[step.segment] = i;
    if (step.kind == PlanStep::Kind::kSendPartial && ordinal_[i] > 0) {
      passes_to_[last_receive[step.segment]] = step.peer;
    }
  }
  MarkWindowed();
  for (uint32_t i = 1; i <= n; ++i) {
    const uint32_t rank = (spec_.rank + i) % n;
    if (!send_[rank].steps.empty()) ++lanes_left_;
    if (!send_[rank].steps.empty() || !recv_[rank].steps.empty()) neighbours_.push_back(rank);
  }
}

void OpImpl::AddLaneStep(uint32_t index) {
  const PlanStep& step = spec_.steps[index];
  SegmentState& segment = segments_[step.segment];
  ordinal_.push_back(segment.receives);
  if (IsSend(step.kind)) {
    send_[step.peer].steps.push_back(index);
    return;
  }
  RecvLane& lane = recv_[step.peer];
  lane.steps.push_back(index);
  lane.first.push_back(lane.seen.size());
  lane.seen.resize(lane.seen.size() + segment.chunks);
  ++segment.receives;
  chunks_left_ += segment.chunks;
  if (step.kind == PlanStep::Kind::kRecvReduce) reduces_left_ += segment.chunks;
}

// A chunk must wait in scratch if another peer's chunk goes before it. Where everything that a
// segment receives comes from one peer (a ring), the sender's own order makes waiting impossible.
void OpImpl::MarkWindowed() {
  std::vector<int64_t> from(segments_.size(), -1);
  for (const PlanStep& step : spec_.steps) {
    if (IsSend(step.kind)) continue;
    int64_t& first = from[step.segment];
    if (first < 0) first = step.peer;
    if (first != step.peer) recv_[step.peer].windowed = true;
  }
  for (RecvLane& lane : recv_) lane.granted = lane.windowed ? window_ : kNoLimit;
}

void OpImpl::Start(uint32_t serial) {
  serial_ = serial;
  if (state_ != State::kRunning) return;  // called off before it began
  ticked_ms_ = context_.now_ms();
  std::fill(heard_ms_.begin(), heard_ms_.end(), ticked_ms_);
  if (source_ready_ == spec_.count) CompleteAlone();
  for (const uint32_t rank : neighbours_) {
    if (!running()) return;
    context_.transport.WantStreams(spec_.members[rank]);
    if (!recv_[rank].steps.empty()) SendReady(rank);
  }
  for (const uint32_t rank : neighbours_) {
    const int streams = context_.transport.Streams(spec_.members[rank]);
    if (streams > 0) OnBulkUp(rank, streams);
  }
  FinishIfComplete();
}

void OpImpl::OnReady(uint32_t rank, const ReadyFrame& theirs) {
  if (!running()) return;
  if (send_[rank].ready) return OnProgress(rank, {theirs.ticket, theirs.granted});
  Heard(rank);
  if (!Compare(rank, theirs)) return;
  if (theirs.chunk_bytes > kMaxChunkBytes || theirs.ticket == 0) {
    return Fail(
        Error(ErrorKind::kProtocol, Phase(),
              Name(rank) + " announced chunks that no frame can carry.", spec_.members[rank]),
        Tell::kEverybody);
  }
  SendLane& lane = send_[rank];
  lane.ready = true;
  lane.ticket = theirs.ticket;
  lane.grain = ChunkElements(theirs.chunk_bytes);
  lane.granted = theirs.granted;
  Pump(rank);
  FinishIfComplete();
}

// False: we differ, and the operation has failed.
bool OpImpl::Compare(uint32_t rank, const ReadyFrame& theirs) {
  const std::string difference = Difference(theirs, ours_, context_.self);
  if (difference.empty()) return true;
  Fail(Error(ErrorKind::kMismatch, Phase(), Name(rank) + " has " + difference + ".",
             spec_.members[rank]),
       Tell::kEverybody);
  return false;
}

void OpImpl::OnUnexpectedReady(uint32_t rank, const ReadyFrame& theirs) {
  if (!running() || !Compare(rank, theirs)) return;
  Fail(Error(ErrorKind::kMismatch, Phase(),
             Name(rank) + " waits for data that the plan of " + ShortName(context_.self) +
                 " does not send.",
             spec_.members[rank]),
       Tell::kEverybody);
}

void OpImpl::OnProgress(uint32_t rank, const ProgressFrame& theirs) {
  if (!running()) return;
  Heard(rank);
  SendLane& lane = send_[rank];
  if (!lane.ready || theirs.ticket != lane.ticket || theirs.granted <= lane.granted) return;
  lane.granted = theirs.granted;
  Pump(rank);
}

void OpImpl::OnAbort(uint32_t rank, const Error& theirs) {
  // A culprit other than us stays the culprit; if somebody lost *us*, that somebody is the news.
  const bool somebody = theirs.peer != PeerId{} && theirs.peer != context_.self;
  const bool lost = theirs.kind == ErrorKind::kClosed || theirs.kind == ErrorKind::kSilent;
  const bool keeps_kind = (lost && somebody) || theirs.kind == ErrorKind::kMismatch;
  Error error(
      keeps_kind ? theirs.kind : ErrorKind::kAborted, theirs.phase.empty() ? Phase() : theirs.phase,
      Name(rank) + " called it off: " + theirs.text, somebody ? theirs.peer : spec_.members[rank]);
  Fail(error, Tell::kNobody);
}

// Also when further streams have been opened.
void OpImpl::OnBulkUp(uint32_t rank, int streams) {
  SendLane& lane = send_[rank];
  if (lane.steps.empty() || lane.streams >= streams) return;
  lane.streams = streams;
  auto& load = context_.stream_load[spec_.members[rank]];
  if (load.size() < static_cast<size_t>(streams)) load.resize(streams);
  Pump(rank);
  FinishIfComplete();
}

void OpImpl::OnBulkDown(uint32_t rank, const Error& why) {
  context_.stream_load.erase(spec_.members[rank]);
  for (auto it = in_flight_.begin(); it != in_flight_.end();) {
    if (it->second.rank != rank) {
      ++it;
      continue;
    }
    if (it->second.borrows) --borrowed_;
    context_.pool.Give(std::move(it->second.scratch));
    it = in_flight_.erase(it);
  }
  for (auto it = landings_.begin(); it != landings_.end();) {
    if (it->first.first != rank) {
      ++it;
      continue;
    }
    if (it->second.borrows) --borrowed_;
    context_.pool.Give(std::move(it->second.scratch));
    it = landings_.erase(it);
  }
  if (state_ == State::kRunning) {
    const ErrorKind kind = why.kind == ErrorKind::kSilent ? ErrorKind::kSilent : ErrorKind::kClosed;
    Fail(Error(kind, Phase(), "Lost " + Name(rank) + ": " + why.text, spec_.members[rank]),
         Tell::kEverybody);
  }
  Settle();
}

void OpImpl::Fail(Error error, Tell tell) {
  if (state_ != State::kRunning) return;
  if (error.phase.empty()) error.phase = Phase();
  state_ = State::kFailing;
  failure_ = error;
  for (auto& [where, landing] : early_) context_.pool.Give(std::move(landing.scratch));
  early_.clear();
  for (auto& [where, scratch] : passing_) context_.pool.Give(std::move(scratch));
  passing_.clear();
  if (tell == Tell::kEverybody) {
    // Before it was started nobody has heard of it, but others may have: they are told as well.
    const std::string payload = EncodeAbort(error);
    for (uint32_t rank = 0; rank < spec_.members.size(); ++rank) {
      if (rank != spec_.rank) SendControl(rank, FrameType::kOpAbort, 0, payload);
    }
  }
  Settle();
}

void OpImpl::FailedAt(Failpoint point) {
  Fail(Error(ErrorKind::kAborted, Phase(),
             std::string("The failpoint ") + NameOf(point) + " made it fail.", context_.self),
       Tell::kEverybody);
}

// On to done() once nobody touches src or dst any more, and to oblivion once the transport holds
// nothing of ours.
void OpImpl::Settle() {
  if (state_ == State::kRunning) return;
  const auto keep = shared_from_this();
  const bool over = state_ == State::kFailing && borrowed_ == 0;
  if (over) state_ = State::kDone;
  if (state_ == State::kFailing) return;
  context_.settled(*this);
  if (over) Publish(failure_);
}

void OpImpl::LetGo() {
  borrowed_ = 0;
  in_flight_.clear();
  Settle();
}

void OpImpl::FinishIfComplete() {
  if (state_ != State::kRunning || chunks_left_ > 0 || lanes_left_ > 0 || !in_flight_.empty() ||
      source_ready_ < spec_.count) {
    return;
  }
  state_ = State::kDone;
  const auto keep = shared_from_this();
  context_.settled(*this);
  Publish(Error());
}

void OpImpl::Publish(const Error& error) {
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started_;
  {
    std::lock_guard lock(mutex_);
    done_ = true;
    error_ = error;
    seconds_ = took.count();
    // Under the lock: a waiter may destroy the operation as soon as it can see done_.
    changed_.notify_all();
  }
}

int OpImpl::rank_of(const PeerId& peer) const {
  const auto it = std::find(spec_.members.begin(), spec_.members.end(), peer);
  return it == spec_.members.end() ? -1 : static_cast<int>(it - spec_.members.begin());
}

FrameHeader OpImpl::Header(FrameType type) const {
  FrameHeader header;
  header.type = type;
  header.round = spec_.round;
  header.attempt = spec_.attempt;
  header.tag = spec_.tag;
  return header;
}

void OpImpl::SendControl(uint32_t rank, FrameType type, uint8_t flags, const std::string& payload) {
  FrameHeader header = Header(type);
  header.flags = flags;
  header.length = static_cast<uint32_t>(payload.size());
  spoke_ms_[rank] = context_.now_ms();
  bytes_sent_ += FrameHeader::kSize + payload.size();
  context_.transport.SendControl(spec_.members[rank], header, payload.data());
}

}  // namespace decentral
