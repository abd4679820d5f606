// The data thread's work: bulk streams, the collective's frames, and blobs.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/reactor.h"
#include "link/blob.h"
#include "link/blob_yield.h"
#include "link/bulk_stream.h"
#include "link/bulk_transport.h"
#include "link/endpoint.h"
#include "link/event_queue.h"
#include "link/rate_meter.h"
#include "link/stats.h"
#include "link/stream_tuner.h"
#include "link/upload_gate.h"

namespace decentral {

// What the data thread asks of the control thread. Callable from any thread.
class LinkPort {
 public:
  virtual ~LinkPort() = default;
  virtual void WantBulk(LinkId link) = 0;
  virtual void GrowBulk(LinkId link, int streams) = 0;  // until there are so many in all
  virtual void BulkUp(LinkId link) = 0;
  // `opening`: one of those that are being added, so that the link can do without it.
  virtual void StreamFailed(LinkId link, const Error& why, bool opening) = 0;
  virtual void SendControl(LinkId link, const FrameHeader& header, std::string payload) = 0;
};

class DataPlane : public BulkTransport, private BulkStream::Owner {
 public:
  DataPlane(const EndpointOptions& options, EventQueue* events, EndpointMeters* meters,
            Stamp* stamp);
  ~DataPlane() override;
  void Start(LinkPort* port);
  void Stop();  // gives all borrowed memory back, then ends the loop

  // From the control thread; handled here in order.
  void LinkAdmitted(LinkId link, const PeerId& peer, bool dialer,
                    std::shared_ptr<LinkShared> shared);
  void LinkDown(LinkId link, const Error& why);
  void AddStream(LinkId link, int index, int count, std::unique_ptr<Stream> stream);
  void BulkFailed(LinkId link, const Error& why);
  void ControlFrame(LinkId link, const FrameHeader& header, std::string payload);

  // Any thread.
  void SetHandler(BulkHandler* handler);
  void SendBlob(LinkId link, uint64_t key, const uint8_t* data, uint64_t size,
                std::function<void()> done);
  void PostBlob(LinkId link, uint64_t key, uint8_t* into, uint64_t size);
  void CancelBlob(uint64_t key);
  // What this machine's network has carried at its best lately; 0: not known.
  NetworkRates Rates() const { return {up_estimate_.load(), down_estimate_.load()}; }
  void EndRatePeriod();

  // BulkTransport.
  int Streams(const PeerId& peer) const override;
  void WantStreams(const PeerId& peer) override;
  void Send(const PeerId& to, int stream, const FrameHeader& header, const void* payload,
            uint64_t cookie, int priority) override;
  void SendControl(const PeerId& to, const FrameHeader& header, const void* payload) override;
  void Post(std::function<void()> work) override;
  void Quiet() override;
  void PostAfter(int delay_ms, std::function<void()> work) override;

 private:
  struct Link {
    explicit Link(int max_streams) : tuner(max_streams) {}
    LinkId id = 0;
    PeerId peer{};
    bool dialer = false;
    bool up = false;                                   // streams are open
    bool asked = false;                                // the first ones are being opened
    std::vector<std::unique_ptr<BulkStream>> streams;  // open
    std::vector<std::unique_ptr<BulkStream>> opening;  // to be added when all of them are
    StreamTuner tuner;
    std::shared_ptr<LinkShared> shared;
    BlobSender blobs;
    bool lean =
        false;  // blobs alone leave: the kernel holds little that a collective must wait for
  };

  // BulkStream::Owner.
  uint8_t* OnStreamHeader(BulkStream* stream, const FrameHeader& header) override;
  void OnStreamPayload(BulkStream* stream, const FrameHeader& header) override;
  bool NextBlobSlice(BulkStream* stream, BulkStream::Out* out) override;
  bool BlobMayGo() override;
  void OnBlobBytes(size_t bytes) override { yield_.Went(bytes); }
  void OnStreamSent(BulkStream* stream, BulkStream::Out& out) override;
  void OnStreamFailed(BulkStream* stream, const Error& why) override;
  void OnStreamBytes(BulkStream* stream, uint64_t read, uint64_t written) override;
  void OnStreamThrottled(BulkStream* stream) override;

  Link* Find(LinkId link);
  Link* Current(const PeerId& peer);
  const Link* Current(const PeerId& peer) const;
  void Ask(Link& link);
  void KickAll();
  void LimitUnsent(Link& link, bool lean);
  void KickWhenQuiet(int64_t now_ms);
  void MaybeUp(Link& link);
  void CloseAll(std::vector<std::unique_ptr<BulkStream>>* streams);
  void Watch();
  void Sample();
  void TakeDown(Link& link, const Error& why, bool link_gone);
  void BlobFailed(LinkId link, uint64_t key, const Error& why);
  void Stamped(FrameHeader* header) const;

  const EndpointOptions options_;
  EventQueue* const events_;
  EndpointMeters* const totals_;
  Stamp* const stamp_;
  LinkPort* port_ = nullptr;
  Reactor loop_;

  // Data thread only.
  BulkHandler* handler_ = nullptr;
  std::map<LinkId, Link> links_;  // admitted, in the order of their numbers
  BlobReceiver receiver_;
  uint64_t next_blob_ = 1;
  UploadGate gate_;
  bool throttled_ = false;   // a kick of all streams is due when the gate opens
  LinkId kicked_first_ = 0;  // then, so that each link has its turn at the gate
  BlobYield yield_;
  bool yielding_ = false;  // a kick of all streams is due when collectives are quiet
  // While bytes move, and for a moment after.
  bool watching_ = false;
  uint64_t watched_bytes_ = 0, bulk_sent_ = 0, bulk_received_ = 0;
  RateMeter up_meter_, down_meter_;
  std::vector<std::unique_ptr<BulkStream>> graveyard_;  // closed in the middle of their own work

  std::atomic<double> up_estimate_{0}, down_estimate_{0};  // bytes per second, for any thread
};

}  // namespace decentral
