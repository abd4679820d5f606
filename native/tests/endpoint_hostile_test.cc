// Links and what is not one: dead ports, web servers, garbage, floods, the silent and the killed.
#include <signal.h>
#include <sys/wait.h>

#include <functional>
#include <thread>
#include <vector>

#include "link/crowding.h"
#include "link/tls.h"
#include "tests/endpoint_helper.h"
#include "wire/frame.h"

using namespace decentral;
using namespace decentral::test;
using Type = Event::Type;

namespace {

bool Says(const Error& error, const char* part) {
  return error.text.find(part) != std::string::npos;
}

// A peer that has been through TLS and then does as it likes.
class Rogue {
 public:
  explicit Rogue(uint16_t port) : context_(Seed(), {1}) {
    Fd fd = Fd::Open([&] {
      const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in to = RawSocket::Loopback(port);
      CHECK(connect(s, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
      return s;
    });
    stream_ = context_.Client(std::move(fd), context_.ControlAlpn(), std::nullopt);
    CHECK(stream_->Handshake() == IoStatus::kOk);  // the socket blocks
  }
  void Write(const std::string& bytes) {
    const iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    stream_->Write(&part, 1);
    stream_->Flush();
  }
  void Frame(FrameHeader header, const std::string& payload, size_t announce) {
    header.length = static_cast<uint32_t>(announce);
    uint8_t bytes[FrameHeader::kSize];
    EncodeHeader(header, bytes);
    Write(std::string(reinterpret_cast<char*>(bytes), sizeof bytes) + payload);
  }
  void Hang() { stream_.reset(); }
  bool SeesClose() {
    char waste[4096];
    IoResult got;
    while ((got = stream_->Read(waste, sizeof waste)).status == IoStatus::kOk) {
    }
    return got.status == IoStatus::kEof;
  }

 private:
  static std::array<uint8_t, 32> Seed() {
    std::array<uint8_t, 32> seed;
    seed.fill(66);
    return seed;
  }
  TlsContext context_;
  std::unique_ptr<Stream> stream_;
};

Event DialFails(uint16_t port, int timeout_ms = 5000, const std::string& host = "127.0.0.1") {
  Node a(1);
  a.endpoint.Dial({.host = host, .port = port, .timeout_ms = timeout_ms});
  return a.Wait(Type::kDialFailed);
}

ErrorKind EndOf(const std::function<void(Rogue&)>& deed, bool admit) {
  Node b(2);
  Rogue rogue(b.endpoint.Listen("127.0.0.1", 0));
  const Event up = b.Wait(Type::kLinkUp);
  if (admit) b.endpoint.Admit(up.link);
  deed(rogue);
  return b.Wait(Type::kLinkDown).error.kind;
}

}  // namespace

TEST(a_dead_port_refuses) {
  uint16_t port;
  RawSocket::Listen(&port);
  const Event failed = DialFails(port);
  CHECK(failed.error.kind == ErrorKind::kUnreachable && Says(failed.error, "refused"));
  CHECK(Says(failed.error, std::to_string(port).c_str()));
}

TEST(a_web_server_is_named_as_such) {
  uint16_t port;
  RawSocket listener = RawSocket::Listen(&port);
  std::thread server([&] {
    RawSocket client = listener.Accept();
    client.Write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    client.SeesClose();
  });
  const Event failed = DialFails(port);
  server.join();
  CHECK(failed.error.kind == ErrorKind::kNotDecentral && Says(failed.error, "web server"));
}

TEST(who_accepts_and_says_nothing_is_unreachable) {
  uint16_t port;
  RawSocket listener = RawSocket::Listen(&port);
  const Event failed = DialFails(port, 200);
  CHECK(failed.error.kind == ErrorKind::kUnreachable && failed.error.phase == "handshake");
}

TEST(who_accepts_and_hangs_up_is_unreachable) {
  uint16_t port;
  RawSocket listener = RawSocket::Listen(&port);
  std::thread server([&] { listener.Accept(); });
  const Event failed = DialFails(port);
  server.join();
  CHECK(failed.error.kind == ErrorKind::kUnreachable);
}

TEST(a_black_hole_times_out) {
  // A full backlog drops SYNs, as a firewall does.
  uint16_t port;
  RawSocket listener = RawSocket::Listen(&port, 0);
  RawSocket first = RawSocket::Connect(port);
  const Event failed = DialFails(port, 300);
  CHECK(failed.error.kind == ErrorKind::kUnreachable && failed.error.phase == "dial");
  CHECK(Says(failed.error, "did not answer"));
}

TEST(garbage_instead_of_tls_is_dropped) {
  Node b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(1000, '\0'), std::string("\x01\xdc", 2),
        std::string("\x16\x03\x01\xff\xff") + std::string(70'000, 'g')}) {
    RawSocket raw = RawSocket::Connect(port);
    raw.Write(bytes);
    CHECK(raw.SeesClose());
  }
  CHECK(b.endpoint.Counters().protocol_errors == 4);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(who_asks_for_its_address_in_other_words_gets_nothing) {
  Node b(2);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  const std::string asks = "\x04" + std::string(15, '\0');
  for (const std::string& bytes : {"\x04" + std::string(15, 'x'), asks + asks}) {
    RawSocket raw = RawSocket::Connect(port);
    raw.Write(bytes);
    CHECK(raw.SeesClose());
  }
  CHECK(b.endpoint.Counters().protocol_errors == 2);
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(an_answer_that_is_no_address_is_not_passed_on) {
  for (const std::string& answer :
       {std::string("\x0bnot.a:place"), std::string("\xff", 1) + std::string(255, 'a'),
        std::string("\x0c"
                    "10.0.0.1:080",
                    13),
        std::string("\x0b"
                    "10.0.0.1:0\n",
                    12),
        std::string()}) {
    uint16_t port;
    RawSocket listener = RawSocket::Listen(&port);
    std::thread server([&] {
      RawSocket client = listener.Accept();
      client.Write(answer);
      shutdown(client.fd(), SHUT_WR);
      client.SeesClose();
    });
    Node a(1);
    a.endpoint.Reflexive("127.0.0.1", port, 0, 2000);
    const ErrorKind kind = a.Wait(Type::kDialFailed).error.kind;
    CHECK(kind == (answer.empty() ? ErrorKind::kUnreachable : ErrorKind::kNotDecentral));
    server.join();
  }
}

TEST(garbage_inside_tls_ends_the_link) {
  for (const bool admit : {true, false}) {
    CHECK(EndOf([](Rogue& r) { r.Write(std::string(200, 'g')); }, admit) == ErrorKind::kProtocol);
  }
}

TEST(a_gigabyte_announced_ends_the_link_at_once) {
  CHECK(EndOf([](Rogue& r) { r.Frame({.type = FrameType::kMessage}, "", 1u << 30); }, true) ==
        ErrorKind::kProtocol);
  CHECK(EndOf([](Rogue& r) { r.Frame({.type = FrameType::kOpReady}, "", 1u << 30); }, true) ==
        ErrorKind::kProtocol);
}

TEST(a_truncated_frame_is_a_broken_connection) {
  CHECK(EndOf(
            [](Rogue& r) {
              r.Frame({.type = FrameType::kMessage}, "half", 100);
              r.Hang();
            },
            true) == ErrorKind::kClosed);
}

TEST(bulk_frames_on_the_control_stream_end_the_link) {
  CHECK(EndOf([](Rogue& r) { r.Frame({.type = FrameType::kChunk}, "x", 1); }, true) ==
        ErrorKind::kProtocol);
}

TEST(bulk_may_not_be_opened_by_the_wrong_side) {
  const std::string token(32, 't');
  CHECK(EndOf([&](Rogue& r) { r.Frame({.type = FrameType::kBulkWanted}, token, 32); }, true) ==
        ErrorKind::kProtocol);
}

TEST(a_bulk_stream_needs_the_token) {
  EndpointOptions options = Options(2);
  options.encrypt_bulk = false;
  Node b(options);
  RawSocket raw = RawSocket::Connect(b.endpoint.Listen("127.0.0.1", 0));
  FrameHeader hello{.type = FrameType::kBulkHello, .length = 32};
  hello.attempt = 1;
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(hello, bytes);
  raw.Write(std::string(reinterpret_cast<char*>(bytes), sizeof bytes) + std::string(32, '\0'));
  CHECK(raw.SeesClose());
  CHECK(b.endpoint.Counters().protocol_errors == 1);
}

TEST(a_stranger_may_send_little) {
  Node b(2);
  Rogue rogue(b.endpoint.Listen("127.0.0.1", 0));
  b.Wait(Type::kLinkUp);
  for (int i = 0; i < 20; ++i) {
    rogue.Frame({.type = FrameType::kMessage}, std::string(8000, 's'), 8000);
  }
  const Event down = b.Wait(Type::kLinkDown);
  CHECK(down.error.kind == ErrorKind::kProtocol && Says(down.error, "before it was admitted"));
  CHECK(b.endpoint.Counters().bytes_received <= 64 << 10);
}

TEST(who_is_not_admitted_in_time_goes) {
  EndpointOptions hasty = Options(2);
  hasty.handshake_timeout_ms = 200;
  Node b(hasty);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  Rogue rogue(port);
  RawSocket silent = RawSocket::Connect(port), half = RawSocket::Connect(port);
  half.Write("\x16\x03\x01");
  b.Wait(Type::kLinkUp);
  CHECK(b.Wait(Type::kLinkDown).error.phase == "admission");
  CHECK(rogue.SeesClose() && silent.SeesClose() && half.SeesClose());
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(half_open_connections_are_limited) {
  EndpointOptions few = Options(2);
  few.max_half_open = 4;
  Node b(few), a(1);
  const uint16_t port = b.endpoint.Listen("127.0.0.1", 0);
  {
    std::vector<RawSocket> crowd;
    for (int i = 0; i < 4; ++i) crowd.push_back(RawSocket::Connect(port));
    CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 4; }));
    const RawSocket fifth = RawSocket::Connect(port);
    CHECK(crowd[0].SeesClose());  // the oldest makes room
    CHECK(b.endpoint.Counters().refused == 1 && b.endpoint.Counters().half_open == 4);
    Connect(a, b, port);  // while they all still sit there
  }
  CHECK(Eventually([&] { return b.endpoint.Counters().half_open == 0; }));
}

TEST(a_crowd_drives_out_itself) {
  const auto from = [](const char* host) { return OriginOf(*ParseLiteral(host, 1)); };
  const Origin crowd = from("192.0.2.1"), guest = from("192.0.2.2");
  CHECK(crowd != guest && crowd == from("::ffff:192.0.2.1"));
  CHECK(from("2001:db8::1") == from("2001:db8::2"));
  CHECK(from("2001:db8:0:1::1") != from("2001:db8::1"));
  const std::vector<Stranger> waiting{{1, guest}, {3, crowd}, {2, crowd}, {4, crowd}};
  CHECK(WhoHasToGo(waiting, crowd) == 2);
  CHECK(WhoHasToGo(waiting, guest) == 2);
  CHECK(WhoHasToGo(waiting, from("192.0.2.3")) == 2);
  CHECK(WhoHasToGo({{1, guest}, {2, crowd}}, crowd) == 2);  // two of them, with the newcomer
  CHECK(WhoHasToGo({{1, guest}, {2, crowd}}, from("192.0.2.3")) == 1);
  CHECK(WhoHasToGo({}, crowd) == 0);
}

TEST(a_receiver_that_does_not_read_is_dropped_at_the_limit) {
  EndpointOptions small = Options(1);
  small.max_queued_bytes = 8 << 20;
  Node a(small);
  Node b(2);
  Rogue rogue(a.endpoint.Listen("127.0.0.1", 0));
  const Event up = a.Wait(Type::kLinkUp);
  a.endpoint.Admit(up.link);
  for (int i = 0; i < 8; ++i) a.endpoint.Send(up.link, std::string(4 << 20, 'x'));
  CHECK(a.Wait(Type::kLinkDown).error.kind == ErrorKind::kSilent);
}

TEST(messages_that_nobody_takes_end_their_link) {
  EndpointOptions small = Options(2);
  small.max_queued_bytes = 1 << 20;
  Node a(1), b(small);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  for (int i = 0; i < 40; ++i) a.endpoint.Send(link.a, std::string(100'000, 'm'));
  a.Wait(Type::kLinkDown);
  CHECK(b.Wait(Type::kLinkDown).error.kind == ErrorKind::kProtocol);
}

TEST(silence_is_noticed) {
  EndpointOptions quick = Options(2);
  quick.silence_limit_ms = 300;
  quick.heartbeat_ms = 50;
  Node b(quick);
  Rogue rogue(b.endpoint.Listen("127.0.0.1", 0));
  b.endpoint.Admit(b.Wait(Type::kLinkUp).link);
  const auto start = std::chrono::steady_clock::now();
  CHECK(b.Wait(Type::kLinkDown).error.kind == ErrorKind::kSilent);
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(took >= std::chrono::milliseconds(250) && took < std::chrono::seconds(5));
}

TEST(heartbeats_keep_an_idle_link_up) {
  EndpointOptions one = Options(1), two = Options(2);
  for (EndpointOptions* o : {&one, &two}) {
    o->silence_limit_ms = 400;
    o->heartbeat_ms = 50;
  }
  Node a(one), b(two);
  const Pair link = Connect(a, b, b.endpoint.Listen("127.0.0.1", 0));
  Event none;
  CHECK(!a.WaitFor(Type::kLinkDown, 1200, &none));
  CHECK(!b.WaitFor(Type::kLinkDown, 0, &none));
  CHECK(a.endpoint.Stats(link.a).rtt_us > 0);
}

// TSan wants to be told that the child of a fork starts threads of its own. It looks the name up at
// run time: hidden, as all names are here, it would not be found.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0";
}

namespace {

// A process of its own with an endpoint in it, which dials `port`, admits, and forks a child that
// lives on: a trainer with a DataLoader worker.
pid_t Trainer(uint16_t port, int ready_fd) {
  const pid_t trainer = fork();
  if (trainer != 0) return trainer;
  Node a(1);
  a.Dial(port);
  a.endpoint.Admit(a.Wait(Type::kLinkUp).link);
  const pid_t worker = fork();
  if (worker == 0) {
    sleep(30);
    _exit(0);
  }
  CHECK(write(ready_fd, &worker, sizeof worker) == sizeof worker);
  sleep(30);
  _exit(0);
}

struct Process {
  explicit Process(uint16_t port) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    trainer = Trainer(port, ends[1]);
    close(ends[1]);  // so that a trainer which dies early is noticed
    CHECK(read(ends[0], &worker, sizeof worker) == sizeof worker);
    close(ends[0]);
  }
  ~Process() {
    for (const pid_t pid : {trainer, worker}) kill(pid, SIGKILL);
    waitpid(trainer, nullptr, 0);
  }
  pid_t trainer, worker = 0;
};

}  // namespace

TEST(a_killed_peer_is_down_at_once_though_its_worker_lives) {
  Node b(2);
  Process process(b.endpoint.Listen("127.0.0.1", 0));
  b.endpoint.Admit(b.Wait(Type::kLinkUp).link);
  const auto start = std::chrono::steady_clock::now();
  kill(process.trainer, SIGKILL);
  const Event down = b.Wait(Type::kLinkDown);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
  CHECK(down.error.kind == ErrorKind::kClosed);
  CHECK(kill(process.worker, 0) == 0);
}

TEST(a_stopped_peer_is_silent) {
  EndpointOptions quick = Options(2);
  quick.silence_limit_ms = 500;
  quick.heartbeat_ms = 100;
  Node b(quick);
  Process process(b.endpoint.Listen("127.0.0.1", 0));
  b.endpoint.Admit(b.Wait(Type::kLinkUp).link);
  kill(process.trainer, SIGSTOP);
  CHECK(b.Wait(Type::kLinkDown).error.kind == ErrorKind::kSilent);
  kill(process.trainer, SIGCONT);
}

TEST(a_forked_child_may_destroy_its_copy) {
  auto node = std::make_unique<Node>(2);
  node->endpoint.Listen("127.0.0.1", 0);
  const pid_t child = fork();
  if (child == 0) {
    node.reset();  // must neither hang nor touch the parent's connections
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

TEST(bad_options_are_said_at_once) {
  int thrown = 0;
  for (auto breakage : {+[](EndpointOptions* o) { o->bulk_streams = 0; },
                        +[](EndpointOptions* o) { o->heartbeat_ms = o->silence_limit_ms; },
                        +[](EndpointOptions* o) { o->versions.clear(); },
                        +[](EndpointOptions* o) { o->max_half_open = 0; }}) {
    EndpointOptions options = Options(1);
    breakage(&options);
    try {
      Endpoint endpoint(options);
    } catch (const Error& error) {
      thrown += error.kind == ErrorKind::kConfig;
    }
  }
  CHECK(thrown == 4);
}

TEST_MAIN()
