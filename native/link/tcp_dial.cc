#include "link/tcp_dial.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

namespace decentral {
namespace {

constexpr int kHeadStartMs = 250;
constexpr int kPunchAgainMs = 20;

std::string Sentence(const std::string& target, int error, uint16_t local_port) {
  if (local_port != 0 && (error == EADDRNOTAVAIL || error == EADDRINUSE)) {
    return "port " + std::to_string(local_port) + " is connected to " + target + " already";
  }
  switch (error) {
    case ECONNREFUSED:
      return target + " refused the connection: nothing listens there";
    case ETIMEDOUT:
      return target + " does not answer";
    case EHOSTUNREACH:
    case ENETUNREACH:
      return target + " cannot be reached from here: no route";
    default:
      return target + " cannot be reached: " + std::strerror(error);
  }
}

}  // namespace

TcpDial::TcpDial(Reactor* reactor, std::shared_ptr<ResolverGate> gate, TcpDialOptions options,
                 Done done)
    : reactor_(reactor),
      gate_(std::move(gate)),
      options_(std::move(options)),
      target_(HostPort(options_.host, options_.port)),
      done_(std::move(done)) {}

TcpDial::~TcpDial() { Cancel(); }

void TcpDial::Start() {
  if (auto literal = ParseLiteral(options_.host, options_.port)) return Resolved({*literal}, "");
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([weak = weak_from_this(), gate = gate_, host = options_.host, port = options_.port] {
    std::string why;
    auto addresses = Resolve(host, port, &why);
    gate->Post([weak, addresses = std::move(addresses), why] {
      if (auto self = weak.lock()) self->Resolved(addresses, why);
    });
  }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void TcpDial::Cancel() {
  done_ = nullptr;
  if (timer_ != 0) reactor_->Cancel(timer_);
  timer_ = 0;
  for (const Attempt& attempt : attempts_) reactor_->Remove(attempt.fd.get());
  attempts_.clear();
}

bool TcpDial::Matches(const SockAddr& remote) const {
  return std::find(addresses_.begin(), addresses_.end(), remote) != addresses_.end();
}

void TcpDial::Resolved(std::vector<SockAddr> addresses, const std::string& why) {
  if (!done_) return;
  if (addresses.empty()) {
    return Finish(Fd(), {},
                  Error(ErrorKind::kUnreachable, "dial",
                        "the name '" + options_.host + "' does not resolve to an address: " + why));
  }
  addresses_ = std::move(addresses);
  TryNext();
}

void TcpDial::TryNext() {
  if (timer_ != 0) reactor_->Cancel(timer_);
  timer_ = 0;
  if (!done_ || next_ >= addresses_.size()) return;
  const SockAddr to = addresses_[next_++];
  Fd fd = StartConnect(to, options_.local_port);
  if (!fd) return AttemptFailed(errno, to);
  const int raw = fd.get();
  attempts_.push_back({std::move(fd), to});
  reactor_->Add(raw, Reactor::kWrite, [this, raw](uint32_t) {
    const auto keep = shared_from_this();
    Writable(raw);
  });
  if (next_ < addresses_.size()) {
    timer_ = reactor_->After(kHeadStartMs, [this] {
      timer_ = 0;
      TryNext();
    });
  }
}

void TcpDial::Writable(int fd) {
  const auto at = std::find_if(attempts_.begin(), attempts_.end(),
                               [fd](const Attempt& one) { return one.fd.get() == fd; });
  if (at == attempts_.end()) return;
  int error = ConnectResult(fd);
  // A dead port of the ephemeral range can be picked as our own: TCP then connects to itself.
  if (error == 0 && LocalAddress(fd) == at->to) error = ECONNREFUSED;
  reactor_->Remove(fd);
  Attempt attempt = std::move(*at);
  attempts_.erase(at);
  if (error == 0) return Finish(std::move(attempt.fd), attempt.to, Error());
  attempt.fd.reset();
  AttemptFailed(error, attempt.to);
}

void TcpDial::AttemptFailed(int error, const SockAddr& to) {
  if (options_.patient) {
    // Until the caller's timeout: refused now may be a simultaneous open in a moment, and
    // EADDRNOTAVAIL says that this very connection is on its way in.
    if (timer_ == 0) {
      timer_ = reactor_->After(kPunchAgainMs, [this] {
        const auto keep = shared_from_this();
        timer_ = 0;
        if (next_ >= addresses_.size()) next_ = 0;
        TryNext();
      });
    }
    return;
  }
  const std::string at =
      ParseLiteral(options_.host, options_.port) ? target_ : target_ + " (" + to.ToString() + ")";
  last_error_ = Error(ErrorKind::kUnreachable, "dial", Sentence(at, error, options_.local_port));
  if (next_ < addresses_.size()) return TryNext();
  if (attempts_.empty()) Finish(Fd(), to, last_error_);
}

void TcpDial::Finish(Fd fd, const SockAddr& remote, const Error& error) {
  const Done done = std::move(done_);
  Cancel();
  if (done) done(std::move(fd), remote, error);
}

}  // namespace decentral
