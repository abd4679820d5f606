// Many attempts at once: what they find, and that one link comes of them.
#include "link/birthday.h"

#include <set>
#include <thread>
#include <vector>

#include "io/reactor.h"
#include "tests/endpoint_helper.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

namespace {

DialOptions Many(Node& to, uint16_t port, int sockets, int spray, uint16_t local_port,
                 int timeout_ms = 5000) {
  DialOptions dial;
  dial.host = "127.0.0.1";
  dial.port = port;
  dial.has_expected = true;
  dial.expected = to.endpoint.id();
  dial.timeout_ms = timeout_ms;
  dial.local_port = local_port;
  dial.role = Role::kById;
  dial.carrier = true;
  dial.sockets = sockets;
  dial.spray = spray;
  return dial;
}

}  // namespace

TEST(a_spray_finds_the_one_port_that_listens_and_tries_none_twice) {
  uint16_t port;
  RawSocket listener = RawSocket::Listen(&port, 64);
  Reactor loop;
  loop.Start();
  std::atomic<int> found{0};
  std::unique_ptr<Birthday> birthday;
  BirthdayOptions options;
  // Some 300 ports of which this is one, and not the one that is named.
  options.first_port = static_cast<uint16_t>(std::min<int>(port, 65000) - 150);
  options.last_port = static_cast<uint16_t>(options.first_port + 300);
  options.to = *ParseLiteral("127.0.0.1", options.first_port);
  options.spray = 8192;
  loop.RunSync([&] {
    birthday = std::make_unique<Birthday>(&loop, options, [&](Fd, const SockAddr& remote) {
      if (remote.port() == port) ++found;
    });
    birthday->Start();
  });
  CHECK(Eventually([&] { return found == 1; }));
  poll(nullptr, 0, 300);
  CHECK(found == 1);
  loop.RunSync([&] { birthday.reset(); });
  loop.Stop();
}

TEST(one_link_comes_of_many_connections_whoever_is_the_client) {
  for (const bool sprayer_is_lower : {true, false}) {
    Node one(1), two(2);
    const bool one_is_lower = one.endpoint.id() < two.endpoint.id();
    Node& sprayer = one_is_lower == sprayer_is_lower ? one : two;
    Node& other = &sprayer == &one ? two : one;
    const uint16_t port = sprayer.endpoint.Listen("127.0.0.1", 0);
    uint16_t nowhere;
    RawSocket::Listen(&nowhere);
    const uint64_t spray = sprayer.endpoint.Dial(Many(other, nowhere, 1, 4, port));
    const uint64_t sockets = other.endpoint.Dial(Many(sprayer, port, 48, 0, 0));
    const Event up_s = sprayer.Wait(Type::kLinkUp), up_o = other.Wait(Type::kLinkUp);
    CHECK(up_s.dial == spray && up_o.dial == sockets);
    CHECK(up_s.exporter == up_o.exporter && up_s.carrier && up_o.carrier);
    CHECK(up_s.inbound == !sprayer_is_lower && up_o.inbound == sprayer_is_lower);
    sprayer.endpoint.Admit(up_s.link);
    other.endpoint.Admit(up_o.link);
    CHECK(Eventually([&] {
      return sprayer.endpoint.Counters().half_open == 0 && other.endpoint.Counters().half_open == 0;
    }));
    sprayer.endpoint.Send(up_s.link, "met");
    CHECK(other.Wait(Type::kMessage).data == "met");
    Event none;
    CHECK(!sprayer.WaitFor(Type::kLinkUp, 100, &none) && !other.WaitFor(Type::kLinkUp, 0, &none));
    CHECK(!sprayer.WaitFor(Type::kDialFailed, 0, &none));
    CHECK(!other.WaitFor(Type::kDialFailed, 0, &none));
  }
}

TEST(whoever_else_listens_there_does_not_end_the_search) {
  uint16_t port;
  RawSocket web = RawSocket::Listen(&port, 64);
  std::atomic<bool> stop{false};
  std::thread server([&] {
    std::vector<RawSocket> clients;
    while (!stop) {
      pollfd waiter{web.fd(), POLLIN, 0};
      if (poll(&waiter, 1, 20) <= 0) continue;
      clients.push_back(web.Accept());
      clients.back().Write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    }
  });
  const int before = OpenFds();
  {
    Node a(1), b(2);
    const uint64_t number = a.endpoint.Dial(Many(b, port, 8, 0, 0, 400));
    const Event failed = a.Wait(Type::kDialFailed);
    CHECK(failed.dial == number && failed.error.kind == ErrorKind::kUnreachable);
    CHECK(failed.error.text.find("none of many") != std::string::npos);
  }
  stop = true;
  server.join();
  CHECK(OpenFds() <= before);
}

TEST(a_refused_socket_keeps_knocking) {
  Node a(1), b(2);
  uint16_t port;
  RawSocket::Listen(&port);  // closed again
  a.endpoint.Dial(Many(b, port, 16, 0, 0));
  poll(nullptr, 0, 250);
  b.endpoint.Listen("127.0.0.1", port);
  b.endpoint.Dial(Many(a, 1, 1, 1, port));
  const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
  CHECK(up_a.peer == b.endpoint.id() && up_b.peer == a.endpoint.id());
}

TEST(a_plain_link_that_comes_in_answers_a_simultaneous_open) {
  Node a(1), b(2);
  const uint16_t port = a.endpoint.Listen("127.0.0.1", 0);
  uint16_t nowhere;
  RawSocket::Listen(&nowhere);
  DialOptions punch = Many(b, nowhere, 1, 0, port);
  const uint64_t number = a.endpoint.Dial(punch);
  b.Dial(port);
  const Event up = a.Wait(Type::kLinkUp);
  CHECK(up.dial == number && up.inbound && up.peer == b.endpoint.id());
}

TEST(what_cannot_work_is_said_at_once) {
  Node a(1), b(2);
  const auto fails = [&](DialOptions dial) {
    a.endpoint.Dial(dial);
    return a.Wait(Type::kDialFailed, 1000).error.kind == ErrorKind::kConfig;
  };
  CHECK(fails(Many(b, 1, 0, 0, 0)) && fails(Many(b, 1, 513, 0, 0)));
  CHECK(fails(Many(b, 1, 1, -1, 7)) && fails(Many(b, 1, 1, 8193, 7)));
  CHECK(fails(Many(b, 1, 2, 2, 7)) && fails(Many(b, 1, 1, 2, 0)) && fails(Many(b, 1, 2, 0, 7)));
  DialOptions named = Many(b, 1, 2, 0, 0), client = named;
  named.host = "localhost";
  client.role = Role::kClient;
  CHECK(fails(named) && fails(client));
}

TEST_MAIN()
