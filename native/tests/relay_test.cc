// The blind relay: by itself on raw connections, and between three endpoints.
#include "link/relay.h"

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/raw_pair.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

namespace {

const std::string kToken(32, 't');

struct Station {
  explicit Station(uint64_t max_bytes_s = 0, int idle_limit_ms = 60'000)
      : relay(
            max_bytes_s,
            [this](const std::string& token, uint64_t bytes, const Error& why) {
              std::lock_guard<std::mutex> lock(mutex);
              ended[token] = {bytes, why};
            },
            idle_limit_ms) {}
  // The user's end.
  Fd Come(int side, const std::string& token = kToken) {
    auto [user, ours] = TcpPair();
    relay.Join(token, side, std::move(ours), [this] { ++refused; });
    return std::move(user);
  }
  Error Ended(const std::string& token = kToken) {
    Error why;
    CHECK(Eventually([&] {
      std::lock_guard<std::mutex> lock(mutex);
      const auto at = ended.find(token);
      if (at == ended.end()) return false;
      why = at->second.second;
      return true;
    }));
    return why;
  }

  std::mutex mutex;
  std::map<std::string, std::pair<uint64_t, Error>> ended;  // guarded by mutex
  std::atomic<int> refused{0};
  Relay relay;
};

double SecondsToMove(Fd& from, Fd& to, size_t bytes) {
  const auto start = Clock::now();
  std::thread writer([&] { WriteAll(from.get(), std::string(bytes, 'x')); });
  CHECK(ReadUpTo(to.get(), bytes).size() == bytes);
  writer.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Two peers and the relay between them.
struct Three {
  Three() : a(1), b(2), relay(3), port(relay.endpoint.Listen("127.0.0.1", 0)) {}
  DialOptions Dial(Node& other, uint8_t side, bool carrier, int timeout_ms = 5000) {
    return {.host = "127.0.0.1",
            .port = port,
            .has_expected = true,
            .expected = other.endpoint.id(),
            .timeout_ms = timeout_ms,
            .role = Role::kById,
            .relay_token = kToken,
            .relay_side = side,
            .carrier = carrier};
  }
  Pair Link(bool carrier) {
    relay.endpoint.OfferRelay(kToken, 0, 5000);
    a.endpoint.Dial(Dial(b, 0, carrier));
    b.endpoint.Dial(Dial(a, 1, carrier));
    const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
    CHECK(up_a.peer == b.endpoint.id() && up_b.peer == a.endpoint.id());
    CHECK(up_a.exporter == up_b.exporter && up_a.inbound != up_b.inbound);
    CHECK(up_a.carrier == carrier && up_b.carrier == carrier);
    a.endpoint.Admit(up_a.link);
    b.endpoint.Admit(up_b.link);
    return {up_a.link, up_b.link};
  }
  Node a, b, relay;
  uint16_t port;
};

}  // namespace

TEST(bytes_pass_both_ways_and_half_closes_too) {
  Station station;
  station.relay.Offer(kToken, 0, 5000);
  Fd a = station.Come(0);
  WriteAll(a.get(), "early ");  // waits in the kernel
  Fd b = station.Come(1);
  const std::string there = Pattern(20 << 20, 1), back = Pattern(20 << 20, 2);
  std::thread one([&] {
    WriteAll(a.get(), there);
    shutdown(a.get(), SHUT_WR);
  });
  std::thread two([&] { WriteAll(b.get(), back); });
  std::thread three([&] { CHECK(ReadUpTo(b.get(), SIZE_MAX) == "early " + there); });
  CHECK(ReadUpTo(a.get(), back.size()) == back);
  for (std::thread* thread : {&one, &two, &three}) thread->join();
  WriteAll(b.get(), "still there");
  CHECK(ReadUpTo(a.get(), 11) == "still there");
  const auto stats = station.relay.Stats();
  CHECK(stats.size() == 1 && stats[0].spliced && stats[0].token == kToken.substr(0, 8));
  CHECK(stats[0].bytes[0] == there.size() + 6 && stats[0].bytes[1] == back.size() + 11);
  b.reset();
  CHECK(!station.Ended());
  CHECK(Ends(a.get()));
  CHECK(station.relay.Stats().empty());
}

TEST(who_breaks_off_ends_both_sides) {
  Station station;
  station.relay.Offer(kToken, 0, 5000);
  Fd a = station.Come(0), b = station.Come(1);
  WriteAll(a.get(), "hello");
  CHECK(ReadUpTo(b.get(), 5) == "hello");
  ResetOnClose(a.get());
  a.reset();
  CHECK(station.Ended().kind == ErrorKind::kClosed);
  CHECK(Ends(b.get()));
}

TEST(only_an_offered_token_is_served_once) {
  Station station;
  CHECK(Ends(station.Come(0).get()));  // nothing is offered at all
  station.relay.Offer(kToken, 0, 5000);
  CHECK(Ends(station.Come(0, std::string(32, 'u')).get()));
  Fd a = station.Come(0);
  Fd again = station.Come(0);  // it takes its own place
  CHECK(Ends(a.get()));
  Fd b = station.Come(1);
  WriteAll(again.get(), "x");
  CHECK(ReadUpTo(b.get(), 1) == "x");
  CHECK(Ends(station.Come(1).get()));
  CHECK(station.refused == 2);
}

TEST(an_offer_does_not_stand_for_ever) {
  Station station;
  station.relay.Offer(kToken, 0, 100);
  Fd a = station.Come(0);
  CHECK(station.Ended().kind == ErrorKind::kUnreachable);
  CHECK(Ends(a.get()));
}

TEST(idle_sessions_end) {
  Station station(0, 300);
  station.relay.Offer(kToken, 0, 5000);
  Fd a = station.Come(0), b = station.Come(1);
  for (int i = 0; i < 8; ++i) {
    WriteAll(a.get(), "x");
    CHECK(ReadUpTo(b.get(), 1) == "x");
    poll(nullptr, 0, 100);
  }
  CHECK(station.relay.Stats().size() == 1);
  CHECK(station.Ended().kind == ErrorKind::kSilent);
  CHECK(Ends(a.get()) && Ends(b.get()));
}

TEST(the_one_who_offers_may_end_it) {
  Station station;
  station.relay.Offer(kToken, 0, 5000);
  Fd a = station.Come(0), b = station.Come(1);
  station.relay.End(kToken);
  CHECK(station.Ended().kind == ErrorKind::kAborted);
  CHECK(Ends(a.get()) && Ends(b.get()));
}

TEST(who_does_not_read_costs_little_and_nobody_else_anything) {
  Station station;
  const std::string other(32, 'o');
  station.relay.Offer(kToken, 0, 5000);
  station.relay.Offer(other, 0, 5000);
  Fd a = station.Come(0), b = station.Come(1);
  Fd c = station.Come(0, other), d = station.Come(1, other);
  const std::string piece(64 << 10, 'x');
  size_t taken = 0;
  for (int idle = 0; idle < 50;) {
    const ssize_t n = send(a.get(), piece.data(), piece.size(), MSG_NOSIGNAL);
    if (n > 0) taken += n;
    idle = n > 0 ? 0 : idle + 1;
    if (n <= 0) poll(nullptr, 0, 2);
  }
  CHECK(SecondsToMove(c, d, 16 << 20) < 5);
  WriteAll(b.get(), "the other way");
  CHECK(ReadUpTo(a.get(), 13) == "the other way");
  CHECK(ReadUpTo(b.get(), taken).size() == taken);
}

TEST(caps_hold_and_are_shared) {
  const std::string other(32, 'o'), slow(32, 's');
  Station station(8 << 20);
  station.relay.Offer(kToken, 0, 5000);
  station.relay.Offer(other, 0, 5000);
  station.relay.Offer(slow, 1 << 20, 5000);
  Fd a = station.Come(0), b = station.Come(1);
  Fd c = station.Come(0, other), d = station.Come(1, other);
  const double alone_s = SecondsToMove(a, b, 4 << 20);
  CHECK(alone_s > 0.4 && alone_s < 2);
  double second_s = 0;
  std::thread second([&] { second_s = SecondsToMove(c, d, 4 << 20); });
  const double first_s = SecondsToMove(a, b, 4 << 20);
  second.join();
  CHECK(std::max(first_s, second_s) > 0.8 && std::max(first_s, second_s) < 4);
  CHECK(std::min(first_s, second_s) > 0.5 * std::max(first_s, second_s));
  Fd e = station.Come(0, slow), f = station.Come(1, slow);
  CHECK(SecondsToMove(e, f, 1 << 20) > 0.8);
  station.relay.Limit(0);
  CHECK(SecondsToMove(a, b, 16 << 20) < 1);
}

TEST(a_link_through_a_relay_carries_messages_and_blobs) {
  Three three;
  const Pair link = three.Link(true);
  three.a.endpoint.Send(link.a, "over there");
  CHECK(three.b.Wait(Type::kMessage).data == "over there");
  std::vector<uint8_t> out(16 << 20), in(out.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  for (const bool back : {false, true}) {
    Node &from = back ? three.b : three.a, &to = back ? three.a : three.b;
    std::fill(in.begin(), in.end(), 0);
    to.endpoint.PostBlob(back ? link.a : link.b, 5, in.data(), in.size());
    from.endpoint.SendBlob(back ? link.b : link.a, 5, out.data(), out.size(), [] {});
    to.Wait(Type::kBlob);
    CHECK(in == out);
  }
  CHECK(three.relay.endpoint.RelayStats().size() == 1);
  CHECK(three.relay.endpoint.Counters().half_open == 0);
  three.b.endpoint.Close(link.b, "done with it");
  CHECK(three.a.Wait(Type::kLinkDown).error.text.find("done with it") != std::string::npos);
  const Event ended = three.relay.Wait(Type::kRelayEnded);
  CHECK(ended.exporter == kToken && ended.seq > 32 << 20);
}

TEST(without_a_carrier_a_relayed_link_has_a_control_stream_alone) {
  Three three;
  const Pair link = three.Link(false);
  three.b.endpoint.Send(link.b, "small talk");
  CHECK(three.a.Wait(Type::kMessage).data == "small talk");
  std::vector<uint8_t> in(100);
  three.b.endpoint.PostBlob(link.b, 5, in.data(), in.size());
  three.a.endpoint.SendBlob(link.a, 5, in.data(), in.size(), [] {});
  CHECK(three.b.Wait(Type::kBlobFailed).error.kind == ErrorKind::kConfig ||
        three.b.endpoint.id() > three.a.endpoint.id());
}

TEST(a_relay_that_dies_takes_its_links_down) {
  Three three;
  three.Link(true);
  three.relay.endpoint.EndRelay(kToken);
  CHECK(three.a.Wait(Type::kLinkDown).error.kind == ErrorKind::kClosed);
  CHECK(three.b.Wait(Type::kLinkDown).error.kind == ErrorKind::kClosed);
  CHECK(three.relay.Wait(Type::kRelayEnded).error.kind == ErrorKind::kAborted);
}

TEST(what_goes_wrong_at_a_relay_is_said) {
  Three three;
  three.a.endpoint.Dial(three.Dial(three.b, 0, true));  // no such offer
  Event failed = three.a.Wait(Type::kDialFailed);
  CHECK(failed.error.kind == ErrorKind::kUnreachable);
  CHECK(failed.error.text.find("relays this no more") != std::string::npos);
  three.relay.endpoint.OfferRelay(kToken, 0, 5000);
  three.a.endpoint.Dial(three.Dial(three.b, 0, true, 200));  // the other end does not come
  failed = three.a.Wait(Type::kDialFailed);
  CHECK(failed.error.kind == ErrorKind::kUnreachable);
  CHECK(failed.error.text.find("was not to be met") != std::string::npos);
  DialOptions odd = three.Dial(three.b, 0, true);
  odd.relay_token = "short";
  three.a.endpoint.Dial(odd);
  CHECK(three.a.Wait(Type::kDialFailed).error.kind == ErrorKind::kConfig);
  // Somebody else is at the other end: a third peer cannot pass for the one that is expected.
  Node c(4);
  three.relay.endpoint.OfferRelay(std::string(32, 'z'), 0, 5000);
  DialOptions to_b = three.Dial(three.b, 0, true), to_a = three.Dial(three.a, 1, true);
  to_b.relay_token = to_a.relay_token = std::string(32, 'z');
  to_b.role = Role::kClient;
  to_a.role = Role::kServer;
  three.a.endpoint.Dial(to_b);
  c.endpoint.Dial(to_a);
  CHECK(three.a.Wait(Type::kDialFailed).error.kind == ErrorKind::kIdentity);
}

TEST(strangers_at_a_relay_get_nothing) {
  EndpointOptions hasty = Options(3);
  hasty.handshake_timeout_ms = 200;
  Node relay(hasty);
  const uint16_t port = relay.endpoint.Listen("127.0.0.1", 0);
  relay.endpoint.OfferRelay(kToken, 0, 5000);
  const auto hello = [](const std::string& token, char side) {
    return std::string(1, '\x03').append(token).append(1, side);
  };
  for (const std::string& bytes :
       {hello(std::string(32, 'u'), 0), hello(kToken, 2), hello(kToken.substr(2), 0)}) {
    RawSocket raw = RawSocket::Connect(port);
    raw.Write(bytes);
    CHECK(raw.SeesClose(2000));
  }
  CHECK(relay.endpoint.Counters().protocol_errors == 1 && relay.endpoint.Counters().refused == 1);
  CHECK(Eventually([&] { return relay.endpoint.Counters().half_open == 0; }));
}

TEST(many_relayed_links_leak_no_descriptor) {
  Three three;
  three.Link(true);
  three.relay.endpoint.EndRelay(kToken);
  three.relay.Wait(Type::kRelayEnded);
  three.a.Wait(Type::kLinkDown);
  three.b.Wait(Type::kLinkDown);
  poll(nullptr, 0, 50);
  const int before = OpenFds();
  for (int i = 0; i < 20; ++i) {
    const Pair link = three.Link(true);
    if (i % 2) three.a.endpoint.Close(link.a, "done");
    if (i % 2 == 0) three.relay.endpoint.EndRelay(kToken);
    three.relay.Wait(Type::kRelayEnded);
    three.a.Wait(Type::kLinkDown);
    three.b.Wait(Type::kLinkDown);
  }
  CHECK(Eventually([&] { return OpenFds() <= before; }));
}

TEST_MAIN()
