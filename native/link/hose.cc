#include "link/hose.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <tuple>

#include "io/socket.h"

namespace decentral {

#ifdef __linux__

Hose::Hose() {
  std::tie(out_, in_) =
      Fd::OpenPair([](int ends[2]) { return pipe2(ends, O_CLOEXEC | O_NONBLOCK); });
  // Refused where this user has too many pipes: a small one will do.
  if (in_) fcntl(in_.get(), F_SETPIPE_SZ, static_cast<int>(kMost));
}

bool Hose::ready() const { return in_ && out_; }

ssize_t Hose::Fill(int from, size_t most) {
  const ssize_t n = splice(from, nullptr, in_.get(), nullptr, std::min(most, kMost - held_),
                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n > 0) held_ += n;
  return n;
}

ssize_t Hose::Drain(int to) {
  const ssize_t n =
      splice(out_.get(), nullptr, to, nullptr, held_, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n > 0) held_ -= n;
  return n;
}

#else

Hose::Hose() : buffer_(kMost) {}

bool Hose::ready() const { return true; }

ssize_t Hose::Fill(int from, size_t most) {
  if (held_ == 0) begin_ = 0;
  const size_t end = begin_ + held_;
  if (end == kMost) {
    errno = EAGAIN;  // full until it has run dry
    return -1;
  }
  const ssize_t n = recv(from, buffer_.data() + end, std::min(most, kMost - end), 0);
  if (n > 0) held_ += n;
  return n;
}

ssize_t Hose::Drain(int to) {
  const ssize_t n = send(to, buffer_.data() + begin_, held_, kNoSignal);
  if (n > 0) {
    begin_ += n;
    held_ -= n;
  }
  return n;
}

#endif

}  // namespace decentral
