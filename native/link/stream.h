// One TCP connection as a non-blocking byte stream, in the clear or under TLS.
//
//   Write ──▶ SSL_write ──▶ [records gather here] ── one send() for many ──▶ socket
//   Read  ◀── SSL_read  ◀── (OpenSSL's read-ahead) ◀── one recv() for many ── socket
//
// A BIO of our own stands between OpenSSL and the socket: it gathers records, sends with
// MSG_NOSIGNAL, counts bytes, and can cap what may be read from a stranger.
#pragma once

#include <openssl/ssl.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/types.h"
#include "io/fd.h"
#include "link/upload_gate.h"

namespace decentral {

enum class IoStatus : uint8_t {
  kOk,
  kAgain,   // wait for the socket
  kEof,     // the other end closed or reset the connection
  kLimit,   // it sent more than a stranger may
  kBroken,  // it broke TLS; reason() says how
};

struct IoResult {
  IoStatus status;
  size_t bytes = 0;
};

class Stream {
 public:
  explicit Stream(Fd fd);  // in the clear; TlsContext adds TLS
  ~Stream();
  Stream(const Stream&) = delete;

  int fd() const { return fd_.get(); }
  bool tls() const { return ssl_ != nullptr; }

  // TLS only. kOk: done, peer() and alpn() are known.
  IoStatus Handshake();
  const PeerId& peer() const { return peer_; }
  std::string alpn() const;
  std::string Exporter() const;  // RFC 9266 tls-exporter: 32 bytes

  // kOk with bytes > 0, or another status with none.
  IoResult Read(void* into, size_t size);
  // Fills `first`, then goes on into `second` with what the same system call brought (in the
  // clear; under TLS only `first`).
  IoResult ReadTwo(void* first, size_t first_size, void* second, size_t second_size);
  // Takes some of the bytes. kAgain: none could be taken.
  IoResult Write(const iovec* parts, int count);
  // Sends what is gathered. kAgain: some is left.
  IoStatus Flush();
  bool unsent() const { return out_begin_ < out_.size(); }
  // Bytes wait inside OpenSSL: the socket will not become readable for them.
  bool buffered() const;

  void FinishWriting();  // close_notify and FIN
  // At most this many bytes in all, TLS's own included; any thread may raise it.
  void LimitReads(std::shared_ptr<const std::atomic<uint64_t>> limit) { limit_ = std::move(limit); }
  void SetBulk(UploadGate* gate);  // large buffers, kept; what leaves goes through the gate
  bool throttled() const { return throttled_; }  // the last kAgain was the gate's

  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t bytes_written() const { return bytes_written_; }
  // Why the handshake or the stream broke, for a sentence; and the kind, if a check of ours did.
  const std::string& reason() const { return reason_; }
  ErrorKind verdict() const { return verdict_; }
  bool saw_tls_alert() const { return saw_alert_; }

 private:
  friend class TlsContext;
  friend struct StreamBio;
  friend struct TlsCallbacks;

  IoStatus Fail(int result);
  uint64_t limit() const { return limit_ ? limit_->load() : UINT64_MAX; }
  int BioRead(char* into, int size);
  int BioWrite(const char* from, int size);
  ssize_t SendSome(const iovec* parts, int count);

  Fd fd_;
  SSL* ssl_ = nullptr;
  bool socket_dead_ = false;  // EOF or an error of the socket
  bool over_limit_ = false;
  bool saw_alert_ = false;
  std::shared_ptr<const std::atomic<uint64_t>> limit_;
  uint64_t bytes_read_ = 0, bytes_written_ = 0;
  size_t gather_bytes_ = 16 << 10;
  std::vector<char> out_;  // records that are not sent yet: [out_begin_, size)
  size_t out_begin_ = 0;
  UploadGate* gate_ = nullptr;
  bool throttled_ = false;

  // Set by TlsContext and its verify callback.
  PeerId self_{}, peer_{};
  std::optional<PeerId> expected_;
  ErrorKind verdict_ = ErrorKind::kNone;
  std::string reason_;
};

}  // namespace decentral
