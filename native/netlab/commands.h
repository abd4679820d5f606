// What the lab can be told while it runs: one command a line, one answer a line.
//
//   rate HOST up|down MBIT     Mbit/s of IP packets; 0: no limit
//   queue HOST MS              what a packet may wait in each of the host's queues before a drop
//   delay FROM TO MS           one way
//   loss P | loss HOST P       probability per packet, of all or of those from and to the host
//   corrupt HOST P             so often a byte in a TCP payload from or to the host is another one,
//                              and the checksum fits: only who checks the bytes can notice
//   cut HOST | heal HOST       all packets from and to the host vanish
//   block FROM TO on|off       packets of this direction alone vanish
//   stats                      one JSON object: {"hosts": [{...}, ...]}
//
// HOST counts from 0 in the order of the command line; `*` means every host. The answer is `ok`,
// the statistics, or `error: ...` in words.
#pragma once

#include <string>

#include "netlab/line_switch.h"

namespace decentral::netlab {

std::string Execute(LineSwitch& lines, const std::string& command);

}  // namespace decentral::netlab
