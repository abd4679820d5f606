// The control thread's work: listener, dials, handshakes, control streams, liveness, and the
// opening of bulk streams up to the point where the data thread takes them over.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "link/birthday.h"
#include "link/carriers.h"
#include "link/connection.h"
#include "link/data_plane.h"
#include "link/endpoint.h"
#include "link/event_queue.h"
#include "link/relay.h"
#include "link/tls.h"

namespace decentral {

class ControlPlane : public LinkPort {
 public:
  ControlPlane(const EndpointOptions& options, const TlsContext& tls, EventQueue* events,
               EndpointMeters* meters, Stamp* stamp);
  ~ControlPlane() override;

  // Before anything else; `data` outlives this thread's loop.
  void Start(DataPlane* data);
  void Stop();  // says goodbye on every link, then ends the loop

  // Any thread.
  uint16_t Listen(const std::string& host, uint16_t port);
  uint64_t Dial(const DialOptions& options);
  uint64_t Reflexive(const std::string& host, uint16_t port, uint16_t local_port, int timeout_ms);
  uint64_t Knock(const std::string& host, uint16_t port, int timeout_ms);
  void OfferRelay(const std::string& token, uint64_t max_bytes_s, int ttl_ms);
  Relay& relay() { return relay_; }
  void Admit(LinkId link);
  void Refuse(LinkId link, const std::string& says);
  void Send(LinkId link, std::string message, int priority);
  void Close(LinkId link, const std::string& reason);
  void Probe(LinkId link, uint64_t seq, uint32_t suspected_incarnation);
  void SetProgress(uint64_t progress) { progress_.store(progress); }
  uint32_t incarnation() const { return incarnation_.load(); }
  LinkStats Stats(LinkId link) const;
  LinkStats StatsOf(const PeerId& peer) const;
  void Taken(const std::vector<Event>& events);  // the layer above has them: room for more

  // LinkPort: the data thread asks.
  void WantBulk(LinkId link) override;
  void GrowBulk(LinkId link, int streams) override;
  void BulkUp(LinkId link) override;
  void StreamFailed(LinkId link, const Error& why, bool opening) override;
  void SendControl(LinkId link, const FrameHeader& header, std::string payload) override;

 private:
  using ConnectionPtr = std::shared_ptr<Connection>;
  enum class Purpose : uint8_t { kLink, kReflexive, kKnock };
  struct PendingDial {
    DialOptions options;
    Purpose purpose = Purpose::kLink;
    std::shared_ptr<TcpDial> tcp;
    std::unique_ptr<Birthday> birthday;  // in place of tcp; any connection may become the link
    uint64_t connection = 0;             // 0: still connecting, or one of many
    Reactor::TimerId timer = 0;
  };

  // control_plane.cc: connections come up; endings.cc: and go.
  ConnectionPtr NewConnection(Fd fd, const SockAddr& remote);
  void Watch(const ConnectionPtr& c);
  void UpdateInterest(Connection& c);
  void OnAccept();
  bool MakeRoom(const SockAddr& from);
  ConnectionPtr Accepted(Fd fd, const SockAddr& from, std::shared_ptr<Carrier> carrier);
  void OnIo(const ConnectionPtr& c, uint32_t events);
  void OnFirstByte(const ConnectionPtr& c);
  void HungUpEarly(const ConnectionPtr& c);
  void OnHandshake(const ConnectionPtr& c);
  void HandshakeDone(const ConnectionPtr& c);
  Error HandshakeError(const Connection& c, IoStatus status) const;
  void LinkUp(const ConnectionPtr& c);
  void Fail(const ConnectionPtr& c, Error why);
  void Retire(const ConnectionPtr& c, const Error& why, const FrameHeader& last,
              const std::string& text);
  void Drop(const ConnectionPtr& c);
  void LeaveLink(Connection& c, const Error& why);
  void OnLinger(const ConnectionPtr& c);
  void Tick();

  // dials.cc: from an address to a connection.
  uint64_t Post(Purpose purpose, const DialOptions& options);
  void StartDial(uint64_t number, Purpose purpose, const DialOptions& options);
  bool AdoptEarlier(uint64_t number, const DialOptions& options);
  void Connected(uint64_t number, Fd fd, const SockAddr& remote, const Error& why);
  void DialExpired(uint64_t number);
  void DialFailed(uint64_t number, const Error& why);
  void DialDone(uint64_t number);
  bool IsClient(const DialOptions& options) const;
  Error CheckDial(const DialOptions& options) const;
  ConnectionPtr ConnectedFor(uint64_t number, Fd fd, const SockAddr& remote);
  void AdoptForDial(const ConnectionPtr& c, uint64_t number);
  void FindDialOf(const ConnectionPtr& c);
  void FailDialOf(const ConnectionPtr& c, const Error& why);
  void Begin(const ConnectionPtr& c, const DialOptions& options);
  void BeginTls(const ConnectionPtr& c, bool client, const std::optional<PeerId>& expected);

  // birthday_dials.cc: many attempts at once.
  void StartBirthday(uint64_t number);
  void AdoptIfSilent(const ConnectionPtr& c, uint64_t number);

  // carrying.cc: links over one connection.
  void OnCarrierPreamble(const ConnectionPtr& c);
  bool PutOnCarrier(const ConnectionPtr& c, bool opener);  // false: the connection is gone
  void OpenLanes(const ConnectionPtr& c, bool plain);

  // relaying.cc: links through a third endpoint.
  void OnRelayHello(const ConnectionPtr& c);
  bool SayRelayHello(const ConnectionPtr& c, const DialOptions& options);  // false: it is gone
  void RelayEnded(const std::string& token, uint64_t bytes, const Error& why);

  // reflexive.cc: which address do others see?
  void OnTellAddress(const ConnectionPtr& c);
  void AskAddress(const ConnectionPtr& c);
  void OnAskAddress(const ConnectionPtr& c);
  void Knocked(uint64_t number, const SockAddr& remote);

  // control_stream.cc: frames of a link; liveness.cc: probes and heartbeats.
  void ReadFrames(const ConnectionPtr& c);
  void WriteFrames(const ConnectionPtr& c);
  bool OnFrame(const ConnectionPtr& c, const FrameHeader& header, std::string payload);
  void OnProbe(const ConnectionPtr& c, const FrameHeader& header, const std::string& payload);
  void OnProbeAck(const ConnectionPtr& c, const FrameHeader& header, const std::string& payload);
  void Queue(const ConnectionPtr& c, FrameHeader header, std::string payload, int priority);
  void QueueProbe(const ConnectionPtr& c, uint64_t seq, uint32_t suspected, uint8_t flags);
  void CheckLiveness(const ConnectionPtr& c, Clock::time_point now);
  void Meter(Connection& c);

  // bulk_opening.cc
  void OnBulkWanted(const ConnectionPtr& c, const FrameHeader& header, const std::string& payload);
  Clock::time_point BulkDeadline(const Connection& c) const;
  void AskForBulk(const ConnectionPtr& c);
  void IssueToken(const ConnectionPtr& c);
  void OpenStreams(const ConnectionPtr& c, const std::string& token, bool plain);
  void BulkConnected(LinkId link, int index, bool plain, Fd fd, const SockAddr& remote,
                     const Error& why);
  void SendHello(const ConnectionPtr& c);
  void OnBulkHello(const ConnectionPtr& c);
  void BindBulk(const ConnectionPtr& c);
  void HandOver(const ConnectionPtr& c, LinkId link, int index, int count);
  void BulkOpenFailed(const ConnectionPtr& link, const Error& why, bool tell_peer);

  static LinkStats Read(const LinkShared& shared);
  ConnectionPtr Find(uint64_t id) const;
  ConnectionPtr FindLink(LinkId id) const;  // only those that are up
  std::string Who(const Connection& c) const;

  const EndpointOptions options_;
  const TlsContext& tls_;
  EventQueue* const events_;
  EndpointMeters* const totals_;
  Stamp* const stamp_;
  DataPlane* data_ = nullptr;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint32_t> incarnation_{1};
  std::atomic<uint64_t> next_id_{1};

  Reactor loop_;
  std::shared_ptr<ResolverGate> gate_;
  Carriers carriers_;
  Relay relay_;

  // Control thread only.
  Fd listener_;
  std::unordered_map<uint64_t, ConnectionPtr> connections_;
  std::map<uint64_t, PendingDial> dials_;
  int half_open_ = 0;
  int tick_ms_ = 250;
  Clock::time_point last_tick_;

  // Links that are up, for callers of any thread. The data thread is told of admission and end
  // under this lock, so that it hears of them in the right order.
  struct Registered {
    std::shared_ptr<LinkShared> shared;
    PeerId peer;
    bool dialer;
    std::shared_ptr<Carrier> carrier;
  };
  mutable std::mutex registry_mutex_;
  std::unordered_map<LinkId, Registered> registry_;  // guarded by registry_mutex_
};

}  // namespace decentral
