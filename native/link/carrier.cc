#include "link/carrier.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/socket.h"

namespace decentral {
namespace {

// Beyond the batch that is being written, a control frame may have to wait for this much.
constexpr int kUnsentBytes = 128 << 10;
constexpr size_t kSignals = 2 * kMaxCarrierStreams * 3 * kCarrierHeader;  // of a batch, at most
constexpr size_t kGatherMost = 16;
constexpr size_t kReadBytes = 256 << 10;
constexpr size_t kBudget = 1 << 20;  // per wake-up: other carriers want their turn
constexpr int kGraceMs = 2000;       // for the last words
constexpr uint64_t kUnadmittedBytes = 2 * kFirstWindow;  // frames and all

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// Frames of all carriers of a thread are cut from here.
uint8_t* ReadBuffer() {
  static thread_local uint8_t buffer[kReadBytes];
  return buffer;
}

}  // namespace

Carrier::Carrier(Reactor* loop, Fd raw, bool opener, Fd control, Calls calls, int forget_ms)
    : loop_(loop),
      raw_(std::move(raw)),
      opener_(opener),
      calls_(std::move(calls)),
      forget_ms_(forget_ms),
      reader_(opener),
      out_(kBatch + kSignals) {
  LimitUnsent(raw_.get(), kUnsentBytes);
  Lane& lane = lanes_[0];
  lane.inner = std::move(control);
  lane.window = kControlWindow;
  if (opener_) {
    std::memcpy(out_.data(), kCarrierPreamble, kCarrierPreambleBytes);
    out_end_ = kCarrierPreambleBytes;
  }
}

Carrier::~Carrier() = default;

// Of two SYNs that cross, the kernel takes the time from its second one for an RTT: any fraction of
// the real one. BBR never has more on the way than twice what fits into its least RTT, for as long
// as the kernel remembers that.
void Carrier::AvoidBbr() {
  if (Congestion(raw_.get()) != "bbr") return;
  TuneBulkSocket(raw_.get(), "reno");   // everybody may have this,
  TuneBulkSocket(raw_.get(), "cubic");  // and many this
  loop_->After(forget_ms_, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self && self->raw_) TuneBulkSocket(self->raw_.get(), "bbr");
  });
}

void Carrier::Start() {
  AvoidBbr();
  raw_interest_ = std::make_unique<Interest>(loop_, raw_.get(), [this](uint32_t events, bool) {
    const auto keep = shared_from_this();
    if (events & Reactor::kWrite) blocked_ = false;
    ReadRaw();
    Pump();
  });
  Fd inner = std::move(lanes_[0].inner);
  AddLane(0, std::move(inner));
  Pump();
}

void Carrier::Stop() {
  const auto keep = shared_from_this();
  for (auto& [stream, lane] : lanes_) lane.readable = true;
  Pump();
  End();
}

Fd Carrier::Open() {
  auto [far, inner] = LocalPair();
  auto holder = std::make_shared<Fd>(std::move(inner));
  loop_->Post([self = shared_from_this(), holder] {
    // Too late, or too many: whoever holds the far end sees it closed.
    if (self->ended_ || self->ending_ || !self->raw_ || !*holder || !self->reader_.CanOpen())
      return;
    self->AddLane(self->reader_.Open(), std::move(*holder)).open_due = true;
    self->Pump();
  });
  return std::move(far);
}

void Carrier::Abort() {
  loop_->Post([self = shared_from_this()] {
    if (self->raw_) ResetOnClose(self->raw_.get());
    self->End();
  });
}

void Carrier::Admit() {
  if (admitted_.exchange(true)) return;
  loop_->Post([self = shared_from_this()] {
    for (auto& [stream, lane] : self->lanes_) self->Grow(lane);
    self->Pump();
  });
}

// ---- lanes

Carrier::Lane& Carrier::AddLane(uint16_t stream, Fd inner) {
  Lane& lane = lanes_[stream];
  lane.inner = std::move(inner);
  lane.interest = std::make_unique<Interest>(loop_, lane.inner.get(),
                                             [this, stream](uint32_t events, bool hung_up) {
                                               const auto keep = shared_from_this();
                                               OnLane(stream, events, hung_up);
                                             });
  if (admitted_) Grow(lane);
  return lane;
}

Carrier::Lane* Carrier::Find(uint16_t stream) {
  const auto at = lanes_.find(stream);
  return at == lanes_.end() ? nullptr : &at->second;
}

void Carrier::Grow(Lane& lane) {
  if (lane.grown) return;
  lane.grown = true;
  lane.credit_due += lane.window - kFirstWindow;
}

void Carrier::OnLane(uint16_t stream, uint32_t events, bool hung_up) {
  Lane* lane = Find(stream);
  if (lane == nullptr) return;
  if (events & Reactor::kRead) lane->readable = true;
  if (events & Reactor::kWrite) Deliver(stream, *lane);
  if (hung_up) HungUp(stream, *lane);
  Pump();
}

// Whoever held the far end reads no more; what it wrote before still leaves.
void Carrier::HungUp(uint16_t stream, Lane& lane) {
  if (lane.deaf) return;
  lane.deaf = true;
  lane.pending = std::string();
  lane.pending_begin = 0;
  lane.interest->Park();
  lane.readable = true;
  if (lane.ended_here && !lane.ended_there) lane.reset_due = true;
  if (stream == 0) BeginEnd();
}

bool Carrier::IsOver(const Lane& lane) const {
  if (!raw_) return lane.deaf || !lane.waiting();
  if (!lane.ended_here || lane.reset_due) return false;
  return lane.deaf || (lane.ended_there && !lane.waiting());
}

void Carrier::DropLanesThatAreOver() {
  for (auto at = lanes_.begin(); at != lanes_.end();) {
    if (!IsOver(at->second)) {
      UpdateInterest(at->second);
      ++at;
      continue;
    }
    const bool control = at->first == 0;
    at = lanes_.erase(at);
    if (control) BeginEnd();
  }
  if (!raw_ && lanes_.empty()) End();
}

void Carrier::UpdateInterest(Lane& lane) {
  if (!lane.interest) return;
  const bool read = !lane.readable && !lane.ended_here && !lane.mute;
  lane.interest->Set((read ? Reactor::kRead : 0) | (lane.waiting() ? Reactor::kWrite : 0));
}

// ---- in: from the wire to the pairs

void Carrier::ReadRaw() {
  uint8_t* buffer = ReadBuffer();
  size_t budget = kBudget;
  while (raw_) {
    const ssize_t n = recv(raw_.get(), buffer, kReadBytes, 0);
    if (n < 0 && WouldBlock()) return;
    if (n <= 0) return RawIsGone();
    if (!admitted_ && (unadmitted_bytes_ += n) > kUnadmittedBytes) return Broken();
    reader_.LimitStreams(admitted_ ? kMaxCarrierStreams : 1);
    const std::string wrong = reader_.Feed(buffer, n, this);
    DeliverGathered();  // before the buffer is used again
    if (!wrong.empty() || overfull_) return Broken();
    if (static_cast<size_t>(n) >= budget) return;
    budget -= n;
  }
}

void Carrier::OnOpen(uint16_t stream) {
  // Lanes that are forgotten on the wire may still have something to deliver.
  if (lanes_.size() >= 2 * kMaxCarrierStreams) {
    overfull_ = true;
    return;
  }
  auto [far, inner] = LocalPair();
  if (!far) {  // the system has no descriptor left: this one stream cannot be
    lanes_[stream].deaf = true;
    lanes_[stream].reset_due = true;
    return;
  }
  AddLane(stream, std::move(inner));
  calls_.on_stream(std::move(far));
}

void Carrier::OnData(uint16_t stream, const uint8_t* data, size_t size) {
  if (stream != gathered_for_ || gathered_.size() == kGatherMost) DeliverGathered();
  gathered_for_ = stream;
  gathered_.push_back({const_cast<uint8_t*>(data), size});
}

void Carrier::DeliverGathered() {
  Lane* lane = gathered_.empty() ? nullptr : Find(gathered_for_);
  if (lane != nullptr && !lane->deaf) {  // else our kReset is on its way
    size_t sent = 0;
    if (!lane->waiting()) {
      msghdr message{};
      message.msg_iov = gathered_.data();
      message.msg_iovlen = gathered_.size();
      const ssize_t n = sendmsg(lane->inner.get(), &message, kNoSignal);
      if (n > 0) Delivered(*lane, sent = n);
      if (n < 0 && !WouldBlock()) HungUp(gathered_for_, *lane);
    }
    for (const iovec& part : gathered_) {
      const size_t skip = std::min(sent, part.iov_len);
      sent -= skip;
      if (lane->deaf) break;
      lane->pending.append(static_cast<const char*>(part.iov_base) + skip, part.iov_len - skip);
    }
  }
  gathered_.clear();
}

void Carrier::Deliver(uint16_t stream, Lane& lane) {
  while (lane.waiting()) {
    const ssize_t n = send(lane.inner.get(), lane.pending.data() + lane.pending_begin,
                           lane.pending.size() - lane.pending_begin, kNoSignal);
    if (n < 0 && !WouldBlock()) return HungUp(stream, lane);
    if (n < 0) break;
    lane.pending_begin += n;
    Delivered(lane, n);
  }
  if (!lane.waiting()) {
    lane.pending = std::string();
    lane.pending_begin = 0;
    if (lane.ended_there) shutdown(lane.inner.get(), SHUT_WR);
  } else if (lane.pending_begin > kBulkWindow / 4) {
    lane.pending.erase(0, lane.pending_begin);
    lane.pending_begin = 0;
  }
}

// Before admission nothing is given back: kFirstWindow is all there is.
void Carrier::Delivered(Lane& lane, size_t bytes) {
  lane.delivered += static_cast<uint32_t>(bytes);
  if (!lane.grown || lane.delivered < lane.window / 4) return;
  lane.credit_due += lane.delivered;
  lane.delivered = 0;
}

void Carrier::OnCredit(uint16_t) {}  // the Pump that follows looks

void Carrier::OnClose(uint16_t stream, bool reset) {
  DeliverGathered();
  Lane* lane = Find(stream);
  if (lane == nullptr) return;
  lane->ended_there = true;
  if (reset && !lane->ended_here) lane->mute = lane->reset_due = true;
  if (!lane->waiting() && !lane->deaf) shutdown(lane->inner.get(), SHUT_WR);
}

// ---- the end

void Carrier::BeginEnd() {
  if (ending_ || ended_) return;
  ending_ = true;
  // A stranger's carrier costs no more time than a stranger's connection.
  loop_->After(admitted_ ? kGraceMs : 0, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->End();
  });
}

void Carrier::Broken() {
  calls_.on_broken();
  RawIsGone();
}

void Carrier::RawIsGone() {
  if (!raw_) return;
  raw_interest_.reset();
  raw_.reset();
  for (auto& [stream, lane] : lanes_) {
    lane.ended_here = lane.ended_there = lane.mute = true;
    lane.reset_due = lane.open_due = false;
  }
  DropLanesThatAreOver();
}

void Carrier::End() {
  if (ended_) return;
  ended_ = true;
  raw_interest_.reset();
  raw_.reset();
  lanes_.clear();
  calls_.on_end();
}

}  // namespace decentral
