// A long path in one process: a TCP relay that adds delay to both directions and gives every
// connection a rate of its own, as loss on a long path does. Everything on one thread.
//
//     dialer ◀──▶ [port()]  queue, `delay_ms` old when it leaves, `bytes_per_ms` at most  ◀──▶ to
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <deque>
#include <list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/endpoint_helper.h"

namespace decentral::test {

class SlowRelay {
 public:
  // What becomes of a connection that is one too many.
  enum class Surplus { kClosed, kIgnored };

  SlowRelay(uint16_t to, int delay_ms, double bytes_per_ms)
      : to_(to),
        delay_ms_(delay_ms),
        bytes_per_ms_(bytes_per_ms),
        listener_(RawSocket::Listen(&port_)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~SlowRelay() {
    stop_ = true;
    thread_.join();
  }

  uint16_t port() const { return port_; }
  int accepted() const { return accepted_; }
  bool listens() const { return listening_; }
  // From now on.
  void Refuse(Surplus how) {
    surplus_ = how;
    limit_ = accepted_.load();
  }
  // Nobody listens any more.
  void CloseListener() {
    closing_ = true;
    CHECK(Eventually([&] { return !listening_; }));
  }

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Piece {
    Time due;
    std::string bytes;
    size_t sent = 0;
  };
  struct Way {
    int from = -1, to = -1;
    std::deque<Piece> queue = {};
    double allowance = 0;  // bytes that may be read now
    bool ended = false;    // nothing more comes in
    bool closed = false;   // nothing more goes out
  };
  struct Line {
    RawSocket near, far;
    Way there, back;
  };
  static constexpr size_t kPiece = 8 << 10;
  static constexpr int kKernelBytes = 16
                                      << 10;  // else the kernel's queues make a path of their own

  static void Prepare(int fd) {
    for (const int option : {SO_RCVBUF, SO_SNDBUF}) {
      setsockopt(fd, SOL_SOCKET, option, &kKernelBytes, sizeof kKernelBytes);
    }
  }

  void Accept() {
    RawSocket near = listener_.Accept();
    if (near.fd() < 0) return;
    if (++accepted_ > limit_) {
      if (surplus_ == Surplus::kIgnored) ignored_.push_back(std::move(near));
      return;
    }
    Line line{std::move(near), RawSocket::Connect(to_), {}, {}};
    Prepare(line.near.fd());
    Prepare(line.far.fd());
    line.there = {.from = line.near.fd(), .to = line.far.fd()};
    line.back = {.from = line.far.fd(), .to = line.near.fd()};
    lines_.push_back(std::move(line));
  }

  // False: the connection is broken.
  bool Move(Way& way, Time now, double passed_ms) {
    way.allowance = std::min(way.allowance + passed_ms * bytes_per_ms_, 10 * bytes_per_ms_);
    while (!way.ended && way.allowance >= 1) {
      std::string bytes(std::min(kPiece, static_cast<size_t>(way.allowance)), '\0');
      const ssize_t n = recv(way.from, bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (n < 0) return false;
      way.ended = n == 0;
      bytes.resize(static_cast<size_t>(n));
      way.allowance -= static_cast<double>(n);
      if (n > 0) way.queue.push_back({now + std::chrono::milliseconds(delay_ms_), bytes});
    }
    while (!way.queue.empty() && way.queue.front().due <= now) {
      Piece& piece = way.queue.front();
      const ssize_t n = send(way.to, piece.bytes.data() + piece.sent,
                             piece.bytes.size() - piece.sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (n < 0) return false;
      piece.sent += static_cast<size_t>(n);
      if (piece.sent == piece.bytes.size()) way.queue.pop_front();
    }
    if (way.ended && way.queue.empty() && !way.closed) {
      way.closed = true;
      shutdown(way.to, SHUT_WR);
    }
    return true;
  }

  void Run() {
    Time last = std::chrono::steady_clock::now();
    while (!stop_) {
      if (closing_) {
        listener_.Close();
        listening_ = closing_ = false;
      }
      pollfd waiter{listener_.fd(), POLLIN, 0};
      if (poll(&waiter, 1, 1) > 0) Accept();
      const Time now = std::chrono::steady_clock::now();
      const double passed_ms = std::chrono::duration<double, std::milli>(now - last).count();
      last = now;
      lines_.remove_if([&](Line& line) {
        const bool fine = Move(line.there, now, passed_ms) && Move(line.back, now, passed_ms);
        return !fine || (line.there.closed && line.back.closed);
      });
    }
  }

  const uint16_t to_;
  const int delay_ms_;
  const double bytes_per_ms_;
  uint16_t port_ = 0;
  RawSocket listener_;
  std::atomic<int> accepted_{0}, limit_{INT_MAX};
  std::atomic<Surplus> surplus_{Surplus::kClosed};
  std::atomic<bool> listening_{true}, closing_{false}, stop_{false};
  // The thread's own.
  std::list<Line> lines_;
  std::vector<RawSocket> ignored_;
  std::thread thread_;
};

}  // namespace decentral::test
