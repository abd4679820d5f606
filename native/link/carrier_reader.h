// The frames of a carrier, and the account of its streams: what may come, what may be sent, which
// ends are over. Pure: bytes in, calls out.
//
//   | type 1 | 0 1 | stream 2 | value 4 |      little-endian; value: see CarrierFrame
//
// Stream 0 is there from the start. A direction ends with kClose or kReset, said once; a stream
// whose two directions are over is forgotten, and what is still under way for it (kCredit, kReset)
// is ignored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "link/format.h"

namespace decentral {

enum class CarrierFrame : uint8_t {
  kOpen = 1,    // the opener's: the next stream
  kData = 2,    // value: bytes of payload, which follow
  kCredit = 3,  // value: so many bytes more may come
  kClose = 4,   // all has been said in this direction
  kReset = 5,   // the same, and nobody listens here any more
};

inline constexpr char kCarrierPreamble[] =
    "\x02"
    "DCC1\0\0";  // with its own 0: 8 bytes
inline constexpr size_t kCarrierPreambleBytes = sizeof kCarrierPreamble;
inline constexpr size_t kCarrierHeader = 8;
inline constexpr uint32_t kCarrierData = 16 << 10;     // a kData's most
inline constexpr uint32_t kFirstWindow = 64 << 10;     // of a stream, without any kCredit
inline constexpr uint32_t kControlWindow = 256 << 10;  // of stream 0 in the end
inline constexpr uint32_t kBulkWindow = 4 << 20;       // of the others
inline constexpr uint32_t kMaxCredit = 64 << 20;       // what one may be allowed to send
inline constexpr int kMaxCarrierStreams = 1 + kMaxBulkStreams;
static_assert(kCarrierPreambleBytes == 8);

void EncodeCarrierFrame(CarrierFrame type, uint16_t stream, uint32_t value, uint8_t* into);

class CarrierReader {
 public:
  class Sink {
   public:
    virtual ~Sink() = default;
    virtual void OnOpen(uint16_t stream) = 0;
    virtual void OnData(uint16_t stream, const uint8_t* data, size_t size) = 0;
    virtual void OnCredit(uint16_t stream) = 0;  // it may be more than nothing now
    virtual void OnClose(uint16_t stream, bool reset) = 0;
  };

  explicit CarrierReader(bool opener) : opener_(opener) { accounts_[0]; }

  // Empty: all is well. Otherwise what broke the format or a limit, for a sentence; feed no more.
  std::string Feed(const uint8_t* data, size_t size, Sink* sink);
  void LimitStreams(int most) { max_streams_ = most; }

  // What this end does.
  bool CanOpen() const;
  uint16_t Open();                              // the number of the new stream
  uint32_t MaySend(uint16_t stream) const;      // bytes
  void Sent(uint16_t stream, uint32_t bytes);   // at most MaySend
  bool Grant(uint16_t stream, uint32_t bytes);  // false: nothing more will come, say nothing
  void Ended(uint16_t stream);                  // kClose or kReset was said
  uint32_t MayCome(uint16_t stream) const;

 private:
  struct Account {
    uint32_t may_send = kFirstWindow, may_come = kFirstWindow;
    bool ended_here = false, ended_there = false;
  };

  std::string Begin(Sink* sink);
  std::string BeginOpen(uint16_t stream, Sink* sink);
  void ForgetIfOver(uint16_t stream);

  const bool opener_;
  int max_streams_ = 1;
  std::map<uint16_t, Account> accounts_;
  uint32_t next_ = 1;  // the stream that is opened next

  uint8_t header_[kCarrierHeader];
  size_t header_bytes_ = 0;
  uint16_t stream_ = 0;        // that the payload belongs to
  uint32_t payload_left_ = 0;  // of a kData
};

}  // namespace decentral
