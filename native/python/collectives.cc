// The engine and its operations, as Python sees them.
#include "collective/codec.h"
#include "python/py_endpoint.h"

namespace decentral {
namespace {

// An operation together with the arrays that it borrows.
class PyOp {
 public:
  PyOp(std::shared_ptr<Op> op, FloatsIn src, FloatsOut dst)
      : op_(std::move(op)), src_(std::move(src)), dst_(std::move(dst)) {}
  ~PyOp() {
    if (!op_->done()) Abort("the operation's handle was dropped");
  }
  bool Wait(double timeout_s) {
    nb::gil_scoped_release release;
    return op_->Wait(timeout_s);
  }
  void Abort(const std::string& reason) {
    nb::gil_scoped_release release;
    op_->Abort(reason);
  }
  const Op& op() const { return *op_; }
  Op& op() { return *op_; }

 private:
  std::shared_ptr<Op> op_;
  FloatsIn src_;
  FloatsOut dst_;
};

class PyEngine {
 public:
  explicit PyEngine(nb::object endpoint)
      : owner_(endpoint), endpoint_(nb::cast<PyEndpoint*>(endpoint)) {}

  std::unique_ptr<PyOp> Start(uint32_t kind, const std::vector<nb::bytes>& members, uint32_t rank,
                              uint64_t count, uint32_t dtype, const std::string& codec,
                              const std::string& final_codec, const std::string& schedule,
                              const std::vector<std::tuple<uint64_t, uint64_t, uint32_t>>& segments,
                              const std::vector<std::tuple<uint32_t, uint32_t, uint32_t>>& steps,
                              float weight, float scale, uint64_t round, uint32_t attempt,
                              uint32_t tag, int priority, uint32_t chunk_bytes,
                              int silence_limit_ms, int start_limit_ms, bool staged, FloatsIn src,
                              FloatsOut dst) {
    if (src.size() != count || dst.size() != count) {
      throw Error(ErrorKind::kConfig, "start", "src and dst must both hold `count` values");
    }
    if (kind > static_cast<uint32_t>(OpKind::kBroadcast) ||
        dtype > static_cast<uint32_t>(ElementType::kBytes)) {
      throw Error(ErrorKind::kConfig, "start", "no such kind of operation, or of element");
    }
    OpSpec spec;
    spec.kind = static_cast<OpKind>(kind);
    spec.dtype = static_cast<ElementType>(dtype);
    spec.final_codec = ParseCodec(final_codec);
    spec.schedule = schedule;
    for (const auto& m : members) spec.members.push_back(FromBytes(m, "a member's id"));
    spec.rank = rank;
    spec.count = count;
    spec.codec = ParseCodec(codec);
    for (auto [offset, n, owner] : segments) spec.segments.push_back({offset, n, owner});
    for (auto [kind, peer, segment] : steps) {
      if (kind > static_cast<uint32_t>(PlanStep::Kind::kRecvFinal)) {
        throw Error(ErrorKind::kConfig, "plan", "no such kind of step");
      }
      spec.steps.push_back({static_cast<PlanStep::Kind>(kind), peer, segment});
    }
    spec.weight = weight;
    spec.scale = scale;
    spec.round = round;
    spec.attempt = attempt;
    spec.tag = tag;
    spec.priority = priority;
    spec.chunk_bytes = chunk_bytes;
    spec.silence_limit_ms = silence_limit_ms;
    spec.start_limit_ms = start_limit_ms;
    spec.staged = staged;
    Engine& engine = endpoint_->engine();
    std::shared_ptr<Op> op;
    {
      nb::gil_scoped_release release;
      op = engine.Start(spec, src.data(), dst.data());
    }
    return std::make_unique<PyOp>(std::move(op), std::move(src), std::move(dst));
  }

 private:
  nb::object owner_;
  PyEndpoint* endpoint_;
};

}  // namespace

void BindCollectives(nb::module_& m) {
  nb::class_<PyOp>(m, "Op", "A running collective operation.")
      .def("wait", &PyOp::Wait, "timeout_s"_a = -1.0, "False: still running.")
      .def("abort", &PyOp::Abort, "reason"_a)
      .def(
          "source_ready", [](PyOp& o, uint64_t elements) { o.op().SourceReady(elements); },
          "elements"_a, "Staged: the first `elements` of src are there.")
      .def(
          "take_final",
          [](PyOp& o) {
            std::vector<std::tuple<uint64_t, uint64_t>> pieces;
            for (const Piece& piece : o.op().TakeFinal()) {
              pieces.emplace_back(piece.offset, piece.count);
            }
            return pieces;
          },
          "Staged: (offset, count) of what has become final in dst since the last call.")
      .def_prop_ro("done", [](const PyOp& o) { return o.op().done(); })
      .def_prop_ro(
          "error", [](const PyOp& o) { return ToTuple(o.op().error()); },
          "None, or (kind, phase, peer, text)")
      .def_prop_ro(
          "stats",
          [](const PyOp& o) {
            const OpStats s = o.op().stats();
            return std::tuple(s.bytes_sent, s.bytes_received, s.seconds);
          },
          "(bytes sent, bytes received, seconds)");

  nb::class_<PyEngine>(m, "Engine", "Executes plans over an endpoint's bulk streams.")
      .def(nb::init<nb::object>(), "endpoint"_a)
      .def("start", &PyEngine::Start, nb::kw_only(), "kind"_a, "members"_a, "rank"_a, "count"_a,
           "dtype"_a, "codec"_a, "final_codec"_a, "schedule"_a, "segments"_a, "steps"_a, "weight"_a,
           "scale"_a, "round"_a, "attempt"_a, "tag"_a, "priority"_a, "chunk_bytes"_a,
           "silence_limit_ms"_a, "start_limit_ms"_a, "staged"_a = false, "src"_a.noconvert(),
           "dst"_a.noconvert());
}

}  // namespace decentral
