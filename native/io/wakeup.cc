#include "io/wakeup.h"

#include <fcntl.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "core/types.h"

namespace decentral {

Wakeup::Wakeup() {
#ifdef __linux__
  read_ = Fd::Open([] { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); });
#else
  int ends[2] = {-1, -1};
  read_ = Fd::Open([&] { return pipe(ends) == 0 ? ends[0] : -1; });
  if (read_) write_ = Fd::Open([&] { return ends[1]; });
  for (const int end : ends) {
    fcntl(end, F_SETFD, FD_CLOEXEC);
    fcntl(end, F_SETFL, O_NONBLOCK);
  }
#endif
  if (!read_) throw Error(ErrorKind::kConfig, "start", "the system has no descriptor left for us");
}

void Wakeup::Set() const {
  const uint64_t one = 1;
  (void)!write(write_ ? write_.get() : read_.get(), &one, sizeof one);
}

void Wakeup::Clear() const {
  uint8_t buffer[64];
  while (read(read_.get(), buffer, sizeof buffer) == static_cast<ssize_t>(sizeof buffer)) {
  }
}

}  // namespace decentral
