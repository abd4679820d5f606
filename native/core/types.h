// Values shared by every part of the native library. No Python, no I/O.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <string>

namespace decentral {

// A raw Ed25519 public key.
using PeerId = std::array<uint8_t, 32>;
using Hash256 = std::array<uint8_t, 32>;

// Kinds map one to one onto the classes of decentral/errors.py (see bindings.cc).
enum class ErrorKind : uint8_t {
  kNone = 0,
  kUnreachable,      // nothing answers, or not in time
  kNotDecentral,     // something answers, but not our protocol
  kVersionMismatch,  // no common protocol version
  kIdentity,         // not the peer that was asked for
  kSelf,             // the address leads back to this endpoint
  kRefused,          // the other end said no
  kProtocol,         // a frame that breaks the format or a limit
  kClosed,           // the other end closed or died (EOF, RST)
  kSilent,           // no sign of life within the silence limit
  kAborted,          // somebody called it off
  kMismatch,         // members disagree about the operation
  kConfig,           // a call that cannot work
};

// What went wrong, in words a person can act on.
struct Error : std::exception {
  ErrorKind kind = ErrorKind::kNone;
  std::string phase;  // "dial", "handshake", "admission", "reduce-scatter", ...
  PeerId peer{};      // all zero: unknown
  std::string text;   // one sentence

  Error() = default;
  Error(ErrorKind k, std::string ph, std::string t, PeerId p = {})
      : kind(k), phase(std::move(ph)), peer(p), text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
  explicit operator bool() const { return kind != ErrorKind::kNone; }
};

}  // namespace decentral
