// One bulk connection on the data thread: frames out, frames in, payloads never copied by us.
//
//   urgent (collective), by priority ─┐
//   blob slices ──────────────────────┴▶ leaving: [header|payload][header|…]… ─▶ writev / SSL_write
//   a blob slice is taken only when nothing urgent waits, one at a time: transfers yield
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "io/reactor.h"
#include "link/format.h"
#include "link/stream.h"
#include "link/upload_gate.h"
#include "wire/frame.h"

namespace decentral {

struct BulkStreamOptions {
  uint64_t link = 0;
  int index = 0;
  uint32_t max_chunk_bytes = 0;
  std::string congestion = {};  // empty: the system's
  UploadGate* gate = nullptr;   // shared by the endpoint's streams; outlives them
};

class BulkStream {
 public:
  struct Out {
    enum class Kind : uint8_t { kHandler, kBlob, kOwn };
    FrameHeader header;
    const uint8_t* payload = nullptr;  // borrowed, unless it points into `copy`
    Kind kind = Kind::kOwn;
    uint8_t priority = 0;       // a lower number goes first
    uint64_t cookie = 0;        // kHandler
    uint64_t blob = 0;          // kBlob: BlobSender's number of it
    std::vector<uint8_t> copy;  // stays where it is when this moves
    uint8_t encoded[FrameHeader::kSize] = {};
  };

  class Owner {
   public:
    virtual ~Owner() = default;
    // Where the payload shall land; nullptr: drain.
    virtual uint8_t* OnStreamHeader(BulkStream* stream, const FrameHeader& header) = 0;
    virtual void OnStreamPayload(BulkStream* stream, const FrameHeader& header) = 0;
    virtual bool NextBlobSlice(BulkStream* stream, Out* out) = 0;
    // May a slice go on leaving? Asked only where nothing waits behind it. If not: Kick later.
    virtual bool BlobMayGo() = 0;
    virtual void OnBlobBytes(size_t bytes) = 0;  // of slices that left so far
    virtual void OnStreamSent(BulkStream* stream, Out& out) = 0;
    // Last call; the owner destroys the stream after it has returned.
    virtual void OnStreamFailed(BulkStream* stream, const Error& why) = 0;
    virtual void OnStreamBytes(BulkStream* stream, uint64_t read, uint64_t written) = 0;
    // The gate is shut: Kick the stream after a while.
    virtual void OnStreamThrottled(BulkStream* stream) = 0;
  };

  BulkStream(Owner* owner, Reactor* loop, std::unique_ptr<Stream> stream,
             const BulkStreamOptions& options);
  ~BulkStream();

  uint64_t link() const { return options_.link; }
  int index() const { return options_.index; }
  bool blocked() const { return blocked_ && !throttled_; }  // something waits for the network

  void Start(bool acknowledged);  // false: the first frame must be the other end's kBulkHello
  bool acknowledged() const { return acknowledged_; }
  bool closed() const { return closed_; }  // by us, or broken
  void Hold(bool hold);                    // read no further for now
  void LimitUnsent(int bytes);
  void Push(Out out);
  void Kick();   // a blob waits, or the gate may be open again
  void Close();  // no callback after it
  // The same, but the other end shall not see it yet: it would take the link down before we have,
  // and its reason would hide ours.
  void Abandon();

  // The memory of frames for which `gives_up` is true is about to go: what has not begun is
  // dropped, what is half written (or may be, inside a TLS record) is copied. No OnStreamSent.
  template <typename F>
  void Disown(F gives_up) {
    for (size_t i = 0; i < leaving_.size(); ++i) {
      if (!gives_up(leaving_[i])) continue;
      if ((i == 0 && sent_ > 0) || stream_->tls()) {
        KeepCopy(leaving_[i]);
      } else {
        leaving_.erase(leaving_.begin() + i--);
      }
    }
    for (size_t i = 0; i < urgent_.size(); ++i) {
      if (gives_up(urgent_[i])) urgent_.erase(urgent_.begin() + i--);
    }
  }
  // The memory that the payload on its way in lands in is about to go, if it is within.
  void DrainIfInto(const uint8_t* begin, const uint8_t* end);
  bool Receiving(FrameType type) const { return in_payload_ && header_.type == type && into_; }
  void Drain() { into_ = nullptr; }

 private:
  void MarkDirty();
  void OnIo(uint32_t events);
  void Read();
  void Write();
  bool TakeHeader();   // false: the stream failed
  bool TakePayload();  // false: the stream failed or was closed
  size_t Gather(iovec* parts, size_t capacity);
  void KeepCopy(Out& out);
  void Fail(ErrorKind kind, const std::string& text);
  void UpdateInterest();
  void Meter();

  Owner* const owner_;
  Reactor* const loop_;
  std::unique_ptr<Stream> stream_;
  const BulkStreamOptions options_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  bool acknowledged_ = false, held_ = false, closed_ = false, dirty_ = false, blocked_ = false;
  bool throttled_ = false;  // blocked, but by the gate
  uint64_t read_seen_ = 0, written_seen_ = 0;

  // In: header_bytes_ < kSize, then payload until received_ == header_.length.
  uint8_t raw_header_[FrameHeader::kSize];
  size_t header_bytes_ = 0;
  bool in_payload_ = false;
  FrameHeader header_;
  uint8_t* into_ = nullptr;
  uint32_t received_ = 0;

  // Out.
  std::deque<Out> urgent_, leaving_;
  size_t sent_ = 0;  // bytes of leaving_.front() that are gone, its header included
};

}  // namespace decentral
