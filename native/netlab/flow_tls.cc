#include "netlab/flow_tls.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <stdexcept>
#include <string>

namespace decentral::netlab {
namespace {

void Need(bool worked, const char* what) {
  if (worked) return;
  char detail[160] = "";
  ERR_error_string_n(ERR_get_error(), detail, sizeof detail);
  throw std::runtime_error(std::string("OpenSSL cannot ") + what + ": " + detail);
}

}  // namespace

SSL_CTX* MakeTlsContext() {
  EVP_PKEY* key = EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519");
  X509* cert = X509_new();
  Need(key && cert, "make a key");
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
  X509_gmtime_adj(X509_getm_notAfter(cert), 24 * 3600);
  X509_set_version(cert, X509_VERSION_3);
  X509_set_pubkey(cert, key);
  Need(X509_sign(cert, key, nullptr) != 0, "sign");
  SSL_CTX* context = SSL_CTX_new(TLS_method());
  Need(context && SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1 &&
           SSL_CTX_use_certificate(context, cert) == 1 && SSL_CTX_use_PrivateKey(context, key) == 1,
       "set up TLS");
  SSL_CTX_set_num_tickets(context, 0);
  X509_free(cert);
  EVP_PKEY_free(key);
  return context;
}

SSL* Handshake(SSL_CTX* context, int fd, bool server) {
  SSL* ssl = SSL_new(context);
  Need(ssl && SSL_set_fd(ssl, fd) == 1, "use a socket");
  Need((server ? SSL_accept(ssl) : SSL_connect(ssl)) == 1, "shake hands");
  return ssl;
}

}  // namespace decentral::netlab
