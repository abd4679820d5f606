// Gets one TCP connection to a host: resolves its name off the loop, tries its addresses with a
// head start of 250 ms each, keeps the first that connects. In a simultaneous open it tries again
// when refused, because the other end may only be about to start.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/types.h"
#include "io/reactor.h"
#include "io/socket.h"

namespace decentral {

// Lets a resolver thread that is stuck in getaddrinfo outlive the endpoint.
class ResolverGate {
 public:
  explicit ResolverGate(Reactor* reactor) : reactor_(reactor) {}
  void Post(std::function<void()> work) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (reactor_ != nullptr) reactor_->Post(std::move(work));
  }
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    reactor_ = nullptr;
  }

 private:
  std::mutex mutex_;
  Reactor* reactor_;  // guarded by mutex_
};

struct TcpDialOptions {
  std::string host = {};
  uint16_t port = 0;
  uint16_t local_port = 0;  // 0: any
  bool patient = false;     // a simultaneous open: being refused is no answer
};

class TcpDial : public std::enable_shared_from_this<TcpDial> {
 public:
  // Called once, on the loop's thread: a connected socket, or an error.
  using Done = std::function<void(Fd, const SockAddr& remote, const Error&)>;

  TcpDial(Reactor* reactor, std::shared_ptr<ResolverGate> gate, TcpDialOptions options, Done done);
  ~TcpDial();
  void Start();
  void StartAt(const SockAddr& address) { Resolved({address}, ""); }
  void Cancel();  // no Done after this

  const std::string& target() const { return target_; }
  bool resolving() const { return addresses_.empty(); }
  // Is this where we are dialling to?
  bool Matches(const SockAddr& remote) const;

 private:
  struct Attempt {
    Fd fd;
    SockAddr to;
  };

  void Resolved(std::vector<SockAddr> addresses, const std::string& why);
  void TryNext();
  void Writable(int fd);
  void AttemptFailed(int error, const SockAddr& to);
  void Finish(Fd fd, const SockAddr& remote, const Error& error);

  Reactor* const reactor_;
  const std::shared_ptr<ResolverGate> gate_;
  const TcpDialOptions options_;
  const std::string target_;
  Done done_;  // empty: finished or cancelled
  std::vector<SockAddr> addresses_;
  size_t next_ = 0;
  std::vector<Attempt> attempts_;
  Reactor::TimerId timer_ = 0;
  Error last_error_;
};

}  // namespace decentral
