// One direction of a relayed connection: what has left one socket and not entered the other. On
// Linux the bytes stay in the kernel (splice(2) through a pipe), elsewhere they pass through here.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <vector>

#include "io/fd.h"

namespace decentral {

class Hose {
 public:
  static constexpr size_t kMost = 256 << 10;  // that it holds

  Hose();  // ready() says whether the system had what it takes
  bool ready() const;
  size_t held() const { return held_; }
  // As recv and send: bytes, 0 at the end of the stream, -1 and errno (EAGAIN: later).
  ssize_t Fill(int from, size_t most);
  ssize_t Drain(int to);

 private:
  size_t held_ = 0;
#ifdef __linux__
  Fd out_, in_;  // a pipe's ends
#else
  std::vector<char> buffer_;
  size_t begin_ = 0;
#endif
};

}  // namespace decentral
