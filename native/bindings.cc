// The only file that knows Python. Everything else is plain C++ and is tested without it.
//
// Two rules hold here. Whatever may wait releases the GIL; and no thread of ours ever takes it:
// memory that Python lent us is given back by whichever Python call comes next, so that a busy
// interpreter cannot stall the data path.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>

#include "collective/codec.h"
#include "collective/engine.h"
#include "core/hash.h"
#include "link/endpoint.h"
#include "optim/outer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace decentral {
namespace {

// noconvert at every use: a strided or double array must be refused, not silently copied.
using FloatsIn = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// ------------------------------------------------------------------------------------- values

nb::bytes ToBytes(const std::string& s) { return nb::bytes(s.data(), s.size()); }
template <size_t N>
nb::bytes ToBytes(const std::array<uint8_t, N>& a) {
  return nb::bytes(reinterpret_cast<const char*>(a.data()), N);
}

template <size_t N = 32>
std::array<uint8_t, N> FromBytes(const nb::bytes& b, const char* what) {
  if (b.size() != N) {
    throw nb::value_error((std::string(what) + " must be " + std::to_string(N) + " bytes").c_str());
  }
  std::array<uint8_t, N> out;
  std::memcpy(out.data(), b.c_str(), N);
  return out;
}

const char* KindName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kNone: return "none";
    case ErrorKind::kUnreachable: return "unreachable";
    case ErrorKind::kNotDecentral: return "not-decentral";
    case ErrorKind::kVersionMismatch: return "version-mismatch";
    case ErrorKind::kIdentity: return "identity";
    case ErrorKind::kSelf: return "self";
    case ErrorKind::kRefused: return "refused";
    case ErrorKind::kProtocol: return "protocol";
    case ErrorKind::kClosed: return "closed";
    case ErrorKind::kSilent: return "silent";
    case ErrorKind::kAborted: return "aborted";
    case ErrorKind::kMismatch: return "mismatch";
    case ErrorKind::kConfig: return "config";
  }
  return "none";
}

const char* ClassName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUnreachable: return "UnreachableError";
    case ErrorKind::kNotDecentral: return "NotDecentralError";
    case ErrorKind::kVersionMismatch: return "VersionMismatchError";
    case ErrorKind::kIdentity: return "IdentityError";
    case ErrorKind::kSelf: return "SelfJoinError";
    case ErrorKind::kRefused: return "RefusedError";
    case ErrorKind::kProtocol: return "ProtocolError";
    case ErrorKind::kClosed:
    case ErrorKind::kSilent: return "PeerFailedError";
    case ErrorKind::kAborted: return "AbortedError";
    case ErrorKind::kMismatch: return "MismatchError";
    case ErrorKind::kConfig: return "ConfigError";
    case ErrorKind::kNone: break;
  }
  return "DecentralError";
}

// (kind, phase, peer, text): what Python code turns into a typed error with a peer's name.
using ErrorTuple = std::tuple<std::string, std::string, nb::bytes, std::string>;
std::optional<ErrorTuple> ToTuple(const Error& e) {
  if (!e) return std::nullopt;
  return ErrorTuple{KindName(e.kind), e.phase, ToBytes(e.peer), e.text};
}

// -------------------------------------------------------------------------------------- links

const char* TypeName(Event::Type type) {
  switch (type) {
    case Event::Type::kLinkUp: return "link-up";
    case Event::Type::kLinkDown: return "link-down";
    case Event::Type::kDialFailed: return "dial-failed";
    case Event::Type::kMessage: return "message";
    case Event::Type::kProbeAck: return "probe-ack";
    case Event::Type::kBlob: return "blob";
    case Event::Type::kBlobFailed: return "blob-failed";
  }
  return "";
}

// Python objects whose memory native threads are using, by a number of ours.
class Lent {
 public:
  uint64_t Keep(nb::object object) {
    std::lock_guard lock(mutex_);
    objects_.emplace(++last_, std::move(object));
    return last_;
  }
  void Return(uint64_t key) {  // any thread, no GIL
    std::lock_guard lock(mutex_);
    returned_.push_back(key);
  }
  void Reap() {  // with the GIL
    std::vector<nb::object> drop;
    std::lock_guard lock(mutex_);
    for (uint64_t key : returned_) {
      if (auto it = objects_.find(key); it != objects_.end()) {
        drop.push_back(std::move(it->second));
        objects_.erase(it);
      }
    }
    returned_.clear();
  }

 private:
  std::mutex mutex_;
  uint64_t last_ = 0;
  std::map<uint64_t, nb::object> objects_;  // GUARDED_BY(mutex_)
  std::vector<uint64_t> returned_;          // GUARDED_BY(mutex_)
};

class PyEngine;

class PyEndpoint {
 public:
  // The engine is there from the start: a faster peer's kOpReady may come before our first call.
  explicit PyEndpoint(EndpointOptions options)
      : endpoint_(std::make_unique<Endpoint>(options)),
        engine_(Engine::Create(endpoint_->bulk(), endpoint_->id())) {
    endpoint_->SetBulkHandler(engine_.get());
  }
  ~PyEndpoint() { Close(); }

  Endpoint& get() {
    if (!endpoint_) throw Error(ErrorKind::kConfig, "endpoint", "this endpoint is closed");
    return *endpoint_;
  }
  void Close() {
    if (!endpoint_) return;
    {
      nb::gil_scoped_release release;
      endpoint_->SetBulkHandler(nullptr);
      engine_.reset();  // fails running operations
      endpoint_.reset();
    }
    posted_.clear();
    lent_->Reap();
  }
  Engine& engine() {
    get();
    return *engine_;
  }

  void SendBlob(LinkId link, uint64_t key, nb::object owner) {
    auto view = nb::cast<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(owner);
    lent_->Reap();
    const uint64_t loan = lent_->Keep(owner);
    auto lent = lent_;  // outlives us if the data thread is late
    get().SendBlob(link, key, view.data(), view.size(), [lent, loan] { lent->Return(loan); });
  }
  void PostBlob(LinkId link, uint64_t key, nb::object owner) {
    auto view = nb::cast<nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(owner, false);
    posted_[key] = owner;
    get().PostBlob(link, key, view.data(), view.size());
  }
  void CancelBlob(uint64_t key) {
    {
      nb::gil_scoped_release release;
      get().CancelBlob(key);
    }
    posted_.erase(key);
  }
  std::vector<Event> TakeEvents() {
    auto events = get().TakeEvents();
    for (const Event& event : events) {
      if (event.type == Event::Type::kBlob || event.type == Event::Type::kBlobFailed) {
        posted_.erase(event.seq);
      }
    }
    lent_->Reap();
    return events;
  }

 private:
  std::unique_ptr<Endpoint> endpoint_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<Lent> lent_ = std::make_shared<Lent>();
  std::map<uint64_t, nb::object> posted_;  // by blob key
};

// --------------------------------------------------------------------------------- collectives

Codec ParseCodec(const std::string& name) {
  if (name == "fp32") return Codec::kFp32;
  if (name == "bf16") return Codec::kBf16;
  if (name == "int8") return Codec::kInt8;
  throw Error(ErrorKind::kConfig, "codec", "no codec '" + name + "': there are fp32, bf16, int8");
}

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

 private:
  std::shared_ptr<Op> op_;
  FloatsIn src_;
  FloatsOut dst_;
};

class PyEngine {
 public:
  explicit PyEngine(nb::object endpoint)
      : owner_(endpoint), endpoint_(nb::cast<PyEndpoint*>(endpoint)) {}

  std::unique_ptr<PyOp> AllReduce(
      const std::vector<nb::bytes>& members, uint32_t rank, uint64_t count,
      const std::string& codec,
      const std::vector<std::tuple<uint64_t, uint64_t, uint32_t>>& segments,
      const std::vector<std::tuple<uint32_t, uint32_t, uint32_t>>& steps, float weight,
      float scale, uint64_t round, uint32_t attempt, uint32_t tag, uint32_t chunk_bytes,
      int silence_limit_ms, FloatsIn src, FloatsOut dst) {
    if (src.size() != count || dst.size() != count) {
      throw Error(ErrorKind::kConfig, "all-reduce", "src and dst must both hold `count` values");
    }
    OpSpec spec;
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
    spec.chunk_bytes = chunk_bytes;
    spec.silence_limit_ms = silence_limit_ms;
    Engine& engine = endpoint_->engine();
    std::shared_ptr<Op> op;
    {
      nb::gil_scoped_release release;
      op = engine.AllReduce(spec, src.data(), dst.data());
    }
    return std::make_unique<PyOp>(std::move(op), std::move(src), std::move(dst));
  }

 private:
  nb::object owner_;
  PyEndpoint* endpoint_;
};

// ------------------------------------------------------------------------------ hashes, kernels

void SameSize(std::initializer_list<size_t> sizes) {
  if (std::adjacent_find(sizes.begin(), sizes.end(), std::not_equal_to<>()) != sizes.end()) {
    throw nb::value_error("arrays differ in size");
  }
}

nb::bytes PyLeafHashes(nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> array) {
  std::vector<Hash256> leaves;
  {
    nb::gil_scoped_release release;
    leaves = LeafHashes(static_cast<const uint8_t*>(array.data()), array.nbytes());
  }
  return nb::bytes(reinterpret_cast<const char*>(leaves.data()), leaves.size() * sizeof(Hash256));
}

nb::bytes PyTensorRoot(const std::string& name, const std::string& dtype,
                       const std::vector<uint64_t>& shape, uint64_t size_bytes,
                       const nb::bytes& leaves) {
  if (leaves.size() % sizeof(Hash256) != 0) throw nb::value_error("leaves are 32 bytes each");
  std::vector<Hash256> parsed(leaves.size() / sizeof(Hash256));
  std::memcpy(parsed.data(), leaves.c_str(), leaves.size());
  return ToBytes(TensorRoot(name, dtype, shape, size_bytes, parsed));
}

nb::bytes PyStateRoot(const std::vector<std::tuple<std::string, nb::bytes>>& tensors) {
  std::vector<std::pair<std::string, Hash256>> roots;
  for (const auto& [name, root] : tensors) {
    roots.emplace_back(name, FromBytes(root, "a tensor's root"));
  }
  return ToBytes(StateRoot(std::move(roots)));
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Links, collectives and kernels in C++. Use decentral.peer and decentral.collectives.";

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      nb::object cls = nb::module_::import_("decentral.errors").attr(ClassName(e.kind));
      nb::object peer = nb::none();
      if (e.peer != PeerId{}) {
        peer = nb::module_::import_("decentral.types").attr("peer_id")(ToBytes(e.peer));
      }
      nb::object value = cls(e.text, "peer"_a = peer, "phase"_a = e.phase);
      PyErr_SetObject(cls.ptr(), value.ptr());
    }
  });

  nb::class_<Event>(m, "Event", "Something that happened on the network; see link/endpoint.h.")
      .def_prop_ro("type", [](const Event& e) { return TypeName(e.type); })
      .def_ro("link", &Event::link)
      .def_ro("dial", &Event::dial)
      .def_prop_ro("peer", [](const Event& e) { return ToBytes(e.peer); })
      .def_ro("inbound", &Event::inbound)
      .def_ro("address", &Event::address)
      .def_prop_ro("exporter", [](const Event& e) { return ToBytes(e.exporter); })
      .def_prop_ro("data", [](const Event& e) { return ToBytes(e.data); })
      .def_ro("seq", &Event::seq)
      .def_ro("incarnation", &Event::incarnation)
      .def_ro("progress", &Event::progress)
      .def_ro("rtt_us", &Event::rtt_us)
      .def_prop_ro("error", [](const Event& e) { return ToTuple(e.error); },
                   "None, or (kind, phase, peer, text)");

  nb::class_<LinkStats>(m, "LinkStats")
      .def_ro("control_bytes_sent", &LinkStats::control_bytes_sent)
      .def_ro("control_bytes_received", &LinkStats::control_bytes_received)
      .def_ro("bulk_bytes_sent", &LinkStats::bulk_bytes_sent)
      .def_ro("bulk_bytes_received", &LinkStats::bulk_bytes_received)
      .def_ro("queued_bytes", &LinkStats::queued_bytes)
      .def_ro("rtt_us", &LinkStats::rtt_us)
      .def_ro("bulk_streams", &LinkStats::bulk_streams);

  nb::class_<EndpointCounters>(m, "EndpointCounters")
      .def_ro("links_up", &EndpointCounters::links_up)
      .def_ro("refused", &EndpointCounters::refused)
      .def_ro("half_open", &EndpointCounters::half_open)
      .def_ro("protocol_errors", &EndpointCounters::protocol_errors)
      .def_ro("bytes_sent", &EndpointCounters::bytes_sent)
      .def_ro("bytes_received", &EndpointCounters::bytes_received);

  nb::class_<PyEndpoint>(m, "Endpoint", "One peer's presence on the network; see link/endpoint.h.")
      .def(
          "__init__",
          [](PyEndpoint* self, const nb::bytes& seed, const std::vector<uint16_t>& versions,
             int bulk_streams, bool encrypt_bulk, int handshake_timeout_ms, int max_half_open,
             uint32_t max_unadmitted_bytes, int silence_limit_ms, int heartbeat_ms) {
            EndpointOptions o;
            o.seed = FromBytes(seed, "the key's seed");
            o.versions = versions;
            o.bulk_streams = bulk_streams;
            o.encrypt_bulk = encrypt_bulk;
            o.handshake_timeout_ms = handshake_timeout_ms;
            o.max_half_open = max_half_open;
            o.max_unadmitted_bytes = max_unadmitted_bytes;
            o.silence_limit_ms = silence_limit_ms;
            o.heartbeat_ms = heartbeat_ms;
            new (self) PyEndpoint(o);
          },
          "seed"_a, nb::kw_only(), "versions"_a = std::vector<uint16_t>{1}, "bulk_streams"_a = 2,
          "encrypt_bulk"_a = true, "handshake_timeout_ms"_a = 5000, "max_half_open"_a = 256,
          "max_unadmitted_bytes"_a = 64 << 10, "silence_limit_ms"_a = 5000,
          "heartbeat_ms"_a = 1000)
      .def_prop_ro("id", [](PyEndpoint& e) { return ToBytes(e.get().id()); })
      .def("listen", [](PyEndpoint& e, const std::string& host, uint16_t port) {
            nb::gil_scoped_release release;
            return e.get().Listen(host, port);
          }, "host"_a, "port"_a)
      .def("dial", [](PyEndpoint& e, const std::string& host, uint16_t port,
                      std::optional<nb::bytes> expected, int timeout_ms, uint16_t local_port,
                      bool role_by_id) {
            DialOptions o;
            o.host = host;
            o.port = port;
            o.has_expected = expected.has_value();
            if (expected) o.expected = FromBytes(*expected, "the expected peer's id");
            o.timeout_ms = timeout_ms;
            o.local_port = local_port;
            o.role_by_id = role_by_id;
            return e.get().Dial(o);
          }, "host"_a, "port"_a, nb::kw_only(), "expected"_a = nb::none(), "timeout_ms"_a = 5000,
          "local_port"_a = 0, "role_by_id"_a = false)
      .def("admit", [](PyEndpoint& e, LinkId link) { e.get().Admit(link); }, "link"_a)
      .def("refuse", [](PyEndpoint& e, LinkId link, const std::string& says) {
            e.get().Refuse(link, says);
          }, "link"_a, "says"_a)
      .def("send", [](PyEndpoint& e, LinkId link, const nb::bytes& message, int priority) {
            e.get().Send(link, std::string(message.c_str(), message.size()), priority);
          }, "link"_a, "message"_a, "priority"_a = 1)
      .def("close_link", [](PyEndpoint& e, LinkId link, const std::string& reason) {
            e.get().Close(link, reason);
          }, "link"_a, "reason"_a)
      .def("probe", [](PyEndpoint& e, LinkId link, uint64_t seq, uint32_t suspected) {
            e.get().Probe(link, seq, suspected);
          }, "link"_a, "seq"_a, "suspected_incarnation"_a = 0)
      .def("set_progress", [](PyEndpoint& e, uint64_t p) { e.get().SetProgress(p); }, "progress"_a)
      .def_prop_ro("incarnation", [](PyEndpoint& e) { return e.get().incarnation(); })
      .def("set_stamp", [](PyEndpoint& e, uint64_t run, uint64_t lineage, uint64_t epoch) {
            e.get().SetStamp(run, lineage, epoch);
          }, "run"_a, "lineage"_a, "epoch"_a)
      .def("send_blob", &PyEndpoint::SendBlob, "link"_a, "key"_a, "data"_a,
           "Send a uint8 array; it is borrowed until it has left.")
      .def("post_blob", &PyEndpoint::PostBlob, "link"_a, "key"_a, "into"_a,
           "Receive into a writable uint8 array; a blob or blob-failed event follows.")
      .def("cancel_blob", &PyEndpoint::CancelBlob, "key"_a)
      .def("take_events", &PyEndpoint::TakeEvents)
      .def_prop_ro("event_fd", [](PyEndpoint& e) { return e.get().event_fd(); })
      .def("stats", [](PyEndpoint& e, LinkId link) { return e.get().Stats(link); }, "link"_a)
      .def("counters", [](PyEndpoint& e) { return e.get().Counters(); })
      .def("close", &PyEndpoint::Close, "Close every link and join the threads; idempotent.");

  nb::class_<PyOp>(m, "Op", "A running collective operation.")
      .def("wait", &PyOp::Wait, "timeout_s"_a = -1.0, "False: still running.")
      .def("abort", &PyOp::Abort, "reason"_a)
      .def_prop_ro("done", [](const PyOp& o) { return o.op().done(); })
      .def_prop_ro("error", [](const PyOp& o) { return ToTuple(o.op().error()); },
                   "None, or (kind, phase, peer, text)")
      .def_prop_ro("stats", [](const PyOp& o) {
        const OpStats s = o.op().stats();
        return std::tuple(s.bytes_sent, s.bytes_received, s.seconds);
      }, "(bytes sent, bytes received, seconds)");

  nb::class_<PyEngine>(m, "Engine", "Executes plans over an endpoint's bulk streams.")
      .def(nb::init<nb::object>(), "endpoint"_a)
      .def("all_reduce", &PyEngine::AllReduce, nb::kw_only(), "members"_a, "rank"_a, "count"_a,
           "codec"_a, "segments"_a, "steps"_a, "weight"_a, "scale"_a, "round"_a, "attempt"_a,
           "tag"_a, "chunk_bytes"_a, "silence_limit_ms"_a, "src"_a.noconvert(),
           "dst"_a.noconvert());

  m.def("encode", [](const std::string& codec, FloatsIn src) {
    std::string out(EncodedSize(ParseCodec(codec), src.size()), '\0');
    Encode(ParseCodec(codec), src.data(), src.size(), 1.0f, reinterpret_cast<uint8_t*>(out.data()));
    return ToBytes(out);
  }, "codec"_a, "src"_a.noconvert());
  m.def("decode", [](const std::string& codec, const nb::bytes& data, FloatsOut out) {
    if (data.size() != EncodedSize(ParseCodec(codec), out.size())) {
      throw nb::value_error("the encoded size does not fit the number of values");
    }
    Decode(ParseCodec(codec), reinterpret_cast<const uint8_t*>(data.c_str()), out.size(), out.data());
  }, "codec"_a, "data"_a, "out"_a.noconvert());

  m.def("leaf_hashes", &PyLeafHashes, "data"_a.noconvert(), "32 bytes per 1 MiB chunk.");
  m.def("tensor_root", &PyTensorRoot, "name"_a, "dtype"_a, "shape"_a, "size_bytes"_a, "leaves"_a);
  m.def("state_root", &PyStateRoot, "tensors"_a);

  m.def("outer_nesterov", [](FloatsIn theta, FloatsIn momentum, FloatsIn delta, float lr, float mu,
                             FloatsOut out_theta, FloatsOut out_momentum) {
    SameSize({theta.size(), momentum.size(), delta.size(), out_theta.size(), out_momentum.size()});
    nb::gil_scoped_release release;
    OuterNesterov(theta.data(), momentum.data(), delta.data(), lr, mu, theta.size(),
                  out_theta.data(), out_momentum.data());
  }, "theta"_a.noconvert(), "momentum"_a.noconvert(), "delta"_a.noconvert(), "lr"_a, "mu"_a,
     "out_theta"_a.noconvert(), "out_momentum"_a.noconvert());
  m.def("outer_sgd", [](FloatsIn theta, FloatsIn delta, float lr, FloatsOut out) {
    SameSize({theta.size(), delta.size(), out.size()});
    nb::gil_scoped_release release;
    OuterSgd(theta.data(), delta.data(), lr, theta.size(), out.data());
  }, "theta"_a.noconvert(), "delta"_a.noconvert(), "lr"_a, "out"_a.noconvert());
  m.def("subtract", [](FloatsIn a, FloatsIn b, FloatsOut out) {
    SameSize({a.size(), b.size(), out.size()});
    nb::gil_scoped_release release;
    Subtract(a.data(), b.data(), a.size(), out.data());
  }, "a"_a.noconvert(), "b"_a.noconvert(), "out"_a.noconvert());
  m.def("all_finite", [](FloatsIn x) {
    nb::gil_scoped_release release;
    return AllFinite(x.data(), x.size());
  }, "x"_a.noconvert());
  m.def("norm", [](FloatsIn x) {
    nb::gil_scoped_release release;
    return Norm(x.data(), x.size());
  }, "x"_a.noconvert());
}

}  // namespace decentral
