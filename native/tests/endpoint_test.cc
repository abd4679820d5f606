// Links between endpoints of one process: who they are, what they carry, how they end.
#include "tests/endpoint_helper.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

TEST(both_sides_come_up_and_agree_who_they_are) {
  Node a(1), b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  const uint64_t dial = a.Dial(port);
  const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
  CHECK(up_a.dial == dial && !up_a.inbound);
  CHECK(up_b.dial == 0 && up_b.inbound);
  CHECK(up_a.peer == b.endpoint.id() && up_b.peer == a.endpoint.id());
  CHECK(up_a.exporter.size() == 32 && up_a.exporter == up_b.exporter);
  CHECK(up_a.address == "127.0.0.1:" + std::to_string(port));
  CHECK(b.endpoint.Counters().half_open == 1);
  b.endpoint.Admit(up_b.link);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(the_id_is_the_seeds_public_key) {
  // RFC 8032, section 7.1, test 1.
  EndpointOptions options;
  const char* seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
  const char* key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
  PeerId expected{};
  for (int i = 0; i < 32; ++i) {
    options.seed[i] = std::stoi(std::string(seed + 2 * i, 2), nullptr, 16);
    expected[i] = std::stoi(std::string(key + 2 * i, 2), nullptr, 16);
  }
  CHECK(Endpoint(options).id() == expected);
}

TEST(messages_arrive_whole_and_in_order) {
  Node a(1), b(2);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  for (int i = 0; i < 200; ++i) {
    a.endpoint.Send(link.a, std::to_string(i) + std::string(i * 97, 'x'));
  }
  a.endpoint.Send(link.a, "");
  for (int i = 0; i < 200; ++i) {
    const Event m = b.Wait(Type::kMessage);
    CHECK(m.link == link.b && m.peer == a.endpoint.id());
    CHECK(m.data == std::to_string(i) + std::string(i * 97, 'x'));
  }
  CHECK(b.Wait(Type::kMessage).data.empty());
  b.endpoint.Send(link.b, "back");
  CHECK(a.Wait(Type::kMessage).data == "back");
  CHECK(a.endpoint.Stats(link.a).control_bytes_sent > 0);
  CHECK(Eventually([&] { return a.endpoint.Stats(link.a).queued_bytes == 0; }));
}

TEST(urgent_overtakes_large) {
  Node a(1), b(2);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  for (int i = 0; i < 8; ++i) a.endpoint.Send(link.a, std::string(4 << 20, 'l'), 2);
  a.endpoint.Send(link.a, "urgent", 0);
  int before = 0;
  while (b.Wait(Type::kMessage).data != "urgent") ++before;
  CHECK(before < 8);
  for (; before < 8; ++before) CHECK(b.Wait(Type::kMessage).data.size() == 4 << 20);
}

TEST(refusal_reaches_the_other_end_in_words) {
  Node a(1), b(2);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0), false);
  b.endpoint.Refuse(link.b, "this run is full\n\x1b[31m");
  const Event down = a.Wait(Type::kLinkDown);
  CHECK(down.link == link.a && down.error.kind == ErrorKind::kRefused);
  CHECK(down.error.text.find("this run is full") != std::string::npos);
  CHECK(down.error.text.find('\x1b') == std::string::npos);
  CHECK(b.Wait(Type::kLinkDown).error.kind == ErrorKind::kRefused);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(close_tells_why_and_flushes_first) {
  Node a(1), b(2);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  a.endpoint.Send(link.a, std::string(1 << 20, 'm'));
  a.endpoint.Close(link.a, "a duplicate");
  CHECK(b.Wait(Type::kMessage).data.size() == 1 << 20);
  const Event down = b.Wait(Type::kLinkDown);
  CHECK(down.error.kind == ErrorKind::kClosed);
  CHECK(down.error.text.find("a duplicate") != std::string::npos);
  CHECK(a.Wait(Type::kLinkDown).error.kind == ErrorKind::kAborted);
}

TEST(a_closed_endpoint_says_goodbye) {
  Node a(1);
  auto b = std::make_unique<Node>(2);
  Connect(a, *b, b->endpoint.Listen("127.0.0.1", 0));
  b.reset();
  CHECK(a.Wait(Type::kLinkDown).error.kind == ErrorKind::kClosed);
}

TEST(version_mismatch_names_both_lists) {
  EndpointOptions old = Options(2);
  old.versions = {99, 98};
  Node a(1), b(old);
  const uint64_t dial = a.Dial(b.endpoint.Listen("127.0.0.1", 0));
  const Event failed = a.Wait(Type::kDialFailed);
  CHECK(failed.dial == dial && failed.error.kind == ErrorKind::kVersionMismatch);
  CHECK(failed.error.text.find("99, 98") != std::string::npos);
  CHECK(failed.error.text.find("speaks 1") != std::string::npos);
  CHECK(b.endpoint.Counters().refused == 1);
}

TEST(common_version_is_found) {
  EndpointOptions both = Options(2);
  both.versions = {2, 1};
  Node a(1), b(both);
  Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
}

TEST(wrong_identity_is_refused_before_we_show_ours) {
  Node a(1), b(2);
  DialOptions dial{.host = "127.0.0.1", .port = b.endpoint.Listen("127.0.0.1", 0)};
  dial.has_expected = true;
  dial.expected.fill(7);
  a.endpoint.Dial(dial);
  CHECK(a.Wait(Type::kDialFailed).error.kind == ErrorKind::kIdentity);
  Event none;
  CHECK(!b.WaitFor(Type::kLinkUp, 100, &none));
}

TEST(dialling_oneself_is_noticed) {
  Node a(1);
  a.Dial(a.endpoint.Listen("127.0.0.1", 0));
  CHECK(a.Wait(Type::kDialFailed).error.kind == ErrorKind::kSelf);
}

TEST(names_and_ipv6) {
  Node a(1), b(2), c(3);
  Connect(a, b, b.endpoint.Listen("localhost", 0));
  const uint16_t port = c.endpoint.Listen("::", 0);
  a.Dial(port, "::1");
  CHECK(a.Wait(Type::kLinkUp).peer == c.endpoint.id());
  a.Dial(port, "localhost");
  CHECK(a.Wait(Type::kLinkUp).peer == c.endpoint.id());
  a.Dial(port, "no-such-host.invalid");
  const Event failed = a.Wait(Type::kDialFailed, 20'000);
  CHECK(failed.error.kind == ErrorKind::kUnreachable);
}

TEST(a_port_in_use_is_said_clearly) {
  Node a(1), b(2);
  const uint16_t port = a.endpoint.Listen("127.0.0.1", 0);
  bool thrown = false;
  try {
    b.endpoint.Listen("127.0.0.1", port);
  } catch (const Error& error) {
    thrown = error.kind == ErrorKind::kConfig && error.text.find("in use") != std::string::npos;
  }
  CHECK(thrown);
}

TEST(probe_refutes_suspicion_and_carries_progress) {
  Node a(1), b(2);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  b.endpoint.SetProgress(1234);
  a.endpoint.Probe(link.a, 77, 0);
  Event ack = a.Wait(Type::kProbeAck);
  CHECK(ack.seq == 77 && ack.progress == 1234 && ack.incarnation == 1 && ack.rtt_us > 0);
  a.endpoint.Probe(link.a, 78, 5);
  ack = a.Wait(Type::kProbeAck);
  CHECK(ack.seq == 78 && ack.incarnation == 6 && b.endpoint.incarnation() == 6);
  CHECK(a.endpoint.Stats(link.a).rtt_us > 0);
  for (const uint32_t absurd : {UINT32_MAX, UINT32_MAX - 1, 1u << 30}) {
    a.endpoint.Probe(link.a, 79, absurd);
    ack = a.Wait(Type::kProbeAck);
    CHECK(ack.seq == 79 && ack.incarnation == 6 && b.endpoint.incarnation() == 6);
  }
}

TEST(simultaneous_open_has_one_client) {
  for (int round = 0; round < 6; ++round) {
    Node a(1), b(2);
    uint16_t port_a = 0, port_b = 0;
    port_a = a.endpoint.Listen("127.0.0.1", 0);
    if (round % 3 == 0) {  // b has a port, but nobody listens on it
      RawSocket::Listen(&port_b);
    } else {
      port_b = b.endpoint.Listen("127.0.0.1", 0);
    }
    DialOptions to_b{.host = "127.0.0.1",
                     .port = port_b,
                     .has_expected = true,
                     .expected = b.endpoint.id(),
                     .local_port = port_a,
                     .role = Role::kById};
    DialOptions to_a{.host = "127.0.0.1",
                     .port = port_a,
                     .has_expected = true,
                     .expected = a.endpoint.id(),
                     .local_port = port_b,
                     .role = Role::kById};
    const bool lower_first = (a.endpoint.id() < b.endpoint.id()) == (round % 2 == 0);
    if (lower_first) a.endpoint.Dial(to_b);
    b.endpoint.Dial(to_a);
    if (!lower_first) a.endpoint.Dial(to_b);
    const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
    CHECK(up_a.peer == b.endpoint.id() && up_b.peer == a.endpoint.id());
    CHECK(up_a.exporter == up_b.exporter);
    CHECK(up_a.inbound != up_b.inbound && up_a.inbound == (a.endpoint.id() > b.endpoint.id()));
  }
}

TEST(an_endpoint_tells_others_their_address) {
  Node a(1), b(2);
  const uint16_t port_a = a.endpoint.Listen("127.0.0.1", 0);
  const uint16_t port_b = b.endpoint.Listen("::", 0);
  for (int again = 0; again < 3; ++again) {  // the port is free for the same address at once
    const uint64_t number = a.endpoint.Reflexive("127.0.0.1", port_b, port_a, 2000);
    const Event told = a.Wait(Type::kReflexive);
    CHECK(told.dial == number && told.address == "127.0.0.1:" + std::to_string(port_a));
  }
  a.endpoint.Reflexive("::1", port_b, 0, 2000);
  CHECK(a.Wait(Type::kReflexive).address.rfind("[::1]:", 0) == 0);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
  CHECK(b.endpoint.Counters().protocol_errors == 0);
  uint16_t dead;
  RawSocket::Listen(&dead);
  const uint64_t number = a.endpoint.Reflexive("127.0.0.1", dead, port_a, 2000);
  const Event failed = a.Wait(Type::kDialFailed, 1000);  // refused is an answer here
  CHECK(failed.dial == number && failed.error.kind == ErrorKind::kUnreachable);
}

TEST(a_knock_tells_whether_somebody_opens) {
  Node a(1), b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  const uint64_t number = a.endpoint.Knock("127.0.0.1", port, 2000);
  CHECK(a.Wait(Type::kKnocked).dial == number);
  uint16_t dead;
  RawSocket::Listen(&dead);
  a.endpoint.Knock("127.0.0.1", dead, 2000);
  CHECK(a.Wait(Type::kDialFailed).error.kind == ErrorKind::kUnreachable);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
  CHECK(b.endpoint.Counters().protocol_errors == 0);
}

TEST(many_cycles_leak_no_descriptor) {
  Node b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  const int before = OpenFds() + kCarrierThreadFds;
  for (int i = 0; i < 30; ++i) {
    {
      Node a(1);
      const Pair link = Connect(a, b, port);
      if (i % 2) a.endpoint.Close(link.a, "done");
    }
    b.Wait(Type::kLinkDown);
  }
  CHECK(Eventually([&] { return OpenFds() <= before; }));
  CHECK(b.endpoint.Counters().links_up == 0);
}

TEST(destroyed_while_dialling) {
  for (int i = 0; i < 10; ++i) {
    Node a(1);
    a.Dial(9, "192.0.2.1");
    a.Dial(9, "a-name-to-look-up.invalid");
    a.Dial(9);
  }
}

TEST_MAIN()
