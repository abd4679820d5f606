// The event loop, over epoll and over poll: descriptors, timers, posted work, forked children.
#include "io/reactor.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "tests/check.h"

using namespace decentral;

namespace {

struct Both {
  template <typename F>
  static void Run(F test) {
    test(Poller::Epoll());
    test(Poller::Poll());
  }
};

struct SocketPair {
  SocketPair() { CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0); }
  ~SocketPair() {
    for (const int end : ends) close(end);
  }
  int ends[2];
};

class Gate {
 public:
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    CHECK(changed_.wait_for(lock, std::chrono::seconds(10), [&] { return open_; }));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

}  // namespace

TEST(posted_work_runs_in_order_on_the_loop) {
  Both::Run([](std::unique_ptr<Poller> poller) {
    Reactor loop(std::move(poller));
    std::vector<int> order;
    loop.Post([&] { order.push_back(0); });
    loop.Start();
    for (int i = 1; i < 100; ++i) loop.Post([&, i] { order.push_back(i); });
    bool inside = false;
    loop.RunSync([&] { inside = loop.InLoop(); });
    CHECK(inside && !loop.InLoop());
    for (int i = 0; i < 100; ++i) CHECK(order[i] == i);
  });
}

TEST(timers_fire_in_time_order_and_can_be_cancelled) {
  Both::Run([](std::unique_ptr<Poller> poller) {
    Reactor loop(std::move(poller));
    std::vector<int> order;
    Gate done;
    loop.Start();
    loop.RunSync([&] {
      loop.After(30, [&] {
        order.push_back(30);
        done.Open();
      });
      loop.After(10, [&] { order.push_back(10); });
      const auto never = loop.After(20, [&] { order.push_back(20); });
      loop.Cancel(never);
      loop.After(0, [&] { order.push_back(0); });
    });
    done.Wait();
    CHECK((order == std::vector<int>{0, 10, 30}));
  });
}

TEST(descriptors_report_and_can_be_removed_from_within) {
  Both::Run([](std::unique_ptr<Poller> poller) {
    Reactor loop(std::move(poller));
    SocketPair pair;
    std::atomic<int> calls{0};
    Gate writable, read;
    loop.Start();
    loop.RunSync([&] {
      loop.Add(pair.ends[0], Reactor::kWrite, [&](uint32_t events) {
        if (events & Reactor::kWrite) {
          loop.Modify(pair.ends[0], Reactor::kRead);
          writable.Open();
        }
        if (events & Reactor::kRead) {
          ++calls;
          loop.Remove(pair.ends[0]);  // level-triggered: without it there would be more calls
          loop.After(20, [&] { read.Open(); });
        }
      });
    });
    writable.Wait();
    CHECK(write(pair.ends[1], "x", 1) == 1);
    read.Wait();
    CHECK(calls == 1);
  });
}

TEST(a_callback_may_remove_another_that_is_ready) {
  Both::Run([](std::unique_ptr<Poller> poller) {
    Reactor loop(std::move(poller));
    SocketPair a, b;
    int calls = 0;
    CHECK(write(a.ends[1], "x", 1) == 1 && write(b.ends[1], "x", 1) == 1);
    Gate done;
    loop.Start();
    loop.RunSync([&] {
      for (const int fd : {a.ends[0], b.ends[0]}) {
        loop.Add(fd, Reactor::kRead, [&](uint32_t) {
          ++calls;
          loop.Remove(a.ends[0]);
          loop.Remove(b.ends[0]);
          loop.After(20, [&] { done.Open(); });
        });
      }
    });
    done.Wait();
    CHECK(calls == 1);
  });
}

TEST(a_forked_child_holds_none_of_our_descriptors) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  Fd ours = Fd::Open([&] { return ends[0]; });
  const uint32_t generation = ForkGeneration();
  int hold[2];
  CHECK(pipe(hold) == 0);
  const pid_t child = fork();
  if (child == 0) {
    close(ends[1]);
    char c;
    close(hold[1]);
    (void)!read(hold[0], &c, 1);  // lives until the parent lets go
    _exit(ForkGeneration() == generation + 1 ? 0 : 1);
  }
  close(hold[0]);
  ours.reset();
  char byte;
  CHECK(read(ends[1], &byte, 1) == 0);  // EOF, though the child lives
  close(hold[1]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(ForkGeneration() == generation);
  close(ends[1]);
}

TEST_MAIN()
