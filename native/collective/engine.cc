// Routes what the transport delivers to the operation that it belongs to, and remembers words
// about operations that have not begun here, or are over.
#include "collective/engine.h"

#include <algorithm>
#include <deque>
#include <future>
#include <map>

#include "collective/op.h"
#include "collective/spec_check.h"

namespace decentral {
namespace {

constexpr size_t kMaxEarlyWords = 64;  // kOpReady and kOpAbort each, for operations not begun
constexpr size_t kMaxFinished = 256;   // outcomes remembered
constexpr auto kCloseWait = std::chrono::seconds(2);

// A map that forgets its oldest entries.
template <typename Key, typename Value, size_t kLimit>
class Recent {
 public:
  void Put(const Key& key, Value value) {
    if (!map_.insert_or_assign(key, std::move(value)).second) return;
    order_.push_back(key);
    if (map_.size() <= kLimit) return;
    map_.erase(order_.front());
    order_.pop_front();
  }
  const Value* Find(const Key& key) const {
    const auto it = map_.find(key);
    return it == map_.end() ? nullptr : &it->second;
  }
  template <typename Predicate>
  void EraseIf(Predicate gone) {
    std::erase_if(order_, [&](const Key& key) {
      if (!gone(key, map_.at(key))) return false;
      map_.erase(key);
      return true;
    });
  }

 private:
  std::map<Key, Value> map_;
  std::deque<Key> order_;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(BulkTransport& transport, PeerId self, std::function<int64_t()> now_ms)
      : context_{.transport = transport, .self = self, .now_ms = std::move(now_ms)} {
    context_.settled = [this](OpImpl& op) { Settled(op); };
    if (!context_.now_ms) {
      context_.now_ms = [] {
        return std::chrono::duration_cast<std::chrono::milliseconds>(
                   std::chrono::steady_clock::now().time_since_epoch())
            .count();
      };
    }
    context_.transport.Post([this, alive = alive_] {
      if (*alive) context_.thread = std::this_thread::get_id();
    });
  }

  ~EngineImpl() override {
    Close();
    RunOnDataThread([this] { *alive_ = false; });
  }

  std::shared_ptr<Op> Start(const OpSpec& spec, const float* src, float* dst) override {
    CheckSpec(spec, context_.self, src, dst);
    auto op = std::make_shared<OpImpl>(context_, spec, src, dst);
    context_.transport.Post([this, op] { Begin(op); });  // before anything our destructor posts
    return op;
  }

  void Close() override {
    std::vector<std::shared_ptr<OpImpl>> left;
    RunOnDataThread([&] {
      closed_ = true;
      left = Running();
      for (const auto& op : left) {
        op->Fail(Error(ErrorKind::kAborted, "", "This peer is leaving.", context_.self),
                 OpImpl::Tell::kEverybody);
      }
    });
    if (std::this_thread::get_id() == context_.thread) return;
    const auto deadline = std::chrono::steady_clock::now() + kCloseWait;
    for (const auto& op : left) {
      const std::chrono::duration<double> rest = deadline - std::chrono::steady_clock::now();
      op->Wait(std::max(0.0, rest.count()));
    }
    RunOnDataThread([&] {
      for (const auto& op : left) op->LetGo();
    });
  }

  // ---- from the transport, on the data thread --------------------------------------------------

  uint8_t* OnHeader(const PeerId& from, int stream, const FrameHeader& header) override {
    const auto op = ByTicket(header);
    const int rank = op ? op->rank_of(from) : -1;
    return rank < 0 ? nullptr : op->OnHeader(static_cast<uint32_t>(rank), stream, header);
  }

  void OnPayload(const PeerId& from, int stream, const FrameHeader& header) override {
    const auto op = ByTicket(header);
    const int rank = op ? op->rank_of(from) : -1;
    if (rank >= 0) op->OnPayload(static_cast<uint32_t>(rank), stream, header);
  }

  void OnSent(const PeerId&, int, uint64_t cookie) override {
    const auto it = ops_.find(static_cast<uint32_t>(cookie >> 32));
    if (it == ops_.end()) return;
    const auto op = it->second;
    op->OnSent(cookie);
  }

  void OnControl(const PeerId& from, const FrameHeader& header, const uint8_t* payload) override {
    const OpKey key{header.round, header.attempt, header.tag};
    if (header.type == FrameType::kOpAbort) {
      if (const auto error = DecodeAbort(payload, header.length)) HeardAbort(from, key, *error);
    } else if (header.type == FrameType::kOpReady && header.flags == kReadyFlag) {
      if (const auto ready = DecodeReady(payload, header.length)) HeardReady(from, key, *ready);
    } else if (header.type == FrameType::kOpReady && header.flags == kProgressFlag) {
      const auto progress = DecodeProgress(payload, header.length);
      const auto op = ByKey(key);
      const int rank = op ? op->rank_of(from) : -1;
      if (progress && rank >= 0) op->OnProgress(static_cast<uint32_t>(rank), *progress);
    }
  }

  void OnBulkUp(const PeerId& peer, int streams) override {
    for (const auto& op : Running()) {
      const int rank = op->rank_of(peer);
      if (rank >= 0) op->OnBulkUp(static_cast<uint32_t>(rank), streams);
    }
  }

  void OnBulkDown(const PeerId& peer, const Error& why) override {
    early_ready_.EraseIf([&](const auto& key, const auto&) { return key.second == peer; });
    for (const auto& op : Running()) {
      const int rank = op->rank_of(peer);
      if (rank >= 0) op->OnBulkDown(static_cast<uint32_t>(rank), why);
    }
  }

 private:
  void Begin(const std::shared_ptr<OpImpl>& op) {
    if (closed_ || ByKey(op->key())) {
      const char* says = closed_
                             ? "The engine is closed."
                             : "An operation with this round, attempt and tag is running already.";
      return op->Fail(Error(ErrorKind::kConfig, "start", says, context_.self),
                      OpImpl::Tell::kNobody);
    }
    finished_.EraseIf([&](const OpKey& key, const auto&) { return key == op->key(); });
    if (++last_serial_ == 0) ++last_serial_;
    ops_.emplace(last_serial_, op);
    by_key_[op->key()] = op;
    op->Start(last_serial_);
    // Words that came before we began.
    if (const auto* abort = early_abort_.Find(op->key()); abort && op->running()) {
      const int rank = op->rank_of(abort->first);
      if (rank >= 0) op->OnAbort(static_cast<uint32_t>(rank), abort->second);
    }
    early_abort_.EraseIf([&](const OpKey& key, const auto&) { return key == op->key(); });
    std::vector<std::pair<PeerId, ReadyFrame>> ready;
    early_ready_.EraseIf([&](const auto& key, const ReadyFrame& frame) {
      if (key.first != op->key()) return false;
      ready.emplace_back(key.second, frame);
      return true;
    });
    for (const auto& [from, frame] : ready) HeardReady(from, op->key(), frame);
    ScheduleTick();
  }

  void HeardReady(const PeerId& from, const OpKey& key, const ReadyFrame& ready) {
    const auto op = ByKey(key);
    if (!op) {
      const Error* outcome = finished_.Find(key);
      if (outcome == nullptr) return early_ready_.Put({key, from}, ready);  // it is ahead of us
      if (*outcome) TellAbort(from, key, *outcome);                         // it missed our abort
      return;
    }
    const int rank = op->rank_of(from);
    if (rank < 0) {
      return TellAbort(
          from, key,
          Error(ErrorKind::kMismatch, "start",
                ShortName(from) + " is not a member, says " + ShortName(context_.self) + ".",
                from));
    }
    const auto member = static_cast<uint32_t>(rank);
    if (op->expects(member, ready.ticket)) return op->OnReady(member, ready);
    if (op->sends_to(member)) return;  // a name used twice; it will be said again
    op->OnUnexpectedReady(member, ready);
  }

  void HeardAbort(const PeerId& from, const OpKey& key, const Error& error) {
    if (const auto op = ByKey(key)) {
      const int rank = op->rank_of(from);
      if (rank >= 0) op->OnAbort(static_cast<uint32_t>(rank), error);
    } else if (finished_.Find(key) == nullptr) {
      early_abort_.Put(key, {from, error});
    }
  }

  void TellAbort(const PeerId& to, const OpKey& key, const Error& error) {
    const std::string payload = EncodeAbort(error);
    FrameHeader header;
    header.type = FrameType::kOpAbort;
    header.round = key.round;
    header.attempt = key.attempt;
    header.tag = key.tag;
    header.length = static_cast<uint32_t>(payload.size());
    context_.transport.SendControl(to, header, payload.data());
  }

  void Settled(OpImpl& op) {
    if (op.running()) return;
    const auto it = by_key_.find(op.key());
    if (it != by_key_.end() && it->second.get() == &op) {
      finished_.Put(op.key(), op.failure());
      by_key_.erase(it);
    }
    if (op.quiet() && ops_.erase(op.serial()) > 0 && ops_.empty()) context_.transport.Quiet();
  }

  void ScheduleTick() {
    if (ticking_ || by_key_.empty()) return;
    ticking_ = true;
    context_.transport.PostAfter(OpImpl::kTickMs, [this, alive = alive_] {
      if (!*alive) return;
      ticking_ = false;
      for (const auto& op : Running()) op->Tick();
      ScheduleTick();
    });
  }

  // A copy: callbacks may finish operations. Includes those that the transport still serves.
  std::vector<std::shared_ptr<OpImpl>> Running() const {
    std::vector<std::shared_ptr<OpImpl>> all;
    for (const auto& [serial, op] : ops_) all.push_back(op);
    return all;
  }

  std::shared_ptr<OpImpl> ByKey(const OpKey& key) const {
    const auto it = by_key_.find(key);
    return it == by_key_.end() ? nullptr : it->second;
  }

  std::shared_ptr<OpImpl> ByTicket(const FrameHeader& header) const {
    const auto it = ops_.find(static_cast<uint32_t>(header.sequence >> 32));
    return it == ops_.end() ? nullptr : it->second;
  }

  // Returns when `work` has run.
  void RunOnDataThread(const std::function<void()>& work) {
    if (std::this_thread::get_id() == context_.thread) return work();
    auto done = std::make_shared<std::promise<void>>();
    context_.transport.Post([&work, done] {
      work();
      done->set_value();
    });
    done->get_future().wait();
  }

  OpContext context_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  // Data thread.
  bool closed_ = false;
  bool ticking_ = false;
  uint32_t last_serial_ = 0;
  std::map<uint32_t, std::shared_ptr<OpImpl>> ops_;  // by serial: ticket and cookie
  std::map<OpKey, std::shared_ptr<OpImpl>> by_key_;  // not over
  Recent<OpKey, Error, kMaxFinished> finished_;      // kNone: with success
  Recent<OpKey, std::pair<PeerId, Error>, kMaxEarlyWords> early_abort_;
  Recent<std::pair<OpKey, PeerId>, ReadyFrame, kMaxEarlyWords> early_ready_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(BulkTransport& transport, PeerId self,
                                       std::function<int64_t()> now_ms) {
  return std::make_unique<EngineImpl>(transport, self, std::move(now_ms));
}

}  // namespace decentral
