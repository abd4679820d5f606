// Many attempts at once, for where exactly one side's NAT gives every connection another port. That
// side opens many sockets to the other's address: as many ports of its NAT now wait for an answer.
// The other side knocks at ports at random, from its one address, until it hits one of them: with
// 256 open, one knock in 252 does.
//
//   sockets ─▶ [NAT, a port for each] ──▶ ·  ◀── [NAT, one port] ◀─ spray
//
// What completes may be anything that listens there. All that does is handed on, and whoever is
// not the peer fails in TLS.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <random>
#include <unordered_set>

#include "io/reactor.h"
#include "io/socket.h"

namespace decentral {

struct BirthdayOptions {
  SockAddr to;
  uint16_t local_port = 0;  // of the spray
  int sockets = 1;          // to this very port, from ports of the system's choice
  int spray = 0;            // other ports of this host, at random
  uint16_t first_port = 1024, last_port = UINT16_MAX;
};

class Birthday {
 public:
  // As often as one completes. The loop's thread, like all calls.
  using Connected = std::function<void(Fd, const SockAddr& remote)>;

  Birthday(Reactor* loop, const BirthdayOptions& options, Connected connected);
  ~Birthday();
  Birthday(const Birthday&) = delete;

  void Start();
  // The same host, whatever the port?
  bool Matches(const SockAddr& remote) const;

 private:
  struct Attempt {
    Fd fd;
    SockAddr to;
  };

  void Try(const SockAddr& to, uint16_t local_port);
  void Writable(int fd);
  void SprayBatch();
  uint16_t RandomPort();

  Reactor* const loop_;
  const BirthdayOptions options_;
  const Connected connected_;
  // Timers and posted work outlive us.
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::mt19937 random_;
  std::unordered_set<uint16_t> tried_;
  std::list<Attempt> attempts_;  // oldest first
  int left_ = 0;                 // of the spray
};

}  // namespace decentral
