#include "link/stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/socket.h"

namespace decentral {
namespace {

constexpr size_t kRecord = 16 << 10;  // TLS's largest
constexpr size_t kBulkGather = 128 << 10;
constexpr size_t kBulkReadAhead = 128 << 10;
constexpr int kMaxParts = 16;

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

// The BIO's C callbacks; the Stream is its data.
struct StreamBio {
  static Stream* Of(BIO* bio) { return static_cast<Stream*>(BIO_get_data(bio)); }
  static int Read(BIO* bio, char* into, int size) {
    BIO_clear_retry_flags(bio);
    const int n = Of(bio)->BioRead(into, size);
    if (n == -1) BIO_set_retry_read(bio);
    return n == -2 ? -1 : n;
  }
  static int Write(BIO* bio, const char* from, int size) {
    BIO_clear_retry_flags(bio);
    const int n = Of(bio)->BioWrite(from, size);
    if (n == -1) BIO_set_retry_write(bio);
    return n == -2 ? -1 : n;
  }
  static long Control(BIO* bio, int command, long, void*) {
    if (command == BIO_CTRL_FLUSH) {
      Of(bio)->Flush();  // what is left goes later: Stream::unsent() says so
      return 1;
    }
    if (command == BIO_CTRL_EOF) return Of(bio)->socket_dead_ ? 1 : 0;
    return 0;
  }
  static int Create(BIO* bio) {
    BIO_set_init(bio, 1);
    return 1;
  }
  static BIO_METHOD* Method() {
    static BIO_METHOD* method = [] {
      BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "decentral");
      BIO_meth_set_read(m, Read);
      BIO_meth_set_write(m, Write);
      BIO_meth_set_ctrl(m, Control);
      BIO_meth_set_create(m, Create);
      return m;
    }();
    return method;
  }
  static void Attach(SSL* ssl, Stream* stream) {
    BIO* bio = BIO_new(Method());
    BIO_set_data(bio, stream);
    SSL_set_bio(ssl, bio, bio);
  }
};

void AttachBio(SSL* ssl, Stream* stream) { StreamBio::Attach(ssl, stream); }

Stream::Stream(Fd fd) : fd_(std::move(fd)) {}

Stream::~Stream() {
  if (ssl_ != nullptr) SSL_free(ssl_);
}

int Stream::BioRead(char* into, int size) {
  if (bytes_read_ >= limit()) {
    over_limit_ = true;
    return -2;
  }
  const uint64_t allowed = std::min<uint64_t>(size, limit() - bytes_read_);
  const ssize_t n = recv(fd_.get(), into, allowed, 0);
  if (n > 0) {
    bytes_read_ += n;
    return static_cast<int>(n);
  }
  if (n < 0 && WouldBlock()) return -1;
  socket_dead_ = true;
  return n == 0 ? 0 : -2;
}

int Stream::BioWrite(const char* from, int size) {
  if (out_.size() - out_begin_ >= gather_bytes_) {
    const IoStatus status = Flush();
    if (status == IoStatus::kEof) return -2;
    if (out_.size() - out_begin_ >= gather_bytes_) return -1;
  }
  out_.insert(out_.end(), from, from + size);
  return size;
}

// sendmsg of no more than the gate lets through; a shut gate looks like a full socket.
ssize_t Stream::SendSome(const iovec* parts, int count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);
  message.msg_iovlen = count;
  throttled_ = false;
  if (gate_ == nullptr) return sendmsg(fd_.get(), &message, kNoSignal);
  size_t allowance = gate_->Allowance(std::chrono::steady_clock::now());
  if (allowance == 0) {
    throttled_ = true;
    errno = EAGAIN;
    return -1;
  }
  iovec some[kMaxParts];
  message.msg_iov = some;
  message.msg_iovlen = 0;
  for (int i = 0; i < std::min(count, kMaxParts) && allowance > 0; ++i) {
    some[i] = {parts[i].iov_base, std::min(parts[i].iov_len, allowance)};
    allowance -= some[i].iov_len;
    ++message.msg_iovlen;
  }
  const ssize_t n = sendmsg(fd_.get(), &message, kNoSignal);
  if (n > 0) gate_->Spend(n);
  return n;
}

IoStatus Stream::Flush() {
  while (out_begin_ < out_.size()) {
    const iovec rest{out_.data() + out_begin_, out_.size() - out_begin_};
    const ssize_t n = SendSome(&rest, 1);
    if (n < 0) {
      if (WouldBlock()) return IoStatus::kAgain;
      socket_dead_ = true;
      return IoStatus::kEof;
    }
    out_begin_ += n;
    bytes_written_ += n;
  }
  out_.clear();
  out_begin_ = 0;
  return IoStatus::kOk;
}

IoStatus Stream::Fail(int result) {
  const int error = SSL_get_error(ssl_, result);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return IoStatus::kAgain;
  if (over_limit_) return IoStatus::kLimit;
  const unsigned long code = ERR_peek_error();
  if (error == SSL_ERROR_ZERO_RETURN || socket_dead_) {
    ERR_clear_error();
    return IoStatus::kEof;
  }
  if (reason_.empty() && code != 0) {
    const char* text = ERR_reason_error_string(code);
    reason_ = text != nullptr ? text : "TLS failed";
  }
  // Reasons above 1000 are alerts that the other end sent: it does speak TLS.
  saw_alert_ = ERR_GET_REASON(code) > SSL_AD_REASON_OFFSET;
  ERR_clear_error();
  return IoStatus::kBroken;
}

IoStatus Stream::Handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  const IoStatus status = result == 1 ? IoStatus::kOk : Fail(result);
  Flush();  // an alert as well; the next read or write meets a dead socket
  return status;
}

std::string Stream::alpn() const {
  const unsigned char* name = nullptr;
  unsigned size = 0;
  if (ssl_ != nullptr) SSL_get0_alpn_selected(ssl_, &name, &size);
  return std::string(reinterpret_cast<const char*>(name), size);
}

std::string Stream::Exporter() const {
  static constexpr char kLabel[] = "EXPORTER-Channel-Binding";
  std::string out(32, '\0');
  const int ok =
      SSL_export_keying_material(ssl_, reinterpret_cast<uint8_t*>(out.data()), out.size(), kLabel,
                                 sizeof kLabel - 1, reinterpret_cast<const uint8_t*>(""), 0, 1);
  return ok == 1 ? out : std::string();
}

IoResult Stream::Read(void* into, size_t size) { return ReadTwo(into, size, nullptr, 0); }

IoResult Stream::ReadTwo(void* first, size_t first_size, void* second, size_t second_size) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    size_t n = 0;
    const int result = SSL_read_ex(ssl_, first, first_size, &n);
    if (result == 1) return {IoStatus::kOk, n};
    return {Fail(result)};
  }
  if (bytes_read_ >= limit()) return {IoStatus::kLimit};
  iovec parts[2] = {{first, first_size}, {second, second_size}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = second_size > 0 ? 2 : 1;
  const ssize_t n = recvmsg(fd_.get(), &message, 0);
  if (n > 0) {
    bytes_read_ += n;
    return {IoStatus::kOk, static_cast<size_t>(n)};
  }
  return {n < 0 && WouldBlock() ? IoStatus::kAgain : IoStatus::kEof};
}

IoResult Stream::Write(const iovec* parts, int count) {
  if (ssl_ == nullptr) {
    const ssize_t n = SendSome(parts, count);
    if (n < 0) return {WouldBlock() ? IoStatus::kAgain : IoStatus::kEof};
    bytes_written_ += n;
    return {IoStatus::kOk, static_cast<size_t>(n)};
  }
  // A record per part would make a record of every header: small parts share one with what
  // follows. A retry after kAgain gathers the same bytes again, as OpenSSL demands.
  size_t taken = 0, offset = 0;
  for (int i = 0; i < count;) {
    const char* at = static_cast<const char*>(parts[i].iov_base) + offset;
    size_t size = parts[i].iov_len - offset;
    char record[kRecord];
    if (size < kRecord && i + 1 < count) {
      size = 0;
      size_t from = offset;
      for (int j = i; j < count && size < kRecord; ++j, from = 0) {
        const size_t take = std::min(parts[j].iov_len - from, kRecord - size);
        std::memcpy(record + size, static_cast<const char*>(parts[j].iov_base) + from, take);
        size += take;
      }
      at = record;
    }
    ERR_clear_error();
    size_t n = 0;
    const int result = SSL_write_ex(ssl_, at, size, &n);
    if (result != 1) {
      const IoStatus status = Fail(result);
      return taken > 0 ? IoResult{IoStatus::kOk, taken} : IoResult{status};
    }
    taken += n;
    for (offset += n; i < count && offset >= parts[i].iov_len; ++i) offset -= parts[i].iov_len;
  }
  return {IoStatus::kOk, taken};
}

bool Stream::buffered() const { return ssl_ != nullptr && SSL_has_pending(ssl_) == 1; }

void Stream::FinishWriting() {
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_)) {
    ERR_clear_error();
    SSL_shutdown(ssl_);
    ERR_clear_error();
    Flush();
  }
  shutdown(fd_.get(), SHUT_WR);
}

void Stream::SetBulk(UploadGate* gate) {
  gate_ = gate;
  if (ssl_ == nullptr) return;
  gather_bytes_ = kBulkGather;
  out_.reserve(kBulkGather + (17 << 10));
  SSL_clear_mode(ssl_, SSL_MODE_RELEASE_BUFFERS);
  SSL_set_default_read_buffer_len(ssl_, kBulkReadAhead);
}

}  // namespace decentral
