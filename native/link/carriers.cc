#include "link/carriers.h"

namespace decentral {

std::shared_ptr<Carrier> Carriers::Start(Fd raw, bool opener, Fd control,
                                         std::function<void(Fd)> on_stream,
                                         std::function<void()> on_broken, int forget_ms) {
  if (!loop_) {
    loop_ = std::make_unique<Reactor>();
    loop_->Start();
  }
  auto self = std::make_shared<std::weak_ptr<Carrier>>();
  Carrier::Calls calls;
  calls.on_stream = std::move(on_stream);
  calls.on_broken = std::move(on_broken);
  calls.on_end = [this, self] { all_.erase(self->lock()); };
  auto carrier = std::make_shared<Carrier>(loop_.get(), std::move(raw), opener, std::move(control),
                                           std::move(calls), forget_ms);
  *self = carrier;
  loop_->Post([this, carrier] {
    all_.insert(carrier);
    carrier->Start();
  });
  return carrier;
}

void Carriers::Stop() {
  if (!loop_ || stopped_) return;
  stopped_ = true;
  loop_->RunSync([this] {
    const auto all = all_;
    for (const auto& carrier : all) carrier->Stop();
  });
  loop_->Stop();
}

}  // namespace decentral
