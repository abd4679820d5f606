// A descriptor that one thread makes readable for another: an eventfd, or a pipe elsewhere.
#pragma once

#include "io/fd.h"

namespace decentral {

class Wakeup {
 public:
  Wakeup();  // throws Error(kConfig)
  void Set() const;
  void Clear() const;
  int fd() const { return read_.get(); }

 private:
  Fd read_, write_;  // write_ only where there is no eventfd
};

}  // namespace decentral
