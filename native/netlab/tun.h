// A TUN device inside a network namespace, held from outside of it.
#pragma once

#include <cstdint>
#include <string>

namespace decentral::netlab {

// What a host of the lab is: NAMESPACE=ADDRESS. The namespace is a name of `ip netns` or a path.
struct HostSpec {
  std::string netns;
  std::string address;
};

// Makes the device `wan0` there (MTU 1500, ADDRESS/24, up); it lives as long as the returned,
// non-blocking descriptor. Throws std::runtime_error in words.
int OpenTun(const HostSpec& host);
// Network byte order. Throws std::runtime_error.
uint32_t ParseAddress(const std::string& address);

}  // namespace decentral::netlab
