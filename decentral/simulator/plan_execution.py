"""Executes plans chunk by chunk on simulated links: what the cost model's formulas leave out.

    lane ─▶ uplink ─▶ [site uplink] ─▶ half the RTT ─▶ [site downlink] ─▶ downlink ─▶ apply

Modelled: the engine's two rules of order, its chunks and its credits (windowed lanes), the READY
message that opens each lane; uplinks that serve their ready lanes in turn, chunk by chunk (as TCP
streams share a link); links shared by a site; delays; a fixed cost per message at both ends.
Chunks cut through: a byte is received while later ones are still being sent.

Not modelled: loss, congestion control's search for the rate, jitter, processors, encryption.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from decentral.collectives.network import MESSAGE_S, Network
from decentral.collectives.plan import Kind, Plan

HEADER_BYTES = 56
"""Before each chunk (native/wire/frame.h)."""


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How values travel."""

    bytes_per_value: float = 4.0
    """Encoded size of a partial sum's element."""
    final_bytes_per_value: float | None = None
    """Encoded size of a final element; None: the same."""
    chunk_elements: int = 1 << 17
    """What one frame carries at most."""
    window: int | None = 8
    """Chunks that a peer may be ahead of another on whom it waits (op.h); None: no limit."""
    message_s: float = MESSAGE_S
    """What each message costs at each end, whatever its size."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What happened."""

    seconds: float
    """Until the last rank had everything."""
    bytes_sent: tuple[float, ...]
    """By rank."""
    messages: int
    trace_hash: str
    """SHA-256 over every arrival: equal runs have equal hashes."""


def execute(network: Network, plans: Sequence[Plan], wire: Wire | None = None) -> Execution:
    """Runs one plan per rank (that `validate` accepts). ValueError if they get stuck."""
    return _Execution(network, plans, wire or Wire()).run()


@dataclass(slots=True)
class _Lane:
    """What one rank sends to one other, in list order."""

    sender: int
    receiver: int
    steps: list[tuple[Kind, int, int]] = field(default_factory=list)
    """(kind, segment, receives before it on that segment)"""
    ordinals: list[int] = field(default_factory=list)
    """Per step: receives before it on that segment, at the receiver."""
    step: int = 0
    chunk: int = 0
    sequence: int = 0
    granted: int = 0
    """May send sequences below; 0 until READY."""
    queued: bool = False
    applied: int = 0
    promised: int = 0
    """What the receiver has granted so far, on its way or there."""
    windowed: bool = False


class _Link:
    """A serial resource: one uplink, downlink, or link of a site."""

    __slots__ = ("bytes_s", "free_s")

    def __init__(self, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self.free_s = 0.0


_NO_LIMIT = 1 << 62


class _Execution:
    def __init__(self, network: Network, plans: Sequence[Plan], wire: Wire) -> None:
        self.network, self.plans, self.wire = network, plans, wire
        self.delay_s = (network.rtt / 2).tolist()
        self.up = [_Link(rate) for rate in network.up_bytes_s]
        self.down = [_Link(rate) for rate in network.down_bytes_s]
        self.site_up = [_Link(rate) for rate in network.site_up_bytes_s or ()]
        self.site_down = [_Link(rate) for rate in network.site_down_bytes_s or ()]
        self.segments = plans[0].segments
        size = wire.chunk_elements
        self.chunks = [-(-segment.count // size) for segment in self.segments]
        self.received: list[dict[tuple[int, int], int]] = [{} for _ in plans]
        self.early: dict[tuple[int, int, int, int], _Lane] = {}
        self.waiting: dict[tuple[int, int, int], list[_Lane]] = {}
        self.ready: list[deque[_Lane]] = [deque() for _ in plans]
        self.sending: list[_Lane | None] = [None] * len(plans)
        self.bytes_sent = [0.0] * len(plans)
        self.lanes: dict[tuple[int, int], _Lane] = {}
        self.left = 0
        self.messages = 0
        self.last_s = 0.0
        self.now_s = 0.0
        self.trace = hashlib.sha256()
        self.events: list[tuple[float, int, int, tuple[object, ...]]] = []
        self.number = 0
        for rank, plan in enumerate(plans):
            self.build(rank, plan)

    # ---- setting up

    def build(self, rank: int, plan: Plan) -> None:
        receives = [0] * len(self.segments)
        first_sender: dict[int, int] = {}
        for step in plan.steps:
            ordinal = receives[step.segment]
            if step.kind.is_send:
                self.lane(rank, step.peer).steps.append((step.kind, step.segment, ordinal))
                continue
            lane = self.lane(step.peer, rank)
            lane.ordinals.append(ordinal)
            receives[step.segment] += 1
            if first_sender.setdefault(step.segment, step.peer) != step.peer:
                lane.windowed = self.wire.window is not None
            self.left += self.chunks[step.segment]

    def lane(self, sender: int, receiver: int) -> _Lane:
        return self.lanes.setdefault((sender, receiver), _Lane(sender, receiver))

    def run(self) -> Execution:
        members = len(self.plans)
        said = [0] * members
        # Everybody starts with its successor: else rank 0 would be everybody's first.
        for lane in sorted(
            self.lanes.values(), key=lambda lane: (lane.sender - lane.receiver) % members
        ):
            sender, receiver = lane.sender, lane.receiver
            said[receiver] += 1
            lane.promised = (self.wire.window or 0) if lane.windowed else _NO_LIMIT
            opens_s = said[receiver] * self.wire.message_s + self.delay_s[receiver][sender]
            self.at(opens_s, _GRANT, lane, lane.promised)
        while self.events:
            self.now_s, _, what, args = heapq.heappop(self.events)
            what_to_do = (self.grant, self.sent, self.pass_on, self.arrived)[what]
            what_to_do(*args)  # type: ignore[arg-type]
        if self.left:
            raise ValueError(f"stuck: {self.left} chunks never arrive")
        return Execution(self.last_s, tuple(self.bytes_sent), self.messages, self.trace.hexdigest())

    def at(self, when_s: float, what: int, *args: object) -> None:
        self.number += 1
        heapq.heappush(self.events, (when_s, self.number, what, args))

    # ---- sending

    def grant(self, lane: _Lane, granted: int) -> None:
        if granted > lane.granted:
            lane.granted = granted
            self.last_s = max(self.last_s, self.now_s)
            self.offer(lane)

    def offer(self, lane: _Lane) -> None:
        """Queues the lane at its uplink if its next chunk may go."""
        if lane.queued or self.sending[lane.sender] is lane:
            return
        while lane.step < len(lane.steps) and lane.chunk >= self.chunks[lane.steps[lane.step][1]]:
            lane.step, lane.chunk = lane.step + 1, 0
        if lane.step == len(lane.steps) or lane.sequence >= lane.granted:
            return
        _, segment, ordinal = lane.steps[lane.step]
        if self.received[lane.sender].get((segment, lane.chunk), 0) < ordinal:
            self.waiting.setdefault((lane.sender, segment, lane.chunk), []).append(lane)
            return
        lane.queued = True
        self.ready[lane.sender].append(lane)
        self.send_next(lane.sender)

    def send_next(self, rank: int) -> None:
        if self.sending[rank] is not None or not self.ready[rank]:
            return
        lane = self.ready[rank].popleft()
        lane.queued = False
        kind, segment, _ = lane.steps[lane.step]
        size = self.size_bytes(kind, segment, lane.chunk)
        link = self.up[rank]
        took_s = size / link.bytes_s + self.wire.message_s
        self.sending[rank] = lane
        self.bytes_sent[rank] += size
        self.messages += 1
        path = self.path(rank, lane.receiver)
        self.at(self.now_s + took_s, _SENT, lane)
        self.onward(self.now_s, self.now_s + took_s, path, (lane, lane.step, lane.chunk, size))

    def sent(self, lane: _Lane) -> None:
        self.sending[lane.sender] = None
        lane.chunk += 1
        lane.sequence += 1
        self.offer(lane)
        self.send_next(lane.sender)

    def size_bytes(self, kind: Kind, segment: int, chunk: int) -> float:
        size = self.wire.chunk_elements
        elements = min(size, self.segments[segment].count - chunk * size)
        each = self.wire.bytes_per_value
        if kind is Kind.SEND_FINAL and self.wire.final_bytes_per_value is not None:
            each = self.wire.final_bytes_per_value
        return HEADER_BYTES + elements * each

    # ---- on the way

    def path(self, sender: int, receiver: int) -> list[tuple[float, _Link]]:
        """(delay before it, link), after the sender's uplink."""
        delay_s = self.delay_s[sender][receiver]
        a, b = self.network.sites[sender], self.network.sites[receiver]
        links: list[tuple[float, _Link]] = []
        if a != b and self.site_up:
            links.append((0.0, self.site_up[a]))
        if a != b and self.site_down:
            links.append((delay_s, self.site_down[b]))
            delay_s = 0.0
        links.append((delay_s, self.down[receiver]))
        return links

    def onward(
        self,
        first_s: float,
        last_s: float,
        path: list[tuple[float, _Link]],
        chunk: tuple[_Lane, int, int, float],
    ) -> None:
        delay_s = path[0][0]
        self.at(first_s + delay_s, _PASS_ON, last_s + delay_s, path, chunk)

    def pass_on(
        self,
        last_s: float,
        path: list[tuple[float, _Link]],
        chunk: tuple[_Lane, int, int, float],
    ) -> None:
        """The first byte is at path[0] now, the last one will be there at last_s."""
        link = path[0][1]
        lane, step, number, size = chunk
        took_s = size / link.bytes_s
        if len(path) == 1:
            took_s += self.wire.message_s
        start_s = max(self.now_s, link.free_s)
        link.free_s = start_s + took_s
        end_s = max(link.free_s, last_s)
        if len(path) > 1:
            self.onward(start_s, end_s, path[1:], chunk)
        else:
            self.at(end_s, _ARRIVED, lane, step, number)

    # ---- receiving

    def arrived(self, lane: _Lane, step: int, chunk: int) -> None:
        rank, segment = lane.receiver, lane.steps[step][1]
        self.trace.update(struct.pack("<dIIII", self.now_s, lane.sender, rank, segment, chunk))
        self.last_s = max(self.last_s, self.now_s)
        self.early[rank, segment, chunk, lane.ordinals[step]] = lane
        received = self.received[rank]
        while True:
            turn = received.get((segment, chunk), 0)
            applied = self.early.pop((rank, segment, chunk, turn), None)
            if applied is None:
                break
            received[segment, chunk] = turn + 1
            self.left -= 1
            self.credit(applied)
        for waiting in self.waiting.pop((rank, segment, chunk), ()):
            self.offer(waiting)

    def credit(self, lane: _Lane) -> None:
        lane.applied += 1
        if not lane.windowed or self.wire.window is None:
            return
        if lane.applied + self.wire.window >= lane.promised + max(1, self.wire.window // 2):
            lane.promised = lane.applied + self.wire.window
            delay_s = self.delay_s[lane.receiver][lane.sender]
            self.at(self.now_s + delay_s, _GRANT, lane, lane.promised)


_GRANT, _SENT, _PASS_ON, _ARRIVED = range(4)
