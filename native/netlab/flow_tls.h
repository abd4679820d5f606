// The plainest TLS 1.3 connection that OpenSSL gives: blocking, AES-128-GCM, a throw-away key.
#pragma once

#include <openssl/ssl.h>

namespace decentral::netlab {

// One context for both roles. Throws std::runtime_error.
SSL_CTX* MakeTlsContext();
// Handshakes over a connected, blocking socket. Throws std::runtime_error.
SSL* Handshake(SSL_CTX* context, int fd, bool server);

}  // namespace decentral::netlab
