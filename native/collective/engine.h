// Executes plans: all-reduce, reduce-scatter, all-gather and broadcast over a BulkTransport,
// chunk by chunk.
//
// Vocabulary. The buffer is cut into *segments* (a plan's unit: who owns what) and each segment
// into *chunks* (the pipeline's unit: what one frame carries). A *plan* is, for one rank, a list
// of Send and Recv steps over segments. Two rules give all the order there is:
//   1. chunk c of a step waits for chunk c of every earlier Recv step on the same segment;
//   2. steps between the same two peers happen in list order on both ends.
// A chunk that has arrived is therefore sent on at once, while the rest of its segment is still
// on the way: that is the pipelining.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/codec.h"
#include "core/types.h"
#include "link/bulk_transport.h"

namespace decentral {

struct PlanStep {
  enum class Kind : uint8_t {
    kSendPartial,  // encode what we have accumulated (source, or source + received) and send it
    kRecvReduce,   // decode and add to the accumulated value
    kSendFinal,    // send the owner's final encoding; a non-owner forwards the bytes it received
    kRecvFinal,    // take the final value: keep encoded bytes for forwarding, decode into dst
  };
  Kind kind{};
  uint32_t peer = 0;     // rank
  uint32_t segment = 0;  // index into OpSpec::segments
};

struct Segment {
  uint64_t offset = 0;  // elements
  uint64_t count = 0;   // elements
  uint32_t owner = 0;   // rank that completes the sum, scales, encodes once, and decodes its own
};

// What the members do together. The engine only needs to know it to compare notes, and because
// a reduce-scatter's sums go nowhere: they are not encoded.
enum class OpKind : uint8_t { kAllReduce, kReduceScatter, kAllGather, kBroadcast };

// What the values were before they became fp32, for members to compare.
enum class ElementType : uint8_t { kFp32, kBf16, kFp16, kBytes };

struct OpSpec {
  OpKind kind = OpKind::kAllReduce;
  std::vector<PeerId> members;  // rank order: the same on every member
  uint32_t rank = 0;            // ours
  uint64_t count = 0;           // elements, fp32
  ElementType dtype = ElementType::kFp32;
  Codec codec = Codec::kFp32;             // what partial sums travel as
  std::optional<Codec> final_codec = {};  // what final values travel as; none: the same
  std::string schedule = {};              // the planner's name, at most kMaxScheduleName bytes
  std::vector<Segment> segments;
  std::vector<PlanStep> steps;
  float weight = 1.0f;  // our source counts times this
  float scale = 1.0f;   // the owner multiplies the sum by this (same on every member)
  // Round, attempt and tag name the operation; a name is used once (a retry is a new attempt).
  uint64_t round = 0;
  uint32_t attempt = 0;
  uint32_t tag = 0;
  // All-reduce only: src fills up while the operation runs (SourceReady), and dst is taken away
  // piece by piece (TakeFinal): both are staging areas of a device's memory.
  bool staged = false;
  int priority = 1;  // chunks of a lower number go first, where several operations share a stream
  // Upper bound for a frame's payload before encoding, rounded down to whole int8 blocks. The
  // receiver's value rules; members may differ in it without changing a bit.
  uint32_t chunk_bytes = 512 << 10;
  // No sign of life from a peer that we wait for: fail. A member that runs the operation gives one
  // every fifth of its own limit, however slow its link.
  int silence_limit_ms = 5000;
  // A peer that we wait for has not started: fail. It may be busy, hence the patience; that it is
  // alive is the link's business (OnBulkDown).
  int start_limit_ms = 60000;
};

inline constexpr uint32_t kMaxChunkBytes = 4 << 20;  // what endpoints accept in one frame
inline constexpr size_t kMaxScheduleName = 16;

struct Piece {  // elements of the buffer
  uint64_t offset = 0, count = 0;
};

struct OpStats {
  uint64_t bytes_sent = 0, bytes_received = 0;  // payload and headers
  double seconds = 0;
};

// A running or finished operation. Thread-safe.
class Op {
 public:
  virtual ~Op() = default;
  // Waits up to timeout_s (< 0: for ever). False: still running.
  virtual bool Wait(double timeout_s) = 0;
  // True once src and dst are no longer touched. A failed operation gets there when the frames
  // that it had queued or was receiving into dst are through: at once as a rule, at the latest
  // when the link's silence limit takes the link down.
  virtual bool done() const = 0;
  // After done(): kNone, or why it failed. `src` is never written; `dst` is complete or garbage.
  virtual Error error() const = 0;
  virtual OpStats stats() const = 0;
  // Staged operations: the first `elements` of src are there now. / What has become final in dst
  // since the last call.
  virtual void SourceReady(uint64_t elements) = 0;
  virtual std::vector<Piece> TakeFinal() = 0;
  // Calls it off on all members; returns when done() (from the data thread: at once). Idempotent.
  virtual void Abort(const std::string& reason) = 0;
};

class Engine : public BulkHandler {
 public:
  // The transport outlives the engine, its data thread runs until the engine is gone. `now_ms` is
  // a monotonic clock for silence; default: the steady clock.
  static std::unique_ptr<Engine> Create(BulkTransport&, PeerId self,
                                        std::function<int64_t()> now_ms = nullptr);
  // Fails whatever is running and waits until no memory is borrowed. Close first, then detach the
  // engine from its transport, then destroy it (which closes, too, but once detached it can only
  // wait in vain, for two seconds).
  virtual void Close() = 0;
  // All-reduce: dst = scale * sum over members of weight_m * src_m, the same bits everywhere. The
  // others fill the segments of dst that their plan makes final here. src and dst are fp32 arrays
  // of spec.count elements, distinct, borrowed until done. Throws Error(kConfig). Members compare
  // notes (what, count, codec, plan, scale, members) before any byte moves: kMismatch names who
  // differs in what.
  virtual std::shared_ptr<Op> Start(const OpSpec&, const float* src, float* dst) = 0;
};

}  // namespace decentral
