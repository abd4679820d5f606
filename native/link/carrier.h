// Many byte streams over one raw connection, for where a second connection is dear: punched through
// NATs, or relayed.
//
//   control stream ── socketpair ──┐ lane 0, always first                    ┌── lane 0 ── …
//   bulk stream 0  ── socketpair ──┤ lane 1 ┐ in turn       one TCP          ├── lane 1
//   bulk stream 1  ── socketpair ──┘ lane 2 ┘             ═ connection ═     └── lane 2
//
// Whoever holds the far end of a pair sees an ordinary socket and does TLS on it; a carrier sees
// ciphertext. The TLS client's end is the opener: it says the preamble and opens further lanes.
//
// Bounded: what has come and cannot be delivered yet is within the window that this end granted,
// what is to leave waits in its pair. Before admission the other end may send kFirstWindow on lane
// 0 and open no other. When whoever holds lane 0 hangs up, the carrier is over.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/fd.h"
#include "io/interest.h"
#include "io/reactor.h"
#include "link/carrier_reader.h"

namespace decentral {

class Carrier : public std::enable_shared_from_this<Carrier>, private CarrierReader::Sink {
 public:
  static constexpr int kForgetMs = 305'000;

  struct Calls {
    std::function<void(Fd)> on_stream;  // acceptor: the far end of a lane that was opened
    std::function<void()> on_broken;    // the other end broke the format or a limit
    std::function<void()> on_end;       // the last call
  };

  // `raw` is connected and non-blocking. `control`: this end of lane 0's pair.
  // `forget_ms`: how long the kernel remembers a connection's least RTT (tcp_min_rtt_wlen).
  Carrier(Reactor* loop, Fd raw, bool opener, Fd control, Calls calls, int forget_ms = kForgetMs);
  ~Carrier() override;

  // Any thread.
  Fd Open();     // opener: the far end of a new lane; empty where the system has no descriptor left
  void Admit();  // the other end is one of us: more lanes, larger windows
  void Abort();  // over at once, and the connection's ports are free

  // The loop's thread.
  void Start();
  void Stop();  // sends what it can at once, then ends

 private:
  struct Lane {
    Fd inner;  // our end of the pair
    std::unique_ptr<Interest> interest;
    uint32_t window = kBulkWindow;  // once the other end is admitted
    bool grown = false;             // it has been told so
    // Out: from the pair to the wire.
    bool readable = true;     // the pair may hold bytes
    bool ended_here = false;  // kClose or kReset was said
    bool mute = false;        // nobody over there listens: say no more
    bool open_due = false, reset_due = false;
    uint32_t credit_due = 0;
    // In: from the wire to the pair.
    bool ended_there = false;
    bool deaf = false;    // whoever held the far end has hung up
    std::string pending;  // what has come and waits: [pending_begin, size)
    size_t pending_begin = 0;
    uint32_t delivered = 0;  // since the last credit
    bool waiting() const { return pending_begin < pending.size(); }
  };

  static constexpr size_t kBatch = 128 << 10;  // frames written at a time

  // carrier.cc: lanes, what comes in, the end. CarrierReader::Sink:
  void OnOpen(uint16_t stream) override;
  void OnData(uint16_t stream, const uint8_t* data, size_t size) override;
  void OnCredit(uint16_t stream) override;
  void OnClose(uint16_t stream, bool reset) override;

  Lane& AddLane(uint16_t stream, Fd inner);
  Lane* Find(uint16_t stream);
  void Grow(Lane& lane);
  void OnLane(uint16_t stream, uint32_t events, bool hung_up);
  void HungUp(uint16_t stream, Lane& lane);
  void Deliver(uint16_t stream, Lane& lane);
  void Delivered(Lane& lane, size_t bytes);
  void DeliverGathered();
  bool IsOver(const Lane& lane) const;
  void DropLanesThatAreOver();
  void UpdateInterest(Lane& lane);

  void ReadRaw();
  void AvoidBbr();

  // carrier_out.cc
  void Pump();
  void PumpSoon();
  void Fill();
  void FillSignals(uint16_t stream, Lane& lane);
  bool FillData(uint16_t stream, Lane& lane);  // false: it has nothing to send now
  bool FillOneOfMany();
  void Append(CarrierFrame type, uint16_t stream, uint32_t value);

  // carrier.cc
  void BeginEnd();   // lane 0 is over
  void RawIsGone();  // what has come is still delivered
  void Broken();
  void End();

  Reactor* const loop_;
  Fd raw_;
  const bool opener_;
  const Calls calls_;
  const int forget_ms_;
  std::atomic<bool> admitted_{false};

  std::unique_ptr<Interest> raw_interest_;
  CarrierReader reader_;
  std::map<uint16_t, Lane> lanes_;
  uint16_t last_ = 0;     // the bulk lane that was served last
  bool pumping_ = false;  // a Pump is due
  bool blocked_ = false;  // the connection takes no more
  bool ending_ = false, finished_writing_ = false, ended_ = false, overfull_ = false;
  uint64_t unadmitted_bytes_ = 0;
  // Payloads of one lane that came one after the other: one system call for all of them.
  std::vector<iovec> gathered_;
  uint16_t gathered_for_ = 0;
  std::vector<uint8_t> out_;  // frames on their way: [out_begin_, out_end_)
  size_t out_begin_ = 0, out_end_ = 0;
};

}  // namespace decentral
