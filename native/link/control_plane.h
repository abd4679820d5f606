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

#include "link/connection.h"
#include "link/data_plane.h"
#include "link/endpoint.h"
#include "link/event_queue.h"
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
  struct PendingDial {
    DialOptions options;
    std::shared_ptr<TcpDial> tcp;
    uint64_t connection = 0;  // 0: still connecting
    Reactor::TimerId timer = 0;
  };

  // control_plane.cc: connections come up; endings.cc: and go.
  ConnectionPtr NewConnection(Fd fd, const SockAddr& remote);
  void Watch(const ConnectionPtr& c);
  void UpdateInterest(Connection& c);
  void OnAccept();
  void OnIo(const ConnectionPtr& c, uint32_t events);
  void OnFirstByte(const ConnectionPtr& c);
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
  void StartDial(uint64_t number, const DialOptions& options);
  void Connected(uint64_t number, Fd fd, const SockAddr& remote, const Error& why);
  void DialExpired(uint64_t number);
  void DialFailed(uint64_t number, const Error& why);
  void AdoptForDial(const ConnectionPtr& c, uint64_t number);
  void BeginTls(const ConnectionPtr& c, bool client, const std::optional<PeerId>& expected);

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
  };
  mutable std::mutex registry_mutex_;
  std::unordered_map<LinkId, Registered> registry_;  // guarded by registry_mutex_
};

}  // namespace decentral
