#include "link/carrier_reader.h"

#include <algorithm>
#include <cstring>

namespace decentral {

void EncodeCarrierFrame(CarrierFrame type, uint16_t stream, uint32_t value, uint8_t* into) {
  into[0] = static_cast<uint8_t>(type);
  into[1] = 0;
  into[2] = static_cast<uint8_t>(stream);
  into[3] = static_cast<uint8_t>(stream >> 8);
  for (int i = 0; i < 4; ++i) into[4 + i] = static_cast<uint8_t>(value >> (8 * i));
}

bool CarrierReader::CanOpen() const {
  return opener_ && next_ <= UINT16_MAX && accounts_.size() < kMaxCarrierStreams;
}

uint16_t CarrierReader::Open() {
  const auto stream = static_cast<uint16_t>(next_++);
  accounts_[stream];
  return stream;
}

uint32_t CarrierReader::MaySend(uint16_t stream) const {
  const auto at = accounts_.find(stream);
  return at == accounts_.end() || at->second.ended_here ? 0 : at->second.may_send;
}

uint32_t CarrierReader::MayCome(uint16_t stream) const {
  const auto at = accounts_.find(stream);
  return at == accounts_.end() || at->second.ended_there ? 0 : at->second.may_come;
}

void CarrierReader::Sent(uint16_t stream, uint32_t bytes) {
  accounts_.at(stream).may_send -= bytes;
}

bool CarrierReader::Grant(uint16_t stream, uint32_t bytes) {
  const auto at = accounts_.find(stream);
  if (at == accounts_.end() || at->second.ended_there) return false;
  at->second.may_come += bytes;
  return true;
}

void CarrierReader::Ended(uint16_t stream) {
  const auto at = accounts_.find(stream);
  if (at == accounts_.end()) return;
  at->second.ended_here = true;
  ForgetIfOver(stream);
}

void CarrierReader::ForgetIfOver(uint16_t stream) {
  const auto at = accounts_.find(stream);
  if (at->second.ended_here && at->second.ended_there) accounts_.erase(at);
}

std::string CarrierReader::Feed(const uint8_t* data, size_t size, Sink* sink) {
  while (size > 0) {
    size_t take = 0;
    if (payload_left_ > 0) {
      take = std::min<size_t>(size, payload_left_);
      payload_left_ -= static_cast<uint32_t>(take);
      sink->OnData(stream_, data, take);
    } else {
      take = std::min(size, kCarrierHeader - header_bytes_);
      std::memcpy(header_ + header_bytes_, data, take);
      header_bytes_ += take;
    }
    data += take;
    size -= take;
    if (header_bytes_ == kCarrierHeader) {
      header_bytes_ = 0;
      if (std::string wrong = Begin(sink); !wrong.empty()) return wrong;
    }
  }
  return {};
}

std::string CarrierReader::BeginOpen(uint16_t stream, Sink* sink) {
  if (opener_) return "opened a stream, which is not its part";
  if (stream != next_) return "opened a stream out of turn";
  if (accounts_.size() >= static_cast<size_t>(max_streams_)) {
    return "opened more streams than " + std::to_string(max_streams_);
  }
  ++next_;
  accounts_[stream];
  sink->OnOpen(stream);
  return {};
}

// The header is complete: is it one that may stand here?
std::string CarrierReader::Begin(Sink* sink) {
  const auto type = static_cast<CarrierFrame>(header_[0]);
  const auto stream = static_cast<uint16_t>(header_[2] | header_[3] << 8);
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= uint32_t{header_[4 + i]} << (8 * i);
  const bool known = type >= CarrierFrame::kOpen && type <= CarrierFrame::kReset;
  const bool counts = type == CarrierFrame::kData || type == CarrierFrame::kCredit;
  if (!known || header_[1] != 0 || (counts ? value == 0 : value != 0)) {
    return "sent bytes that are no frame of a carrier";
  }
  if (type == CarrierFrame::kOpen) return BeginOpen(stream, sink);
  const auto at = accounts_.find(stream);
  if (at == accounts_.end()) {
    const bool over = stream < next_;
    if (over && (type == CarrierFrame::kCredit || type == CarrierFrame::kReset)) return {};
    return "spoke of a stream that there is not";
  }
  Account& account = at->second;
  if (type == CarrierFrame::kCredit) {
    if (value > kMaxCredit - std::min(kMaxCredit, account.may_send)) {
      return "granted more than " + std::to_string(kMaxCredit) + " bytes";
    }
    account.may_send += value;
    sink->OnCredit(stream);
    return {};
  }
  if (account.ended_there) {
    if (type == CarrierFrame::kReset) {
      sink->OnClose(stream, true);
      return {};
    }
    return "went on after the end of a stream";
  }
  if (type == CarrierFrame::kData) {
    if (value > kCarrierData) return "announced a frame of " + std::to_string(value) + " bytes";
    if (value > account.may_come) return "sent more on a stream than it was granted";
    account.may_come -= value;
    stream_ = stream;
    payload_left_ = value;
    return {};
  }
  account.ended_there = true;
  sink->OnClose(stream, type == CarrierFrame::kReset);
  if (accounts_.count(stream) != 0) ForgetIfOver(stream);
  return {};
}

}  // namespace decentral
