// Events on their way to whoever runs the layer above, with a descriptor that is readable while
// there are any.
#pragma once

#include <mutex>
#include <vector>

#include "io/wakeup.h"
#include "link/endpoint.h"

namespace decentral {

class EventQueue {
 public:
  void Push(Event event) {
    std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back(std::move(event));
    if (events_.size() == 1) wakeup_.Set();
  }
  std::vector<Event> Take() {
    std::vector<Event> out;
    std::lock_guard<std::mutex> lock(mutex_);
    out.swap(events_);
    if (!out.empty()) wakeup_.Clear();
    return out;
  }
  int fd() const { return wakeup_.fd(); }

 private:
  Wakeup wakeup_;
  std::mutex mutex_;
  std::vector<Event> events_;  // guarded by mutex_
};

}  // namespace decentral
