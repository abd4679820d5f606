#pragma once

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "io/socket.h"

namespace decentral {

// Whom a connection comes from, as far as strangers are counted: an IPv4 address, or the /64 that
// an IPv6 host may choose its addresses from.
using Origin = std::array<uint8_t, 16>;

inline Origin OriginOf(const SockAddr& from) {
  Origin origin{};
  if (from.family() == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(from.storage);
    origin[10] = origin[11] = 0xff;  // as an IPv4 address mapped into IPv6, which may come, too
    std::memcpy(&origin[12], &v4.sin_addr, 4);
  } else {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(from.storage);
    std::memcpy(origin.data(), &v6.sin6_addr, IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) ? 16 : 8);
  }
  return origin;
}

// One that holds a place for strangers. Numbers grow with time.
struct Stranger {
  uint64_t number;
  Origin origin;
};

// All places are taken and somebody comes from `newcomer`: the oldest of the origin that holds most
// places has to go. A crowd from one address drives out itself, and whoever comes from elsewhere
// finds room; one from the same address has as long as the crowd takes to come round.
inline uint64_t WhoHasToGo(const std::vector<Stranger>& waiting, const Origin& newcomer) {
  std::map<Origin, size_t> places{{newcomer, 1}};
  for (const Stranger& one : waiting) ++places[one.origin];
  const Stranger* chosen = nullptr;
  for (const Stranger& one : waiting) {
    const size_t here = places[one.origin];
    const size_t most = chosen ? places[chosen->origin] : 0;
    if (here > most || (here == most && one.number < chosen->number)) chosen = &one;
  }
  return chosen ? chosen->number : 0;
}

}  // namespace decentral
