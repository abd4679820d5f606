"""How soon a death is known and how seldom the living are called dead: membership alone, at scale.

    N unmodified Membership machines, links as the overlay wants them, no log and no rounds
    probe ──▶ lost with `loss`; else acked by native code, or when the stalled peer wakes
    gossip ─▶ never lost (links are TCP), but late by a retransmission with `loss`

A stalled peer wakes with its overdue timers first and its letters second: the order in which a
slow peer thinks worst of the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from decentral.peer.context import Context, Peering
from decentral.peer.member import DEAD
from decentral.peer.membership import Membership
from decentral.peer.messages import Gossip, PingAck, PingReq, unpack
from decentral.peer.protocol import CoreConfig, Dial, Fault, Probe, Send
from decentral.simulator.world import FINGERPRINT, RUN, peer_id
from decentral.types import PeerId

SILENCE_S = 5.0
RETRANSMIT_S = 0.3
STALL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What a run came to."""

    peers: int
    peer_hours: float
    false_evictions: int
    """How often somebody alive was called dead, once per time that it happened to it."""
    informed_s: tuple[float, ...]
    """Per death and living peer: how long after it the peer knew, sorted; inf if not in time."""

    def informed_within_s(self, share: float) -> float:
        """In this time that share of the living knew of a death."""
        return self.informed_s[min(len(self.informed_s) - 1, int(share * len(self.informed_s)))]


class _Machine:
    def __init__(self, index: int, config: CoreConfig, seed: int) -> None:
        self.peer = peer_id(index)
        rng = Random(seed * 1_000_003 + index)
        self.ctx = Context(config, self.peer, "", f"10.0.0.{index}:1", b"b" * 16, rng)
        self.swim = Membership(self.ctx)
        self.up = True
        self.stalled_until = 0.0
        self.letters: list[Callable[[], None]] = []
        self.incarnation = 1
        self.timer = float("inf")
        self.due = float("inf")


class _World:
    def __init__(self, peers: int, seed: int, loss: float, config: CoreConfig) -> None:
        self.rng = Random(seed)
        self.loss = loss
        self.now = 0.0
        self.died_at: dict[PeerId, float] = {}
        self.false_evictions = 0
        self.informed: dict[tuple[PeerId, PeerId], float] = {}
        self._believers: dict[PeerId, set[PeerId]] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.machines = {m.peer: m for m in (_Machine(i, config, seed) for i in range(peers))}
        members = tuple(self.machines)
        for one in self.machines.values():
            for peer in members:
                if peer != one.peer:
                    one.swim.learn(peer, "", "")
            wanted = one.swim.links_wanted(members)
            one.swim.wanted = set(wanted)
            one.ctx.links = {peer: Peering(0.0) for peer in wanted}
            self.at(self.rng.random(), self._tick, one)

    # -------------------------------------------------------------- time

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, call, args))

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, args = heapq.heappop(heap)
            call(*args)
        self.now = until

    def _tick(self, one: _Machine) -> None:
        if not one.up or self.now < one.stalled_until:
            return
        one.timer = float("inf")
        one.ctx.now = self.now
        due = one.swim.next_timer()
        if due <= self.now:
            # When the machine last looked, it asked to be called at `due` or before.
            one.swim.tick(self.now - one.due if one.due != float("inf") else 0.0)
        self._after(one)

    def _letter(self, one: _Machine, read: Callable[[], None]) -> None:
        if not one.up:
            return
        if self.now < one.stalled_until:
            one.letters.append(read)
            return
        one.ctx.now = self.now
        read()
        self._after(one)

    def stall(self, one: _Machine, seconds: float) -> None:
        if one.up:
            one.stalled_until = self.now + seconds
            self.at(one.stalled_until, self._wake, one)

    def _wake(self, one: _Machine) -> None:
        self._tick(one)
        letters, one.letters = one.letters, []
        for read in letters:
            self._letter(one, read)

    # -------------------------------------------------------------- what machines want done

    def _after(self, one: _Machine) -> None:
        one.swim.flush()
        out, one.ctx.out = one.ctx.out, []
        for action in out:
            match action:
                case Send(peer, payload, _):
                    self._send(one, self.machines[peer], unpack(payload))
                case Probe():
                    self._probe(one, action)
                case Fault("peer-died", peer, _):
                    self._believes(one, peer)
                case Fault("peer-back", peer, _) if peer is not None:
                    self._believers.get(peer, set()).discard(one.peer)
                case Dial():
                    pass  # nobody comes back here
        one.due = one.swim.next_timer()
        due = max(one.due, self.now + 1e-4)
        if due < one.timer or one.timer <= self.now:
            one.timer = due
            self.at(due, self._tick, one)

    def _believes(self, one: _Machine, peer: PeerId | None) -> None:
        assert peer is not None
        if peer in self.died_at:
            self.informed.setdefault((peer, one.peer), self.now - self.died_at[peer])
            return
        believers = self._believers.setdefault(peer, set())
        if not believers:
            self.false_evictions += 1
        believers.add(one.peer)

    def _delay_s(self) -> float:
        return 0.002 + 0.06 * self.rng.random() ** 2

    def _send(self, one: _Machine, to: _Machine, msg: object) -> None:
        late_s = RETRANSMIT_S if self.rng.random() < self.loss else 0.0
        match msg:
            case Gossip():
                read = lambda: to.swim.on_gossip(one.peer, msg)  # noqa: E731
            case PingReq():
                read = lambda: to.swim.on_ping_req(one.peer, msg)  # noqa: E731
            case PingAck():
                read = lambda: to.swim.on_ping_ack(one.peer, msg)  # noqa: E731
            case _:
                raise TypeError(f"membership sends a {type(msg).__name__}")
        self.at(self.now + self._delay_s() + late_s, self._letter, to, read)

    def _probe(self, one: _Machine, probe: Probe) -> None:
        if self.rng.random() >= self.loss:
            self.at(self.now + self._delay_s(), self._probed, one, probe)

    def _probed(self, one: _Machine, probe: Probe) -> None:
        to = self.machines[probe.peer]
        if not to.up:
            return
        if self.now < to.stalled_until:
            self.at(to.stalled_until, self._probed, one, probe)
            return
        if probe.suspected_incarnation >= to.incarnation:
            to.incarnation = probe.suspected_incarnation + 1
        read = lambda at=to.incarnation: one.swim.on_ack(to.peer, probe.seq, at, 0)  # noqa: E731
        self.at(self.now + self._delay_s(), self._letter, one, read)

    # -------------------------------------------------------------- faults

    def kill(self, victim: _Machine) -> None:
        victim.up = False
        self.died_at[victim.peer] = self.now
        for one in self.machines.values():
            if victim.peer in one.ctx.links:
                self.at(self.now + SILENCE_S, self._letter, one, self._silence(one, victim.peer))

    @staticmethod
    def _silence(one: _Machine, peer: PeerId) -> Callable[[], None]:
        def read() -> None:
            if one.ctx.links.pop(peer, None) is not None:
                one.swim.on_link_down(peer, closed=False, lived_s=60.0)

        return read

    def keep_stalling(self, one: _Machine) -> None:
        self.stall(one, STALL_S)
        self.at(self.now + STALL_S + 0.5 + 2.5 * self.rng.random(), self.keep_stalling, one)


def detect(
    seed: int,
    peers: int = 1000,
    *,
    loss: float = 0.05,
    seconds: float = 60.0,
    deaths: int = 0,
    stalling: float = 0.0,
    lifeguard: bool = True,
    full_mesh_up_to: int = 64,
) -> Detection:
    """Peers that die silently one by one (`deaths`), or a part of them that stalls on and off."""
    config = CoreConfig(
        run=RUN, fingerprint=FINGERPRINT, lifeguard=lifeguard, full_mesh_up_to=full_mesh_up_to
    )
    world = _World(peers, seed, loss, config)
    everybody = list(world.machines.values())
    for one in world.rng.sample(everybody, int(stalling * peers)):
        world.at(world.rng.random() * 4.0, world.keep_stalling, one)
    for number, victim in enumerate(world.rng.sample(everybody, deaths)):
        world.at(3.0 + (seconds - 18.0) * number / deaths, world.kill, victim)
    world.run(seconds)
    informed = []
    for peer in world.died_at:
        for one in everybody:
            if one.up:
                known = one.swim.state(peer) == DEAD
                informed.append(world.informed[peer, one.peer] if known else float("inf"))
    return Detection(
        peers=peers,
        peer_hours=peers * seconds / 3600,
        false_evictions=world.false_evictions,
        informed_s=tuple(sorted(informed)),
    )
