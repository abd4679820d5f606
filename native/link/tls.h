// Who we are, in TLS: an Ed25519 key, the self-signed certificate made from it, and the rule that
// the other end must show the same kind. The certificate only carries the key; nobody signs for
// anybody here, and whether a key may take part is for the layer above.
#pragma once

#include <openssl/ssl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/types.h"
#include "io/fd.h"
#include "link/stream.h"

namespace decentral {

inline constexpr char kAlpnControl[] = "decentral/";    // + version
inline constexpr char kAlpnBulk[] = "decentral-bulk/";  // + version
inline constexpr char kAlpnRefuse[] = "decentral-refuse";

class TlsContext {
 public:
  // Throws Error(kConfig).
  TlsContext(const std::array<uint8_t, 32>& seed, std::vector<uint16_t> versions);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;

  const PeerId& id() const { return id_; }
  const std::vector<uint16_t>& versions() const { return versions_; }

  // A client offers `alpn` in order; with `expected`, it turns anybody else away before it has
  // shown its own certificate.
  std::unique_ptr<Stream> Client(Fd fd, const std::vector<std::string>& alpn,
                                 const std::optional<PeerId>& expected) const;
  std::unique_ptr<Stream> Server(Fd fd, const std::optional<PeerId>& expected) const;

  std::vector<std::string> ControlAlpn() const;  // what a dialling client offers

 private:
  PeerId id_{};
  std::vector<uint16_t> versions_;
  SSL_CTX* context_ = nullptr;
};

// "1" or "1, 2": for sentences.
std::string VersionList(const std::vector<uint16_t>& versions);
// The first eight characters of a peer id in base32, as people see it everywhere.
std::string ShortId(const PeerId& id);

}  // namespace decentral
