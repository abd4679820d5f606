// A cap on bytes that leave: an endpoint's bulk streams all together, or one relayed session. A
// token bucket, for one thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace decentral {

class UploadGate {
 public:
  using Clock = std::chrono::steady_clock;

  explicit UploadGate(uint64_t bytes_per_s) : bytes_per_s_(bytes_per_s) {}

  void SetRate(uint64_t bytes_per_s) { bytes_per_s_ = bytes_per_s; }
  bool capped() const { return bytes_per_s_ > 0; }
  // How many bytes may leave now.
  size_t Allowance(Clock::time_point now) {
    const std::chrono::duration<double> since = now - filled_;
    filled_ = now;
    const double rate = static_cast<double>(bytes_per_s_);
    tokens_ = std::min(tokens_ + since.count() * rate, std::max(rate * kBurstS, 2 * kLeast));
    return tokens_ < kLeast ? 0 : static_cast<size_t>(tokens_);
  }
  void Spend(size_t bytes) { tokens_ -= static_cast<double>(bytes); }
  // When a gate that is shut is worth asking again.
  static constexpr int kRetryMs = 5;

 private:
  static constexpr double kBurstS = 0.02;  // after a pause; what a queue in between must hold
  static constexpr double kLeast = 1448;   // not worth a system call

  uint64_t bytes_per_s_;
  double tokens_ = 0;
  Clock::time_point filled_ = Clock::now();
};

}  // namespace decentral
