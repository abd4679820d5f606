// The narrow seam between links and collectives: who moves bytes, and who knows what they mean.
// Real: link/data_plane.h. Fake, for tests: tests/fake_bulk_transport.h.
//
// Everything here happens on one thread, the data thread: no locks on either side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "core/types.h"
#include "wire/frame.h"

namespace decentral {

// Implemented by whoever uses bulk streams (collective/engine, link/blob).
class BulkHandler {
 public:
  virtual ~BulkHandler() = default;

  // A header arrived (length already within limits). Where shall the payload land? The memory
  // must stay valid until OnPayload or OnBulkDown. nullptr: drain and forget.
  virtual uint8_t* OnHeader(const PeerId& from, int stream, const FrameHeader&) = 0;
  // The whole payload has landed where OnHeader said.
  virtual void OnPayload(const PeerId& from, int stream, const FrameHeader&) = 0;
  // A frame given to Send is in the kernel (or in TLS): its payload's memory is free again.
  virtual void OnSent(const PeerId& to, int stream, uint64_t cookie) = 0;
  // A control frame (kOpReady, kOpAbort) arrived.
  virtual void OnControl(const PeerId& from, const FrameHeader&, const uint8_t* payload) = 0;
  // The bulk streams to `peer` are open; `streams` is their number, the same on both ends. Comes
  // again with a larger number when further ones have been opened.
  virtual void OnBulkUp(const PeerId& peer, int streams) = 0;
  // The link to `peer` is gone, with all its streams. Nothing more comes from it.
  virtual void OnBulkDown(const PeerId& peer, const Error& why) = 0;
};

class BulkTransport {
 public:
  virtual ~BulkTransport() = default;

  // Number of open bulk streams to the peer; 0: none (yet).
  virtual int Streams(const PeerId&) const = 0;
  // Ask for bulk streams; OnBulkUp or OnBulkDown answers, at once if they are there already.
  virtual void WantStreams(const PeerId&) = 0;
  // Queue a frame. The payload is borrowed until OnSent(to, stream, cookie) or OnBulkDown.
  // Frames of one priority arrive in order on one stream, and those of a lower number go first;
  // streams are independent of each other.
  virtual void Send(const PeerId& to, int stream, const FrameHeader&, const void* payload,
                    uint64_t cookie, int priority) = 0;
  // A small frame over the control stream (at most 64 KiB, copied).
  virtual void SendControl(const PeerId& to, const FrameHeader&, const void* payload) = 0;
  // The last operation here is over: what gives way to operations need not wait for more frames.
  virtual void Quiet() = 0;
  // Run on the data thread, soon / after a delay. The only calls allowed from other threads.
  virtual void Post(std::function<void()>) = 0;
  virtual void PostAfter(int delay_ms, std::function<void()>) = 0;
};

}  // namespace decentral
