#include "link/birthday.h"

#include <algorithm>

namespace decentral {
namespace {

constexpr int kBatch = 64;
constexpr int kBatchMs = 20;
constexpr int kAgainMs = 100;
// Descriptors are few. What is closed has opened the NAT all the same: the answer then comes to the
// listener of that port.
constexpr size_t kMostAttempts = 512;

}  // namespace

Birthday::Birthday(Reactor* loop, const BirthdayOptions& options, Connected connected)
    : loop_(loop),
      options_(options),
      connected_(std::move(connected)),
      random_(std::random_device()()),
      left_(options.spray) {
  tried_.insert(options_.to.port());
}

Birthday::~Birthday() {
  *alive_ = false;
  for (const Attempt& attempt : attempts_) loop_->Remove(attempt.fd.get());
}

void Birthday::Start() {
  for (int i = 0; i < options_.sockets; ++i) Try(options_.to, options_.local_port);
  if (left_ > 0) SprayBatch();
}

bool Birthday::Matches(const SockAddr& remote) const {
  SockAddr other = remote;
  other.set_port(options_.to.port());
  return other == options_.to;
}

void Birthday::Try(const SockAddr& to, uint16_t local_port) {
  while (attempts_.size() >= kMostAttempts) {
    loop_->Remove(attempts_.front().fd.get());
    attempts_.pop_front();
  }
  Fd fd = StartConnect(to, local_port);
  if (!fd) return;  // out of descriptors or ports: there are others
  const int raw = fd.get();
  attempts_.push_back({std::move(fd), to});
  loop_->Add(raw, Reactor::kWrite, [this, raw](uint32_t) { Writable(raw); });
}

void Birthday::Writable(int fd) {
  const auto at = std::find_if(attempts_.begin(), attempts_.end(),
                               [fd](const Attempt& one) { return one.fd.get() == fd; });
  if (at == attempts_.end()) return;
  const int error = ConnectResult(fd);
  const uint16_t local_port = LocalAddress(fd).port();
  const bool itself = error == 0 && LocalAddress(fd) == at->to;  // see TcpDial::Writable
  loop_->Remove(fd);
  Attempt attempt = std::move(*at);
  attempts_.erase(at);
  if (error == 0 && !itself) return connected_(std::move(attempt.fd), attempt.to);
  // A knock that was refused has done its work. A socket keeps knocking, from the same port: its
  // NAT has given it one, and the other side has yet to hit it.
  if (!(attempt.to == options_.to)) return;
  attempt.fd.reset();
  loop_->After(kAgainMs, [this, alive = alive_, to = attempt.to, local_port] {
    if (*alive) Try(to, local_port);
  });
}

uint16_t Birthday::RandomPort() {
  std::uniform_int_distribution<int> any(options_.first_port, options_.last_port);
  while (true) {
    const auto port = static_cast<uint16_t>(any(random_));
    if (tried_.insert(port).second) return port;
  }
}

void Birthday::SprayBatch() {
  const int untried =
      options_.last_port - options_.first_port + 1 - static_cast<int>(tried_.size());
  left_ = std::min(left_, std::max(untried, 0));
  const int count = std::min(left_, kBatch);
  left_ -= count;
  for (int i = 0; i < count; ++i) {
    SockAddr to = options_.to;
    to.set_port(RandomPort());
    Try(to, options_.local_port);
  }
  if (left_ == 0) return;
  loop_->After(kBatchMs, [this, alive = alive_] {
    if (*alive) SprayBatch();
  });
}

}  // namespace decentral
