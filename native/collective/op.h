// One all-reduce on one member: the plan's steps, how far each chunk has come, and what is in the
// transport's hands. op.cc: life and death; op_send.cc and op_recv.cc: the two
// directions; op_watch.cc: silence.
//
//              recv lane of peer P                             send lane to peer Q
//   chunks ──▶ scratch ──▶ DecodeAdd(src or dst) ──▶ dst ──▶ (encode ──▶ scratch) ──▶ chunks
//          └─▶ dst (final, fp32)     │ owner, last one:                     ▲
//          └─▶ scratch ─▶ dst        ▼ scale, encode, decode its own        │
//              (final, lossy)       dst ────────────────────────────────────┘
//
// Final values are kept decoded only: encoding them again gives the owner's bytes (codec.h), so
// that whoever passes them on needs no copy of what came.
//
// Chunks of our *grid* (our chunk_bytes) count what has arrived; a send lane cuts segments by its
// receiver's grain, and waits for the chunks of our grid that its next piece overlaps.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "collective/engine.h"
#include "collective/handshake.h"
#include "collective/scratch.h"
#include "core/failpoint.h"

namespace decentral {

// What operations share, owned by the engine. Data thread only, but for `thread`.
struct OpContext {
  BulkTransport& transport;
  PeerId self;
  std::function<int64_t()> now_ms;
  ScratchPool pool{};
  // Per peer and stream: frames of all operations that are in the transport's hands. The next one
  // takes the emptiest stream, so that a slow stream never holds up a chunk that another could
  // carry.
  std::map<PeerId, std::vector<uint32_t>> stream_load{};
  // An operation is over (user memory is free): remember its outcome; and again when the
  // transport has let go of everything (op.quiet()).
  std::function<void(class OpImpl&)> settled{};
  std::atomic<std::thread::id> thread{};
};

class OpImpl final : public Op, public std::enable_shared_from_this<OpImpl> {
 public:
  OpImpl(OpContext&, OpSpec, const float* src, float* dst);

  // Any thread.
  bool Wait(double timeout_s) override;
  bool done() const override;
  Error error() const override;
  OpStats stats() const override;
  void SourceReady(uint64_t elements) override;
  std::vector<Piece> TakeFinal() override;
  void Abort(const std::string& reason) override;

  // Data thread only, from here on.
  void Start(uint32_t serial);
  void OnReady(uint32_t rank, const ReadyFrame&);
  // From a member that our plan sends nothing to.
  void OnUnexpectedReady(uint32_t rank, const ReadyFrame&);
  void OnProgress(uint32_t rank, const ProgressFrame&);
  void OnAbort(uint32_t rank, const Error& theirs);
  void OnBulkUp(uint32_t rank, int streams);
  void OnBulkDown(uint32_t rank, const Error& why);
  uint8_t* OnHeader(uint32_t rank, int stream, const FrameHeader&);
  void OnPayload(uint32_t rank, int stream, const FrameHeader&);
  void OnSent(uint64_t cookie);
  void Tick();

  static constexpr int kTickMs = 250;

  enum class Tell { kEverybody, kNobody };
  void Fail(Error, Tell);
  void FailedAt(Failpoint);
  // Gives up on what the transport still holds: for an engine that was detached.
  void LetGo();

  OpKey key() const { return {spec_.round, spec_.attempt, spec_.tag}; }
  uint32_t serial() const { return serial_; }
  bool running() const { return state_ == State::kRunning; }
  // A word with this ticket belongs to this run of the operation: the first one, or a repetition.
  bool expects(uint32_t rank, uint32_t ticket) const {
    const SendLane& lane = send_[rank];
    return !lane.steps.empty() && (!lane.ready || lane.ticket == ticket);
  }
  bool sends_to(uint32_t rank) const { return !send_[rank].steps.empty(); }
  // The transport holds nothing of ours.
  bool quiet() const { return in_flight_.empty() && landings_.empty(); }
  int rank_of(const PeerId&) const;  // -1: not a member
  const Error& failure() const { return failure_; }

 private:
  // What may wait in scratch for another peer's turn: a quarter of the buffer from all peers
  // together, but so much from each that a long path does not idle between two grants.
  static constexpr uint64_t kMinWindow = 8;  // chunks
  static constexpr uint64_t kMaxWindowBytes = 16 << 20;
  // Sums that are only passed on may stay in scratch: memory that is in the cache. So many at most.
  static constexpr size_t kMaxPassing = 16;

  enum class State { kRunning, kFailing, kDone };

  struct SegmentState {
    uint64_t chunks = 0;             // of our grid
    uint32_t receives = 0;           // receive steps in our plan
    std::vector<uint32_t> received;  // per chunk: how many of those are applied
  };
  // What we send to one peer, in the order in which it leaves.
  struct SendLane {
    std::vector<uint32_t> steps;  // indices into spec_.steps
    bool ready = false;           // the receiver has started and agrees
    int streams = 0;
    uint32_t ticket = 0;
    uint64_t grain = 0;     // elements per chunk: the receiver's
    uint64_t granted = 0;   // send only sequences below
    size_t step = 0;        // cursor
    uint64_t chunk = 0;     // cursor within the step
    uint64_t sequence = 0;  // of the next chunk
    int in_flight = 0;
    bool pumping = false;
    bool finished = false;
  };
  struct RecvLane {
    std::vector<uint32_t> steps;
    std::vector<uint64_t> first;  // per step: sequence of its first chunk
    std::vector<bool> seen;       // per sequence: its header came
    uint64_t applied = 0;
    uint64_t granted = 0;
    bool windowed = false;  // chunks may have to wait for another peer's: bound them
  };
  struct InFlight {
    uint32_t rank = 0;
    uint32_t stream = 0;
    bool borrows = false;  // user memory
    ScratchPool::Buffer scratch;
  };
  struct Landing {
    uint32_t step = 0;
    uint64_t chunk = 0;
    uint8_t* data = nullptr;
    bool borrows = false;  // user memory
    bool in_place = false;
    ScratchPool::Buffer scratch;
  };
  // op.cc
  void BuildState();
  void AddLaneStep(uint32_t index);
  void MarkWindowed();
  void FinishIfComplete();
  void Settle();
  void Publish(const Error&);
  bool Compare(uint32_t rank, const ReadyFrame&);
  Codec CodecOf(const PlanStep& step) const {
    const bool final =
        step.kind == PlanStep::Kind::kSendFinal || step.kind == PlanStep::Kind::kRecvFinal;
    return final ? final_codec_ : spec_.codec;
  }
  std::string Name(uint32_t rank) const { return ShortName(spec_.members[rank]); }
  FrameHeader Header(FrameType type) const;
  void SendControl(uint32_t rank, FrameType type, uint8_t flags, const std::string& payload);

  // op_watch.cc
  void SendSign(uint32_t rank);
  void SendReady(uint32_t rank);
  void SendProgress(uint32_t rank);
  bool WaitsFor(uint32_t rank) const;
  void Heard(uint32_t rank);
  std::string Phase() const;

  // op_send.cc
  void Pump(uint32_t rank);
  void PumpAll();
  bool NextIsReady(SendLane&);
  void SendNext(uint32_t rank);

  // op_recv.cc
  Piece ChunkOf(uint32_t segment, uint64_t chunk) const;
  bool Locate(const RecvLane&, uint64_t sequence, uint32_t* step, uint64_t* chunk) const;
  void Arrived(Landing);
  void Apply(Landing&);
  bool PassesOn(const Landing&) const;
  bool InTurn(const Landing&) const;
  void CompleteOwned(uint32_t segment, Piece);
  void CompleteAlone();
  void OnSource(uint64_t elements);
  void BecameFinal(Piece);
  void Grant(uint32_t rank);

  OpContext& context_;
  const OpSpec spec_;
  const Codec final_codec_;
  const float* const src_;
  float* const dst_;

  // Data thread.
  State state_ = State::kRunning;
  uint32_t serial_ = 0;
  ReadyFrame ours_;
  uint64_t grain_ = 0;
  uint64_t window_ = 0;            // chunks per peer, where chunks may have to wait
  uint64_t source_ready_ = 0;      // elements of src that may be read
  std::vector<uint32_t> ordinal_;  // per step: receive steps before it on the same segment
  // Per step: whom the sum goes to that this receive completes, if it is only passed on; else -1.
  std::vector<int64_t> passes_to_;
  std::vector<SegmentState> segments_;
  std::vector<SendLane> send_;        // by rank
  std::vector<RecvLane> recv_;        // by rank
  std::vector<uint32_t> neighbours_;  // in cyclic order from ours: not all serve rank 0 first
  size_t lanes_left_ = 0;             // send lanes that are not finished
  uint64_t chunks_left_ = 0;          // to be applied
  uint64_t reduces_left_ = 0;         // of those, kRecvReduce
  std::unordered_map<uint64_t, InFlight> in_flight_;      // by cookie
  std::map<std::pair<uint32_t, int>, Landing> landings_;  // by (rank, stream)
  // Chunks that came before their turn, by (segment, chunk, ordinal).
  std::map<std::tuple<uint32_t, uint64_t, uint32_t>, Landing> early_;
  std::map<std::pair<uint32_t, uint64_t>, ScratchPool::Buffer> passing_;  // (segment, chunk)
  uint64_t last_cookie_ = 0;
  int borrowed_ = 0;  // frames and landings that touch src or dst
  Error failure_;
  std::vector<int64_t> heard_ms_, spoke_ms_;  // by rank
  std::vector<bool> met_;                     // by rank: has started, as far as we know
  int64_t ticked_ms_ = 0;

  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::atomic<uint64_t> bytes_sent_{0}, bytes_received_{0};
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;         // GUARDED_BY(mutex_)
  Error error_;               // GUARDED_BY(mutex_)
  double seconds_ = 0;        // GUARDED_BY(mutex_)
  std::vector<Piece> final_;  // GUARDED_BY(mutex_): staged, not yet taken
};

}  // namespace decentral
