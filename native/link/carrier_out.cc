// Carrier: from the pairs to the wire.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "io/socket.h"
#include "link/carrier.h"

namespace decentral {
namespace {

constexpr size_t kLeastRoom = 4 << 10;  // a smaller piece is not worth a frame
constexpr size_t kRun = 4;  // frames of a lane before the next one's turn: fewer system calls
constexpr size_t kBudget = 1 << 20;  // per wake-up: other carriers want their turn

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

void Carrier::PumpSoon() {
  if (pumping_) return;
  pumping_ = true;
  loop_->Post([self = shared_from_this()] {
    self->pumping_ = false;
    self->Pump();
  });
}

void Carrier::Pump() {
  if (ended_) return;
  size_t budget = kBudget;
  while (raw_ && !blocked_) {
    if (out_begin_ == out_end_) Fill();
    if (out_begin_ == out_end_) break;
    const ssize_t n = send(raw_.get(), out_.data() + out_begin_, out_end_ - out_begin_, kNoSignal);
    if (n < 0 && WouldBlock()) {
      blocked_ = true;
    } else if (n < 0) {
      ReadRaw();  // its last words, if it is not too late for them
      RawIsGone();
    } else {
      out_begin_ += n;
      if (static_cast<size_t>(n) >= budget) {
        PumpSoon();
        break;
      }
      budget -= n;
    }
  }
  DropLanesThatAreOver();
  if (!raw_ || ended_) return;
  raw_interest_->Set(Reactor::kRead | (blocked_ ? Reactor::kWrite : 0));
  if (ending_ && !finished_writing_ && out_begin_ == out_end_ && Find(0) == nullptr) {
    finished_writing_ = true;
    shutdown(raw_.get(), SHUT_WR);
  }
}

void Carrier::Append(CarrierFrame type, uint16_t stream, uint32_t value) {
  EncodeCarrierFrame(type, stream, value, out_.data() + out_end_);
  out_end_ += kCarrierHeader;
}

void Carrier::Fill() {
  out_begin_ = out_end_ = 0;
  if (finished_writing_) return;
  for (auto& [stream, lane] : lanes_) FillSignals(stream, lane);
  const auto room = [this] { return out_end_ + kLeastRoom <= kBatch; };
  if (Lane* control = Find(0)) {
    while (room() && FillData(0, *control)) {
    }
  }
  while (room() && FillOneOfMany()) {
  }
}

void Carrier::FillSignals(uint16_t stream, Lane& lane) {
  if (lane.open_due) Append(CarrierFrame::kOpen, stream, 0);
  lane.open_due = false;
  if (lane.credit_due > 0 && reader_.Grant(stream, lane.credit_due)) {
    Append(CarrierFrame::kCredit, stream, lane.credit_due);
  }
  lane.credit_due = 0;
  if (!lane.reset_due) return;
  lane.reset_due = false;
  Append(CarrierFrame::kReset, stream, 0);
  lane.ended_here = true;
  reader_.Ended(stream);
}

// The bulk lanes in turn, a frame each.
bool Carrier::FillOneOfMany() {
  auto at = lanes_.upper_bound(last_);
  for (size_t i = 0; i < lanes_.size(); ++i, ++at) {
    if (at == lanes_.end()) at = lanes_.begin();
    if (at->first == 0 || !FillData(at->first, at->second)) continue;
    last_ = at->first;
    return true;
  }
  return false;
}

bool Carrier::FillData(uint16_t stream, Lane& lane) {
  if (!lane.readable || lane.ended_here || lane.mute || !lane.inner) return false;
  const uint32_t may_send = reader_.MaySend(stream);
  // The payloads, with room for a header before each.
  iovec parts[kRun];
  msghdr message{};
  message.msg_iov = parts;
  uint8_t* at = out_.data() + out_end_;
  size_t room = kBatch - out_end_, credit = may_send;
  while (message.msg_iovlen < kRun && room >= kLeastRoom && credit > 0) {
    const size_t size = std::min<size_t>({kCarrierData, credit, room - kCarrierHeader});
    parts[message.msg_iovlen++] = {at + kCarrierHeader, size};
    at += kCarrierHeader + size;
    room -= kCarrierHeader + size;
    credit -= size;
  }
  uint8_t peek;  // without credit it may still say that it is done
  const ssize_t n = may_send == 0 ? recv(lane.inner.get(), &peek, 1, MSG_PEEK)
                                  : recvmsg(lane.inner.get(), &message, 0);
  if (n < 0 && WouldBlock()) {
    lane.readable = false;
    return false;
  }
  if (n <= 0) {
    if (n < 0) HungUp(stream, lane);
    lane.reset_due = false;
    Append(lane.deaf ? CarrierFrame::kReset : CarrierFrame::kClose, stream, 0);
    lane.ended_here = true;
    reader_.Ended(stream);
    return true;
  }
  if (may_send == 0) return false;
  size_t left = n;
  for (size_t i = 0; left > 0; ++i) {
    const size_t size = std::min(left, parts[i].iov_len);
    Append(CarrierFrame::kData, stream, static_cast<uint32_t>(size));
    out_end_ += size;
    left -= size;
  }
  reader_.Sent(stream, static_cast<uint32_t>(n));
  return true;
}

}  // namespace decentral
