#include "link/bulk_stream.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "io/socket.h"

namespace decentral {
namespace {

constexpr size_t kReadBudget = 2 << 20;  // per wake-up: the other streams want their turn
constexpr size_t kWriteBudget = 2 << 20;
constexpr size_t kFramesAhead = 8;  // per writev
// What may no longer be overtaken by a frame of higher priority.
constexpr size_t kBytesAhead = 512 << 10;
// Follows "peer 1a2b3c4d ".
constexpr char kClosedText[] = "closed a bulk stream: it died or left";
constexpr size_t kDrainBytes = 64 << 10;

// Payloads that nobody wants end here; written by one thread per endpoint, read by none.
uint8_t* Scratch() {
  static thread_local uint8_t scratch[kDrainBytes];
  return scratch;
}

}  // namespace

BulkStream::BulkStream(Owner* owner, Reactor* loop, std::unique_ptr<Stream> stream,
                       const BulkStreamOptions& options)
    : owner_(owner), loop_(loop), stream_(std::move(stream)), options_(options) {
  stream_->SetBulk(options_.gate);
  TuneBulkSocket(stream_->fd(), options_.congestion);
  read_seen_ = stream_->bytes_read();
  written_seen_ = stream_->bytes_written();
}

BulkStream::~BulkStream() { Close(); }

void BulkStream::Start(bool acknowledged) {
  acknowledged_ = acknowledged;
  loop_->Add(stream_->fd(), Reactor::kRead, [this](uint32_t events) { OnIo(events); });
  // TLS may hold bytes that came with the handshake, and some of ours may still be unsent.
  loop_->Post([this, alive = alive_] {
    if (*alive) OnIo(Reactor::kRead | Reactor::kWrite);
  });
}

void BulkStream::Abandon() {
  if (closed_) return;
  closed_ = true;
  *alive_ = false;
  loop_->Remove(stream_->fd());
}

void BulkStream::Close() {
  if (closed_) return;
  Abandon();
  stream_->FinishWriting();
}

void BulkStream::Hold(bool hold) {
  if (held_ == hold || closed_) return;
  held_ = hold;
  UpdateInterest();
  if (!hold) {
    loop_->Post([this, alive = alive_] {
      if (*alive) Read();
    });
  }
}

void BulkStream::LimitUnsent(int bytes) { decentral::LimitUnsent(stream_->fd(), bytes); }

void BulkStream::Push(Out out) {
  auto at = urgent_.end();
  while (at != urgent_.begin() && std::prev(at)->priority > out.priority) --at;
  urgent_.insert(at, std::move(out));
  MarkDirty();
}

void BulkStream::Kick() {
  if (throttled_) blocked_ = throttled_ = false;
  MarkDirty();
}

// Writing waits for the end of this turn of the loop: frames that are given together leave
// together, and OnSent never runs inside Send.
void BulkStream::MarkDirty() {
  if (dirty_ || blocked_ || closed_) return;
  dirty_ = true;
  loop_->Post([this, alive = alive_] {
    if (!*alive) return;
    dirty_ = false;
    Write();
  });
}

void BulkStream::UpdateInterest() {
  if (closed_) return;
  loop_->Modify(stream_->fd(),
                (held_ ? 0 : Reactor::kRead) | (blocked_ && !throttled_ ? Reactor::kWrite : 0));
}

void BulkStream::OnIo(uint32_t events) {
  const auto alive = alive_;
  if (events & Reactor::kRead) Read();
  if (*alive && (events & Reactor::kWrite)) Write();
}

void BulkStream::Meter() {
  const uint64_t read = stream_->bytes_read(), written = stream_->bytes_written();
  if (read != read_seen_ || written != written_seen_) {
    owner_->OnStreamBytes(this, read - read_seen_, written - written_seen_);
  }
  read_seen_ = read;
  written_seen_ = written;
}

void BulkStream::Fail(ErrorKind kind, const std::string& text) {
  Meter();
  Abandon();
  owner_->OnStreamFailed(this, Error(kind, "bulk", text));
}

// ---- in

bool BulkStream::TakeHeader() {
  header_bytes_ = 0;
  const auto header = DecodeHeader(raw_header_, options_.max_chunk_bytes);
  const FrameType type = header ? header->type : FrameType::kMessage;
  const bool fits = type == FrameType::kChunk ||
                    (type == FrameType::kBlob && header->length <= kBlobSlice) ||
                    (type == FrameType::kBulkHello && header->length == 0);
  if (!fits || (type == FrameType::kBulkHello) == acknowledged_) {
    Fail(ErrorKind::kProtocol, "sent bytes that are no bulk frame, or one over the limit of " +
                                   std::to_string(options_.max_chunk_bytes) + " bytes");
    return false;
  }
  header_ = *header;
  received_ = 0;
  in_payload_ = true;
  const auto alive = alive_;
  into_ = type == FrameType::kBulkHello ? nullptr : owner_->OnStreamHeader(this, header_);
  if (!*alive) return false;
  return header_.length > 0 || TakePayload();
}

bool BulkStream::TakePayload() {
  in_payload_ = false;
  const auto alive = alive_;
  if (header_.type == FrameType::kBulkHello) acknowledged_ = true;
  // An empty blob slice has nowhere to land and counts all the same.
  if (into_ != nullptr || header_.length == 0) owner_->OnStreamPayload(this, header_);
  return *alive;
}

void BulkStream::Read() {
  size_t budget = kReadBudget;
  while (!held_) {
    IoResult got;
    if (!in_payload_) {
      got = stream_->Read(raw_header_ + header_bytes_, FrameHeader::kSize - header_bytes_);
    } else if (into_ != nullptr) {
      // The next header often comes with the payload's end: one system call less.
      got = stream_->ReadTwo(into_ + received_, header_.length - received_, raw_header_,
                             FrameHeader::kSize);
    } else {
      got = stream_->Read(Scratch(), std::min<size_t>(kDrainBytes, header_.length - received_));
    }
    if (got.status == IoStatus::kAgain) break;
    if (got.status != IoStatus::kOk) {
      if (got.status == IoStatus::kEof) {
        return Fail(ErrorKind::kClosed, kClosedText);
      }
      return Fail(ErrorKind::kProtocol, "broke TLS on a bulk stream: " + stream_->reason());
    }
    size_t bytes = got.bytes;
    if (in_payload_) {
      const size_t taken = std::min<size_t>(bytes, header_.length - received_);
      received_ += taken;
      bytes -= taken;
      if (received_ == header_.length && !TakePayload()) return;
    }
    if (!in_payload_) {
      header_bytes_ += bytes;
      if (header_bytes_ == FrameHeader::kSize && !TakeHeader()) return;
    }
    if (got.bytes >= budget) {
      Meter();
      if (stream_->buffered()) {
        loop_->Post([this, alive = alive_] {
          if (*alive) Read();
        });
      }
      return;
    }
    budget -= got.bytes;
  }
  Meter();
}

void BulkStream::DrainIfInto(const uint8_t* begin, const uint8_t* end) {
  if (in_payload_ && into_ != nullptr && into_ >= begin && into_ < end) into_ = nullptr;
}

// ---- out

void BulkStream::KeepCopy(Out& out) {
  out.copy.assign(out.payload, out.payload + out.header.length);
  out.payload = out.copy.data();
  out.kind = Out::Kind::kOwn;
}

// Describes the next bytes to write; returns the number of parts.
size_t BulkStream::Gather(iovec* parts, size_t capacity) {
  size_t ahead = 0;
  for (const Out& out : leaving_) ahead += out.header.length;
  while (leaving_.size() < kFramesAhead && ahead < kBytesAhead + sent_ && !urgent_.empty()) {
    leaving_.push_back(std::move(urgent_.front()));
    urgent_.pop_front();
    ahead += leaving_.back().header.length;
    EncodeHeader(leaving_.back().header, leaving_.back().encoded);
  }
  if (leaving_.empty()) {
    Out slice;
    if (owner_->NextBlobSlice(this, &slice)) {
      leaving_.push_back(std::move(slice));
      EncodeHeader(leaving_.back().header, leaving_.back().encoded);
    }
  }
  size_t count = 0, skip = sent_;
  for (Out& out : leaving_) {
    if (count + 2 > capacity) break;
    if (skip < FrameHeader::kSize) {
      parts[count++] = {out.encoded + skip, FrameHeader::kSize - skip};
      skip = FrameHeader::kSize;
    }
    skip -= FrameHeader::kSize;
    if (out.header.length > skip) {
      parts[count++] = {const_cast<uint8_t*>(out.payload) + skip, out.header.length - skip};
    }
    skip = 0;
  }
  return count;
}

void BulkStream::Write() {
  if (closed_) return;
  const auto alive = alive_;
  size_t budget = kWriteBudget;
  blocked_ = throttled_ = false;
  while (true) {
    iovec parts[2 * kFramesAhead];
    const size_t count = Gather(parts, 2 * kFramesAhead);
    if (count == 0) break;
    // On a slow line even the rest of a slice is long for a collective on another stream.
    const bool blob = leaving_.size() == 1 && leaving_.front().kind == Out::Kind::kBlob;
    if (blob && !owner_->BlobMayGo()) break;
    const IoResult put = stream_->Write(parts, static_cast<int>(count));
    if (put.status == IoStatus::kAgain) {
      blocked_ = true;
      break;
    }
    if (put.status != IoStatus::kOk) {
      return Fail(ErrorKind::kClosed, kClosedText);
    }
    sent_ += put.bytes;
    if (blob) owner_->OnBlobBytes(put.bytes);
    while (!leaving_.empty() && sent_ >= FrameHeader::kSize + leaving_.front().header.length) {
      sent_ -= FrameHeader::kSize + leaving_.front().header.length;
      Out done = std::move(leaving_.front());
      leaving_.pop_front();
      owner_->OnStreamSent(this, done);
      if (!*alive) return;
    }
    if (put.bytes >= budget) {
      blocked_ = true;  // still writable: the loop comes back after the others' turn
      break;
    }
    budget -= put.bytes;
  }
  const IoStatus flushed = stream_->Flush();
  if (flushed == IoStatus::kEof) {
    return Fail(ErrorKind::kClosed, kClosedText);
  }
  if (flushed == IoStatus::kAgain) blocked_ = true;
  throttled_ = blocked_ && stream_->throttled();
  if (throttled_) owner_->OnStreamThrottled(this);
  Meter();
  UpdateInterest();
}

}  // namespace decentral
