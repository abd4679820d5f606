// Throws bytes at what cuts a carrier's frames, as either end, with an account of its own of what
// it may deliver.
//   input: u8 bits (opener, admitted), u8 step, then frames, which arrive in pieces of step + 1
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "link/carrier_reader.h"

using namespace decentral;

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

class Account : public CarrierReader::Sink {
 public:
  explicit Account(CarrierReader* reader) : reader_(reader) { may_come_[0] = kFirstWindow; }

  void Opened(uint16_t stream) { Require(may_come_.emplace(stream, kFirstWindow).second); }
  void OnOpen(uint16_t stream) override {
    Opened(stream);
    Require(may_come_.size() <= UINT16_MAX + size_t{1});
    // Whoever takes it grants more, and has little to say.
    if (reader_->Grant(stream, 1000)) may_come_[stream] += 1000;
    if (stream % 2 == 0) reader_->Ended(stream);
  }
  void OnData(uint16_t stream, const uint8_t* data, size_t size) override {
    Require(size > 0 && may_come_.count(stream) == 1 && may_come_[stream] >= size);
    may_come_[stream] -= static_cast<uint32_t>(size);
    seen_ = data[0] ^ data[size - 1];  // they are there to be read
    delivered_ += size;
    if (size % 3 == 0 && reader_->Grant(stream, 100)) may_come_[stream] += 100;
  }
  void OnCredit(uint16_t stream) override { Require(reader_->MaySend(stream) <= kMaxCredit); }
  void OnClose(uint16_t stream, bool reset) override {
    Require(may_come_.count(stream) == 1 && reader_->MayCome(stream) == 0);
    if (reset) reader_->Ended(stream);
  }
  size_t delivered() const { return delivered_; }

 private:
  CarrierReader* const reader_;
  std::map<uint16_t, uint32_t> may_come_;
  size_t delivered_ = 0;
  volatile uint8_t seen_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  CarrierReader reader((data[0] & 1) != 0);
  if (data[0] & 2) reader.LimitStreams(kMaxCarrierStreams);
  Account account(&reader);
  while (reader.CanOpen()) account.Opened(reader.Open());
  const size_t step = 1 + data[1];
  for (size_t at = 2; at < size; at += step) {
    if (!reader.Feed(data + at, std::min(step, size - at), &account).empty()) break;
  }
  Require(account.delivered() <= size);
  return 0;
}
