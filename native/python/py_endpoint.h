// An Endpoint, its collective engine, and the Python memory that both are using.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "collective/engine.h"
#include "link/endpoint.h"
#include "python/values.h"

namespace decentral {

// Python objects whose memory native threads are using, by a number of ours.
class Lent {
 public:
  uint64_t Keep(nb::object object) {
    std::lock_guard lock(mutex_);
    objects_.emplace(++last_, std::move(object));
    return last_;
  }
  void Return(uint64_t key) {  // any thread, no GIL
    std::lock_guard lock(mutex_);
    returned_.push_back(key);
  }
  void Reap() {  // with the GIL
    std::vector<nb::object> drop;
    std::lock_guard lock(mutex_);
    for (uint64_t key : returned_) {
      if (auto it = objects_.find(key); it != objects_.end()) {
        drop.push_back(std::move(it->second));
        objects_.erase(it);
      }
    }
    returned_.clear();
  }

 private:
  std::mutex mutex_;
  uint64_t last_ = 0;
  std::map<uint64_t, nb::object> objects_;  // GUARDED_BY(mutex_)
  std::vector<uint64_t> returned_;          // GUARDED_BY(mutex_)
};

class PyEndpoint {
 public:
  // The engine is there from the start: a faster peer's kOpReady may come before our first call.
  explicit PyEndpoint(EndpointOptions options)
      : endpoint_(std::make_unique<Endpoint>(options)),
        engine_(Engine::Create(endpoint_->bulk(), endpoint_->id())) {
    endpoint_->SetBulkHandler(engine_.get());
  }
  ~PyEndpoint() { Close(); }

  Endpoint& get() {
    if (!endpoint_) throw Error(ErrorKind::kConfig, "endpoint", "this endpoint is closed");
    return *endpoint_;
  }
  void Close() {
    if (!endpoint_) return;
    {
      nb::gil_scoped_release release;
      engine_->Close();  // fails running operations
      endpoint_->SetBulkHandler(nullptr);
      engine_.reset();
      endpoint_.reset();
    }
    posted_.clear();
    lent_->Reap();
  }
  Engine& engine() {
    get();
    return *engine_;
  }

  void SendBlob(LinkId link, uint64_t key, nb::object owner) {
    auto view =
        nb::cast<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(owner);
    lent_->Reap();
    const uint64_t loan = lent_->Keep(owner);
    auto lent = lent_;  // outlives us if the data thread is late
    get().SendBlob(link, key, view.data(), view.size(), [lent, loan] { lent->Return(loan); });
  }
  void PostBlob(LinkId link, uint64_t key, nb::object owner) {
    auto view =
        nb::cast<nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(owner, false);
    posted_[key] = owner;
    Endpoint& endpoint = get();
    nb::gil_scoped_release release;
    endpoint.PostBlob(link, key, view.data(), view.size());
  }
  void CancelBlob(uint64_t key) {
    {
      nb::gil_scoped_release release;
      get().CancelBlob(key);
    }
    posted_.erase(key);
  }
  std::vector<Event> TakeEvents() {
    auto events = get().TakeEvents();
    for (const Event& event : events) {
      if (event.type == Event::Type::kBlob || event.type == Event::Type::kBlobFailed) {
        posted_.erase(event.seq);
      }
    }
    lent_->Reap();
    return events;
  }

 private:
  std::unique_ptr<Endpoint> endpoint_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<Lent> lent_ = std::make_shared<Lent>();
  std::map<uint64_t, nb::object> posted_;  // by blob key
};

}  // namespace decentral
