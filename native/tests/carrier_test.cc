// Carriers by themselves: two of them on one connection, and what strangers may do to one.
#include <atomic>
#include <mutex>
#include <thread>

#include "link/carriers.h"
#include "tests/raw_pair.h"

using namespace decentral;
using namespace decentral::test;

namespace {

// One end of a raw connection with its carrier; lanes that the other end opens gather here.
struct End {
  explicit End(Fd raw, bool opener, int forget_ms = Carrier::kForgetMs) {
    auto [far, inner] = LocalPair();
    control = std::move(far);
    carrier = carriers.Start(
        std::move(raw), opener, std::move(inner),
        [this](Fd fd) {
          std::lock_guard<std::mutex> lock(mutex);
          opened.push_back(std::move(fd));
        },
        [this] { broken = true; }, forget_ms);
  }
  Fd TakeOpened() {
    Fd out;
    CHECK(Eventually([&] {
      std::lock_guard<std::mutex> lock(mutex);
      if (opened.empty()) return false;
      out = std::move(opened.front());
      opened.pop_front();
      return true;
    }));
    return out;
  }

  std::mutex mutex;
  std::deque<Fd> opened;  // guarded by mutex
  std::atomic<bool> broken{false};
  Fd control;
  Carriers carriers;  // its thread ends first
  std::shared_ptr<Carrier> carrier;
};

// The preamble is ControlPlane's to read.
Fd PastPreamble(Fd raw) {
  CHECK(ReadUpTo(raw.get(), kCarrierPreambleBytes) ==
        std::string(kCarrierPreamble, kCarrierPreambleBytes));
  return raw;
}

struct Both {
  explicit Both(bool admit = true) : Both(TcpPair(), admit) {}
  Both(std::pair<Fd, Fd> raw, bool admit)
      : a(std::move(raw.first), true), b(PastPreamble(std::move(raw.second)), false) {
    if (!admit) return;
    a.carrier->Admit();
    b.carrier->Admit();
  }
  std::pair<Fd, Fd> Lane() {
    Fd near = a.carrier->Open();
    CHECK(near);
    return {std::move(near), b.TakeOpened()};
  }
  End a, b;
};

std::string Frame(CarrierFrame type, uint16_t stream, uint32_t value,
                  const std::string& tail = "") {
  uint8_t header[kCarrierHeader];
  EncodeCarrierFrame(type, stream, value, header);
  return std::string(reinterpret_cast<char*>(header), sizeof header) + tail;
}
std::string Data(uint16_t stream, size_t size) {
  return Frame(CarrierFrame::kData, stream, static_cast<uint32_t>(size), std::string(size, 'd'));
}

// An acceptor's carrier, and the raw socket of somebody who writes the frames by hand.
struct Prey {
  explicit Prey(bool admit) : Prey(TcpPair()) {
    if (admit) b.carrier->Admit();
    if (admit) CHECK(!ReadUpTo(raw.get(), kCarrierHeader).empty());  // the credit: it is done
  }
  explicit Prey(std::pair<Fd, Fd> pair)
      : raw(std::move(pair.first)), b(std::move(pair.second), false) {}
  bool Closes() {
    std::string waste(4096, '\0');
    return Eventually([&] {
      const ssize_t n = recv(raw.get(), waste.data(), waste.size(), 0);
      return n == 0 || (n < 0 && errno != EAGAIN);
    });
  }
  Fd raw;
  End b;
};

}  // namespace

TEST(lanes_carry_all_bytes_both_ways_at_once) {
  Both both;
  std::vector<std::pair<Fd, Fd>> lanes;
  lanes.emplace_back(std::move(both.a.control), std::move(both.b.control));
  for (int i = 0; i < 4; ++i) lanes.push_back(both.Lane());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < lanes.size(); ++i) {
    const std::string there = Pattern((6 << 20) + i, i), back = Pattern((3 << 20) + 7 * i, 100 + i);
    const int near = lanes[i].first.get(), far = lanes[i].second.get();
    threads.emplace_back([=] { WriteAll(near, there); });
    threads.emplace_back([=] { CHECK(ReadUpTo(far, there.size()) == there); });
    threads.emplace_back([=] { WriteAll(far, back); });
    threads.emplace_back([=] { CHECK(ReadUpTo(near, back.size()) == back); });
  }
  for (auto& thread : threads) thread.join();
}

TEST(a_half_closed_lane_goes_on_the_other_way) {
  Both both;
  auto [near, far] = both.Lane();
  WriteAll(near.get(), "all I have");
  shutdown(near.get(), SHUT_WR);
  CHECK(ReadUpTo(far.get(), 100) == "all I have");
  const std::string back = Pattern(5 << 20, 1);
  std::thread writer([&] {
    WriteAll(far.get(), back);
    far.reset();
  });
  CHECK(ReadUpTo(near.get(), SIZE_MAX) == back);
  writer.join();
}

TEST(who_does_not_read_holds_up_only_its_own_lane) {
  Both both;
  auto [near, far] = both.Lane();
  auto [near2, far2] = both.Lane();
  size_t taken = 0;
  const std::string piece(64 << 10, 'x');
  for (int idle = 0; idle < 100;) {
    const ssize_t n = send(near.get(), piece.data(), piece.size(), MSG_NOSIGNAL);
    if (n > 0) taken += n;
    idle = n > 0 ? 0 : idle + 1;
    if (n <= 0) poll(nullptr, 0, 2);
  }
  CHECK(taken >= kBulkWindow && taken < kBulkWindow + (2 << 20));  // the window and two pairs
  const std::string other = Pattern(8 << 20, 2);
  std::thread writer([&] { WriteAll(near2.get(), other); });
  CHECK(ReadUpTo(far2.get(), other.size()) == other);
  writer.join();
  CHECK(ReadUpTo(far.get(), taken) == std::string(taken, 'x'));  // and then it flows again
}

TEST(who_hangs_up_is_noticed_by_the_writer) {
  Both both;
  auto [near, far] = both.Lane();
  WriteAll(near.get(), "hello");
  CHECK(ReadUpTo(far.get(), 5) == "hello");
  far.reset();
  const std::string piece(64 << 10, 'x');
  CHECK(Eventually([&] {
    return send(near.get(), piece.data(), piece.size(), MSG_NOSIGNAL) < 0 && errno != EAGAIN;
  }));
  WriteAll(both.a.control.get(), "still here");
  CHECK(ReadUpTo(both.b.control.get(), 10) == "still here");
}

TEST(control_waits_for_little_of_what_is_bulk) {
  // A narrow path: what the kernel holds of it is what control would wait for.
  auto raw = TcpPair();
  auto relay = TcpPair();
  for (const int fd : {raw.first.get(), raw.second.get(), relay.first.get(), relay.second.get()}) {
    const int bytes = 16 << 10;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  }
  std::atomic<bool> stop{false};
  std::atomic<size_t> through{0};
  const auto copy = [&](int from, int to, bool slow) {
    std::string buffer(16 << 10, '\0');
    while (!stop) {
      pollfd waiter{from, POLLIN, 0};
      if (poll(&waiter, 1, 20) <= 0) continue;
      const ssize_t n = recv(from, buffer.data(), buffer.size(), 0);
      if (n <= 0) return;
      WriteAll(to, buffer.substr(0, n));
      if (!slow) continue;
      through += n;
      poll(nullptr, 0, 2);  // some 8 MiB/s
    }
  };
  std::thread there(copy, raw.second.get(), relay.first.get(), true);
  std::thread back(copy, relay.first.get(), raw.second.get(), false);
  {
    Both both({std::move(raw.first), std::move(relay.second)}, true);
    auto [near, far] = both.Lane();
    std::thread writer([&, fd = near.get()] {
      const std::string piece(256 << 10, 'x');
      while (!stop && send(fd, piece.data(), piece.size(), MSG_NOSIGNAL) != 0) poll(nullptr, 0, 1);
    });
    std::thread reader([&, fd = far.get()] {
      std::string waste(64 << 10, '\0');
      while (!stop) {
        pollfd waiter{fd, POLLIN, 0};
        if (poll(&waiter, 1, 20) > 0) (void)!recv(fd, waste.data(), waste.size(), 0);
      }
    });
    CHECK(Eventually([&] { return through > 1 << 20; }));
    const size_t before = through;
    WriteAll(both.a.control.get(), "urgent");
    CHECK(ReadUpTo(both.b.control.get(), 6) == "urgent");
    CHECK(through - before < 512 << 10);
    stop = true;
    writer.join();
    reader.join();
  }
  there.join();
  back.join();
}

TEST(the_end_of_lane_0_ends_the_carrier_and_its_last_words_arrive) {
  Both both;
  auto [near, far] = both.Lane();
  const std::string last = Pattern(100 << 10, 3);
  std::thread writer([&] {
    WriteAll(both.a.control.get(), last);
    both.a.control.reset();
  });
  CHECK(ReadUpTo(both.b.control.get(), SIZE_MAX) == last);
  writer.join();
  both.b.control.reset();
  CHECK(Ends(near.get()) && Ends(far.get()));
  CHECK(!both.a.broken && !both.b.broken);
  CHECK(Ends(both.a.carrier->Open().get()));  // too late
}

TEST(what_came_before_the_connection_broke_is_delivered) {
  Prey prey(true);
  // More than the pair holds: the rest waits in the carrier.
  std::string sent;
  for (int i = 0; i < 15; ++i) {
    const std::string piece = Pattern(kCarrierData, i);
    WriteAll(prey.raw.get(), Frame(CarrierFrame::kData, 0, kCarrierData, piece));
    sent += piece;
  }
  shutdown(prey.raw.get(), SHUT_WR);
  poll(nullptr, 0, 50);
  CHECK(ReadUpTo(prey.b.control.get(), SIZE_MAX) == sent);
}

TEST(hostile_frames_end_the_carrier) {
  const std::string credit = Frame(CarrierFrame::kCredit, 0, kMaxCredit - kFirstWindow);
  for (const std::string& bytes : {
           Frame(static_cast<CarrierFrame>(0), 0, 0),
           Frame(static_cast<CarrierFrame>(6), 0, 0),
           std::string("GET / HTTP/1.1\r\n\r\n"),
           Frame(CarrierFrame::kData, 0, 0),
           Frame(CarrierFrame::kData, 0, kCarrierData + 1),
           Frame(CarrierFrame::kData, 0, UINT32_MAX),
           Frame(CarrierFrame::kData, 7, 1, "x"),
           Frame(CarrierFrame::kCredit, 7, 1),
           Frame(CarrierFrame::kCredit, 0, 0),
           Frame(CarrierFrame::kCredit, 0, UINT32_MAX),
           credit + Frame(CarrierFrame::kCredit, 0, 1),
           Frame(CarrierFrame::kOpen, 0, 0),
           Frame(CarrierFrame::kOpen, 2, 0),
           Frame(CarrierFrame::kOpen, 1, 1),
           Frame(CarrierFrame::kOpen, 1, 0) + Frame(CarrierFrame::kOpen, 1, 0),
           Frame(CarrierFrame::kClose, 1, 0),
           Frame(CarrierFrame::kOpen, 1, 0) + Frame(CarrierFrame::kClose, 1, 0) + Data(1, 1),
           Frame(CarrierFrame::kOpen, 1, 0) + Frame(CarrierFrame::kClose, 1, 0) +
               Frame(CarrierFrame::kClose, 1, 0),
       }) {
    Prey prey(true);
    WriteAll(prey.raw.get(), bytes);
    CHECK(prey.Closes());
    CHECK(Ends(prey.b.control.get()));
    CHECK(Eventually([&] { return prey.b.broken.load(); }));
  }
}

TEST(more_than_was_granted_ends_the_carrier) {
  Prey prey(true);
  WriteAll(prey.raw.get(), Frame(CarrierFrame::kOpen, 1, 0));
  const Fd lane = prey.b.TakeOpened();
  CHECK(ReadUpTo(prey.raw.get(), kCarrierHeader).size() == kCarrierHeader);  // its credit
  const std::string piece = Data(1, kCarrierData);
  for (uint32_t sent = 0; sent < kBulkWindow; sent += kCarrierData) {
    WriteAll(prey.raw.get(), piece);
    std::string waste(64, '\0');
    CHECK(recv(prey.raw.get(), waste.data(), waste.size(), MSG_PEEK | MSG_DONTWAIT) != 0);
  }
  CHECK(!prey.b.broken);
  (void)!send(prey.raw.get(), piece.data(), piece.size(), MSG_NOSIGNAL);
  CHECK(prey.Closes() && Eventually([&] { return prey.b.broken.load(); }));
}

TEST(too_many_lanes_end_the_carrier) {
  Prey prey(true);
  for (int i = 1; i < kMaxCarrierStreams; ++i) {
    WriteAll(prey.raw.get(), Frame(CarrierFrame::kOpen, static_cast<uint16_t>(i), 0));
  }
  std::vector<Fd> lanes;
  for (int i = 1; i < kMaxCarrierStreams; ++i) lanes.push_back(prey.b.TakeOpened());
  CHECK(!prey.b.broken);
  WriteAll(prey.raw.get(), Frame(CarrierFrame::kOpen, kMaxCarrierStreams, 0));
  CHECK(prey.Closes());
}

TEST(a_stranger_may_send_little_and_opens_nothing) {
  {
    Prey prey(false);
    for (uint32_t sent = 0; sent < kFirstWindow; sent += kCarrierData) {
      WriteAll(prey.raw.get(), Data(0, kCarrierData));
    }
    CHECK(ReadUpTo(prey.b.control.get(), kFirstWindow).size() == kFirstWindow);
    poll(nullptr, 0, 20);
    CHECK(!prey.b.broken);
    WriteAll(prey.raw.get(), Data(0, 1));  // no credit came back, although all was read
    CHECK(prey.Closes() && Eventually([&] { return prey.b.broken.load(); }));
  }
  {
    Prey prey(false);
    WriteAll(prey.raw.get(), Frame(CarrierFrame::kOpen, 1, 0));
    CHECK(prey.Closes() && Eventually([&] { return prey.b.broken.load(); }));
  }
  {
    Prey prey(false);  // frames that carry nothing count as well
    std::string crumbs;
    for (int i = 0; i < 40'000; ++i) crumbs += Frame(CarrierFrame::kCredit, 0, 1);
    (void)!send(prey.raw.get(), crumbs.data(), crumbs.size(), MSG_NOSIGNAL);
    CHECK(prey.Closes() && Eventually([&] { return prey.b.broken.load(); }));
  }
}

TEST(bbr_waits_until_the_least_rtt_is_to_be_trusted) {
  auto [near, far] = TcpPair();
  const int fd = near.get();
  TuneBulkSocket(fd, "bbr");
  if (Congestion(fd) != "bbr") return;  // not on this system
  End end(std::move(near), true, 300);
  CHECK(Eventually([&] { return Congestion(fd) != "bbr"; }));
  CHECK(Eventually([&] { return Congestion(fd) == "bbr"; }));
  CHECK(!end.broken);
}

TEST(lanes_come_and_go_and_leak_nothing) {
  Both both;
  {
    both.Lane();
  }
  poll(nullptr, 0, 20);
  const int before = OpenFds();
  for (int i = 0; i < 300; ++i) {
    auto [near, far] = both.Lane();
    WriteAll(near.get(), "there");
    if (i % 3 == 0) far.reset();
    if (i % 3 == 1) {
      CHECK(ReadUpTo(far.get(), 5) == "there");
      shutdown(far.get(), SHUT_WR);
      near.reset();
    }
  }
  CHECK(Eventually([&] { return OpenFds() <= before; }));
  CHECK(!both.a.broken && !both.b.broken);
}

TEST_MAIN()
