#include "link/tls.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <cstring>

namespace decentral {

void AttachBio(SSL* ssl, Stream* stream);  // stream.cc

namespace {

template <typename T, void (*Free)(T*)>
struct Deleter {
  void operator()(T* value) const { Free(value); }
};
using KeyPtr = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY, EVP_PKEY_free>>;
using CertPtr = std::unique_ptr<X509, Deleter<X509, X509_free>>;

[[noreturn]] void Throw(const char* what) {
  char detail[160] = "";
  ERR_error_string_n(ERR_get_error(), detail, sizeof detail);
  throw Error(ErrorKind::kConfig, "start", std::string("OpenSSL cannot ") + what + ": " + detail);
}

// Valid for ever: a peer's clock may be wrong, and the key says all there is to say.
CertPtr SelfSign(EVP_PKEY* key) {
  CertPtr cert(X509_new());
  X509_NAME* name = cert ? X509_get_subject_name(cert.get()) : nullptr;
  if (name == nullptr || X509_set_version(cert.get(), X509_VERSION_3) != 1 ||
      ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), 1) != 1 ||
      ASN1_TIME_set_string(X509_getm_notBefore(cert.get()), "20000101000000Z") != 1 ||
      ASN1_TIME_set_string(X509_getm_notAfter(cert.get()), "99991231235959Z") != 1 ||
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                                 reinterpret_cast<const uint8_t*>("decentral"), -1, -1, 0) != 1 ||
      X509_set_issuer_name(cert.get(), name) != 1 || X509_set_pubkey(cert.get(), key) != 1 ||
      X509_sign(cert.get(), key, nullptr) == 0) {
    Throw("make a certificate");
  }
  return cert;
}

int StreamIndex() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

// Replaces the chain building of X.509: one certificate, Ed25519, signed by itself.
std::optional<PeerId> SelfSignedEd25519(X509_STORE_CTX* store) {
  X509* leaf = X509_STORE_CTX_get0_cert(store);
  const STACK_OF(X509)* sent = X509_STORE_CTX_get0_untrusted(store);
  if (leaf == nullptr || sk_X509_num(sent) > 1) return std::nullopt;
  EVP_PKEY* key = X509_get0_pubkey(leaf);
  if (key == nullptr || EVP_PKEY_get_id(key) != EVP_PKEY_ED25519) return std::nullopt;
  if (X509_verify(leaf, key) != 1) return std::nullopt;
  PeerId id{};
  size_t size = id.size();
  if (EVP_PKEY_get_raw_public_key(key, id.data(), &size) != 1 || size != id.size()) {
    return std::nullopt;
  }
  return id;
}

}  // namespace

std::string ShortId(const PeerId& id) {
  static constexpr char kBase32[] = "abcdefghijklmnopqrstuvwxyz234567";
  uint64_t bits = 0;
  for (int i = 0; i < 5; ++i) bits = bits << 8 | id[i];
  std::string out;
  for (int shift = 35; shift >= 0; shift -= 5) out += kBase32[bits >> shift & 31];
  return out;
}

std::string VersionList(const std::vector<uint16_t>& versions) {
  std::string out;
  for (const uint16_t version : versions) {
    out += (out.empty() ? "" : ", ") + std::to_string(version);
  }
  return out;
}

struct TlsCallbacks {
  static int Verify(X509_STORE_CTX* store, void*) {
    auto* ssl =
        static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
    auto* stream = static_cast<Stream*>(SSL_get_ex_data(ssl, StreamIndex()));
    const std::optional<PeerId> id = SelfSignedEd25519(store);
    if (!id) {
      stream->verdict_ = ErrorKind::kNotDecentral;
      stream->reason_ = "its certificate is not a self-signed Ed25519 one";
    } else if (*id == stream->self_) {
      stream->verdict_ = ErrorKind::kSelf;
      stream->reason_ = "the address leads back to this very peer";
    } else if (stream->expected_ && *stream->expected_ != *id) {
      stream->verdict_ = ErrorKind::kIdentity;
      stream->reason_ = "peer " + ShortId(*id) + " answers there, not peer " +
                        ShortId(*stream->expected_) + " that was asked for";
    } else {
      stream->peer_ = *id;
      X509_STORE_CTX_set_error(store, X509_V_OK);
      return 1;
    }
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
    return 0;
  }

  // The server's choice, by our order of preference. `versions` lives in the TlsContext.
  static int SelectAlpn(SSL*, const uint8_t** out, uint8_t* out_size, const uint8_t* in,
                        unsigned in_size, void* versions) {
    std::vector<std::string> wanted;
    for (const uint16_t version : *static_cast<std::vector<uint16_t>*>(versions)) {
      wanted.push_back(kAlpnControl + std::to_string(version));
      wanted.push_back(kAlpnBulk + std::to_string(version));
    }
    wanted.push_back(kAlpnRefuse);
    for (const std::string& name : wanted) {
      for (unsigned at = 0; at < in_size; at += 1 + in[at]) {
        if (at + 1 + in[at] > in_size) break;
        if (in[at] == name.size() && std::memcmp(in + at + 1, name.data(), name.size()) == 0) {
          *out = in + at + 1;
          *out_size = in[at];
          return SSL_TLSEXT_ERR_OK;
        }
      }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
};

TlsContext::TlsContext(const std::array<uint8_t, 32>& seed, std::vector<uint16_t> versions)
    : versions_(std::move(versions)) {
  if (versions_.empty()) throw Error(ErrorKind::kConfig, "start", "no protocol version to speak");
  const KeyPtr key(
      EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size()));
  size_t size = id_.size();
  if (!key || EVP_PKEY_get_raw_public_key(key.get(), id_.data(), &size) != 1) {
    Throw("make an Ed25519 key");
  }
  const CertPtr cert = SelfSign(key.get());
  context_ = SSL_CTX_new(TLS_method());
  if (context_ == nullptr || SSL_CTX_set_min_proto_version(context_, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context_, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context_,
                               "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:"
                               "TLS_AES_256_GCM_SHA384") != 1 ||
      SSL_CTX_set1_sigalgs_list(context_, "ed25519") != 1 ||
      SSL_CTX_set1_client_sigalgs_list(context_, "ed25519") != 1 ||
      SSL_CTX_set1_groups_list(context_, "X25519") != 1 ||
      SSL_CTX_use_certificate(context_, cert.get()) != 1 ||
      SSL_CTX_use_PrivateKey(context_, key.get()) != 1 ||
      SSL_CTX_set_num_tickets(context_, 0) != 1) {
    SSL_CTX_free(context_);
    Throw("set up TLS 1.3");
  }
  SSL_CTX_set_options(context_, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_max_early_data(context_, 0);
  SSL_CTX_set_max_cert_list(context_, 4096);  // one small certificate, from strangers too
  SSL_CTX_set_read_ahead(context_, 1);
  SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                 SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_verify(context_, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_cert_verify_callback(context_, &TlsCallbacks::Verify, nullptr);
  SSL_CTX_set_alpn_select_cb(context_, &TlsCallbacks::SelectAlpn, &versions_);
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

static std::unique_ptr<Stream> Start(std::unique_ptr<Stream> stream, SSL* ssl) {
  SSL_set_ex_data(ssl, StreamIndex(), stream.get());
  AttachBio(ssl, stream.get());
  return stream;
}

std::unique_ptr<Stream> TlsContext::Client(Fd fd, const std::vector<std::string>& alpn,
                                           const std::optional<PeerId>& expected) const {
  auto stream = std::make_unique<Stream>(std::move(fd));
  SSL* ssl = stream->ssl_ = SSL_new(context_);
  if (ssl == nullptr) Throw("start a connection");
  stream->self_ = id_;
  stream->expected_ = expected;
  std::string wire;
  for (const std::string& name : alpn) wire += static_cast<char>(name.size()) + name;
  SSL_set_alpn_protos(ssl, reinterpret_cast<const uint8_t*>(wire.data()), wire.size());
  SSL_set_connect_state(ssl);
  return Start(std::move(stream), ssl);
}

std::unique_ptr<Stream> TlsContext::Server(Fd fd, const std::optional<PeerId>& expected) const {
  auto stream = std::make_unique<Stream>(std::move(fd));
  SSL* ssl = stream->ssl_ = SSL_new(context_);
  if (ssl == nullptr) Throw("start a connection");
  stream->self_ = id_;
  stream->expected_ = expected;
  SSL_set_accept_state(ssl);
  return Start(std::move(stream), ssl);
}

std::vector<std::string> TlsContext::ControlAlpn() const {
  std::vector<std::string> out;
  for (const uint16_t version : versions_) out.push_back(kAlpnControl + std::to_string(version));
  out.push_back(kAlpnRefuse);
  return out;
}

}  // namespace decentral
