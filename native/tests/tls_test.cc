// The stream under TLS: who gets through the handshake, and what a stranger may send.
#include "link/tls.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <sys/socket.h>

#include <cstring>
#include <string>

#include "tests/check.h"

using namespace decentral;

namespace {

std::array<uint8_t, 32> Seed(uint8_t fill) {
  std::array<uint8_t, 32> seed;
  seed.fill(fill);
  return seed;
}

struct Ends {
  Ends() {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    a = Fd::Open([&] { return fds[0]; });
    b = Fd::Open([&] { return fds[1]; });
  }
  Fd a, b;
};

struct Result {
  IoStatus client = IoStatus::kAgain, server = IoStatus::kAgain;
};
Result Shake(Stream& client, Stream& server) {
  Result r;
  for (int i = 0; i < 20; ++i) {
    if (r.client == IoStatus::kAgain) r.client = client.Handshake();
    if (r.server == IoStatus::kAgain) r.server = server.Handshake();
  }
  return r;
}

// A TLS client of somebody else's making.
class ForeignClient {
 public:
  ForeignClient(int fd, int key_type, bool with_certificate, bool other_signer) {
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context_, SSL_VERIFY_NONE, nullptr);
    if (with_certificate) {
      EVP_PKEY* key = key_type == EVP_PKEY_ED25519
                          ? EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519")
                          : EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256");
      EVP_PKEY* signer = other_signer ? EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519") : key;
      X509* cert = X509_new();
      X509_gmtime_adj(X509_getm_notBefore(cert), 0);
      X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
      X509_set_pubkey(cert, key);
      X509_sign(cert, signer, key_type == EVP_PKEY_ED25519 ? nullptr : EVP_sha256());
      SSL_CTX_use_certificate(context_, cert);
      SSL_CTX_use_PrivateKey(context_, key);
      X509_free(cert);
      if (signer != key) EVP_PKEY_free(signer);
      EVP_PKEY_free(key);
    }
    ssl_ = SSL_new(context_);
    const unsigned char alpn[] =
        "\x0b"
        "decentral/1";
    SSL_set_alpn_protos(ssl_, alpn, sizeof alpn - 1);
    SSL_set_fd(ssl_, fd);
    SSL_set_connect_state(ssl_);
  }
  ~ForeignClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    ERR_clear_error();
  }
  void Step() {
    SSL_do_handshake(ssl_);
    ERR_clear_error();
  }

 private:
  SSL_CTX* context_;
  SSL* ssl_;
};

IoStatus Accepts(int key_type, bool with_certificate, bool other_signer) {
  TlsContext context(Seed(1), {1});
  Ends ends;
  auto server = context.Server(std::move(ends.b), std::nullopt);
  ForeignClient client(ends.a.get(), key_type, with_certificate, other_signer);
  IoStatus status = IoStatus::kAgain;
  for (int i = 0; i < 20 && status == IoStatus::kAgain; ++i) {
    client.Step();
    status = server->Handshake();
  }
  return status;
}

}  // namespace

TEST(two_of_us_shake_hands) {
  TlsContext one(Seed(1), {1}), two(Seed(2), {1});
  Ends ends;
  auto client = one.Client(std::move(ends.a), one.ControlAlpn(), two.id());
  auto server = two.Server(std::move(ends.b), std::nullopt);
  const Result r = Shake(*client, *server);
  CHECK(r.client == IoStatus::kOk && r.server == IoStatus::kOk);
  CHECK(client->peer() == two.id() && server->peer() == one.id());
  CHECK(client->alpn() == "decentral/1" && server->alpn() == "decentral/1");
  CHECK(client->Exporter() == server->Exporter() && client->Exporter().size() == 32);
}

TEST(an_unexpected_peer_is_turned_away) {
  TlsContext one(Seed(1), {1}), two(Seed(2), {1}), three(Seed(3), {1});
  Ends ends;
  auto client = one.Client(std::move(ends.a), one.ControlAlpn(), three.id());
  auto server = two.Server(std::move(ends.b), std::nullopt);
  const Result r = Shake(*client, *server);
  CHECK(r.client == IoStatus::kBroken && client->verdict() == ErrorKind::kIdentity);
  CHECK(r.server != IoStatus::kOk);
}

TEST(ones_own_key_is_noticed) {
  TlsContext one(Seed(1), {1});
  Ends ends;
  auto client = one.Client(std::move(ends.a), one.ControlAlpn(), std::nullopt);
  auto server = one.Server(std::move(ends.b), std::nullopt);
  Shake(*client, *server);
  CHECK(client->verdict() == ErrorKind::kSelf);
}

TEST(only_a_self_signed_ed25519_certificate_gets_in) {
  CHECK(Accepts(EVP_PKEY_ED25519, true, false) == IoStatus::kOk);
  CHECK(Accepts(EVP_PKEY_ED25519, true, true) == IoStatus::kBroken);
  CHECK(Accepts(EVP_PKEY_ED25519, false, false) == IoStatus::kBroken);
  CHECK(Accepts(EVP_PKEY_EC, true, false) == IoStatus::kBroken);
}

TEST(bytes_pass_in_both_directions_whatever_their_cut) {
  TlsContext one(Seed(1), {1}), two(Seed(2), {1});
  Ends ends;
  auto client = one.Client(std::move(ends.a), one.ControlAlpn(), std::nullopt);
  auto server = two.Server(std::move(ends.b), std::nullopt);
  Shake(*client, *server);
  client->SetBulk(nullptr);
  std::string sent(3'000'000, '\0');
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 31 + i / 977);
  std::string got;
  size_t at = 0;
  while (got.size() < sent.size()) {
    // Three parts: tiny, small, the rest.
    const size_t left = sent.size() - at, first = std::min<size_t>(56, left),
                 second = std::min<size_t>(1000, left - first);
    iovec parts[3] = {{sent.data() + at, first},
                      {sent.data() + at + first, second},
                      {sent.data() + at + first + second, left - first - second}};
    if (left > 0) {
      const IoResult put = client->Write(parts, 3);
      CHECK(put.status == IoStatus::kOk || put.status == IoStatus::kAgain);
      at += put.bytes;
    }
    client->Flush();
    char buffer[10'000];
    IoResult in;
    while ((in = server->Read(buffer, sizeof buffer)).status == IoStatus::kOk) {
      got.append(buffer, in.bytes);
    }
    CHECK(in.status == IoStatus::kAgain);
  }
  CHECK(got == sent);
  client->FinishWriting();
  char byte;
  CHECK(server->Read(&byte, 1).status == IoStatus::kEof);
}

TEST(a_stranger_is_held_to_the_limit) {
  TlsContext one(Seed(1), {1}), two(Seed(2), {1});
  Ends ends;
  auto client = one.Client(std::move(ends.a), one.ControlAlpn(), std::nullopt);
  auto server = two.Server(std::move(ends.b), std::nullopt);
  auto limit = std::make_shared<std::atomic<uint64_t>>(20'000);
  server->LimitReads(limit);
  Shake(*client, *server);
  const std::string much(60'000, 'x');
  const iovec part{const_cast<char*>(much.data()), much.size()};
  client->Write(&part, 1);
  client->Flush();
  char buffer[4096];
  IoResult in;
  size_t got = 0;
  while ((in = server->Read(buffer, sizeof buffer)).status == IoStatus::kOk) got += in.bytes;
  CHECK(in.status == IoStatus::kLimit && got <= 20'000 && server->bytes_read() <= 20'000);
}

TEST(no_version_is_a_mistake_of_the_caller) {
  bool thrown = false;
  try {
    TlsContext context(Seed(1), {});
  } catch (const Error& error) {
    thrown = error.kind == ErrorKind::kConfig;
  }
  CHECK(thrown);
}

TEST_MAIN()
