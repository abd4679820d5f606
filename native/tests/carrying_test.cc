// Links over carriers: who may have one, what it costs, and simultaneous opens that end in one.
#include <vector>

#include "link/carrier_reader.h"
#include "tests/endpoint_helper.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

namespace {

const std::string kPreamble(kCarrierPreamble, kCarrierPreambleBytes);

std::string Frame(CarrierFrame type, uint16_t stream, uint32_t value) {
  uint8_t header[kCarrierHeader];
  EncodeCarrierFrame(type, stream, value, header);
  return std::string(reinterpret_cast<char*>(header), sizeof header);
}

void SendBlob(Node& from, LinkId link_from, Node& to, LinkId link_to) {
  std::vector<uint8_t> out(8 << 20), in(out.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  to.endpoint.PostBlob(link_to, 5, in.data(), in.size());
  from.endpoint.SendBlob(link_from, 5, out.data(), out.size(), [] {});
  to.Wait(Type::kBlob);
  CHECK(in == out);
}

}  // namespace

TEST(both_ends_know_of_the_carrier) {
  Node a(1), b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  for (const bool carrier : {true, false}) {
    a.endpoint.Dial({.host = "127.0.0.1", .port = port, .carrier = carrier});
    const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
    CHECK(up_a.carrier == carrier && up_b.carrier == carrier);
    CHECK(a.endpoint.Stats(up_a.link).carrier == carrier);
    CHECK(b.endpoint.Stats(up_b.link).carrier == carrier);
    CHECK(up_a.address == "127.0.0.1:" + std::to_string(port));
    CHECK(b.endpoint.Counters().half_open == 1);
    a.endpoint.Admit(up_a.link);
    b.endpoint.Admit(up_b.link);
    SendBlob(a, up_a.link, b, up_b.link);
    SendBlob(b, up_b.link, a, up_a.link);
    CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
    a.endpoint.Close(up_a.link, "enough");
    CHECK(b.Wait(Type::kLinkDown).error.text.find("enough") != std::string::npos);
    a.Wait(Type::kLinkDown);
  }
}

TEST(a_simultaneous_open_may_end_in_a_carrier) {
  for (int round = 0; round < 6; ++round) {
    Node a(1), b(2);
    const uint16_t port_a = a.endpoint.Listen("127.0.0.1", 0);
    const uint16_t port_b = b.endpoint.Listen("127.0.0.1", 0);
    DialOptions dial{.host = "127.0.0.1",
                     .port = port_b,
                     .has_expected = true,
                     .expected = b.endpoint.id(),
                     .local_port = port_a,
                     .role = Role::kById,
                     .carrier = true};
    if (round % 2) a.endpoint.Dial(dial);
    DialOptions back = dial;
    back.port = port_a;
    back.local_port = port_b;
    back.expected = a.endpoint.id();
    b.endpoint.Dial(back);
    if (round % 2 == 0) a.endpoint.Dial(dial);
    const Event up_a = a.Wait(Type::kLinkUp), up_b = b.Wait(Type::kLinkUp);
    CHECK(up_a.carrier && up_b.carrier && up_a.inbound != up_b.inbound);
    a.endpoint.Admit(up_a.link);
    b.endpoint.Admit(up_b.link);
    SendBlob(a, up_a.link, b, up_b.link);
    SendBlob(b, up_b.link, a, up_a.link);
  }
}

TEST(whom_we_expect_is_checked_on_the_servers_side_too) {
  Node a(1), b(2), c(3);
  const uint16_t port_a = a.endpoint.Listen("127.0.0.1", 0);
  const uint16_t port_b = b.endpoint.Listen("127.0.0.1", 0);
  Node* server = a.endpoint.id() < b.endpoint.id() ? &b : &a;
  DialOptions to_b{.host = "127.0.0.1",
                   .port = port_b,
                   .has_expected = true,
                   .expected = b.endpoint.id(),
                   .timeout_ms = 2000,
                   .local_port = port_a,
                   .role = Role::kById,
                   .carrier = true};
  DialOptions to_a = to_b;
  to_a.port = port_a;
  to_a.local_port = port_b;
  to_a.expected = a.endpoint.id();
  (server == &b ? to_a : to_b).expected = c.endpoint.id();
  (server == &b ? to_a : to_b).role = Role::kServer;
  a.endpoint.Dial(to_b);
  b.endpoint.Dial(to_a);
  CHECK(server->Wait(Type::kDialFailed).error.kind == ErrorKind::kIdentity);
}

TEST(a_carrier_does_not_outlive_a_strangers_patience) {
  EndpointOptions hasty = Options(2);
  hasty.handshake_timeout_ms = 200;
  Node b(hasty);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  RawSocket half = RawSocket::Connect(port), silent = RawSocket::Connect(port),
            dribble = RawSocket::Connect(port);
  half.Write(kPreamble.substr(0, 5));
  silent.Write(kPreamble);
  dribble.Write(kPreamble + Frame(CarrierFrame::kData, 0, 3) + "\x16\x03\x01");
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 3; }));
  CHECK(half.SeesClose(1000) && silent.SeesClose(1000) && dribble.SeesClose(1000));
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(garbage_on_a_carrier_is_dropped) {
  Node b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  int wrong = 0;
  for (const std::string& bytes :
       {std::string("\x02garbage"), kPreamble + "GET / HTTP/1.1\r\n\r\n",
        kPreamble + Frame(CarrierFrame::kData, 0, 1u << 30),
        kPreamble + Frame(CarrierFrame::kOpen, 1, 0),
        kPreamble + Frame(CarrierFrame::kData, 0, 8) + kPreamble,  // a carrier within a carrier
        kPreamble + Frame(CarrierFrame::kData, 0, 16) + "\x04" + std::string(15, '\0')}) {
    RawSocket raw = RawSocket::Connect(port);
    raw.Write(bytes);
    CHECK(raw.SeesClose());
    ++wrong;
    CHECK(Eventually(
        [&] { return b.endpoint.Counters().protocol_errors == static_cast<uint64_t>(wrong); }));
  }
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(carriers_count_as_half_open) {
  EndpointOptions few = Options(2);
  few.max_half_open = 4;
  Node b(few), a(1);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  {
    std::vector<RawSocket> crowd;
    for (int i = 0; i < 4; ++i) {
      crowd.push_back(RawSocket::Connect(port));
      crowd.back().Write(kPreamble);
    }
    CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 4; }));
    const RawSocket fifth = RawSocket::Connect(port);
    CHECK(crowd[0].SeesClose(2000));  // the oldest makes room, long before its patience ends
    CHECK(b.endpoint.Counters().refused == 1 && b.endpoint.Counters().half_open == 4);
  }
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
  Connect(a, b, port);
}

TEST_MAIN()
