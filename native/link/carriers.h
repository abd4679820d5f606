// The thread that an endpoint's carriers work on. Most endpoints need none: the first carrier
// starts it.
#pragma once

#include <functional>
#include <memory>
#include <set>

#include "link/carrier.h"

namespace decentral {

class Carriers {
 public:
  ~Carriers() { Stop(); }

  // One thread (the control thread). Returns at once; on_stream and on_broken are called on the
  // carriers' thread.
  std::shared_ptr<Carrier> Start(Fd raw, bool opener, Fd control, std::function<void(Fd)> on_stream,
                                 std::function<void()> on_broken,
                                 int forget_ms = Carrier::kForgetMs);
  void Stop();

 private:
  std::unique_ptr<Reactor> loop_;
  bool stopped_ = false;
  std::set<std::shared_ptr<Carrier>> all_;  // the loop's thread only
};

}  // namespace decentral
