"""Links between simulated peers: ordered and reliable while up, cut by partitions and deaths.

partition shorter than SILENCE_S    messages wait in the link and arrive late
longer                              both ends see a silent LinkDown, what waited is lost
process dies                        the other end sees a closed LinkDown one latency later
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.peer.protocol import DialFailed, LinkDown, LinkUp, Probe, ProbeAcked, Received
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.simulator.world import Node, World

SILENCE_S = 5.0
DIAL_TIMEOUT_S = 3.0


@dataclass(eq=False, slots=True)
class Link:
    """One connection. `arrives` keeps each direction in order."""

    ends: tuple[Node, Node]
    lives: tuple[int, int]
    latency_s: float
    open: bool = True
    flushing: bool = False
    """Closed in good order: what was sent before still arrives."""
    arrives: dict[PeerId, float] = field(default_factory=dict)
    held: list[tuple[Node, Node, bytes]] = field(default_factory=list)
    silent_since: float | None = None
    unaware: set[PeerId] = field(default_factory=set)
    """Ends that have not been told yet that it is closed."""

    def other(self, node: Node) -> Node:
        return self.ends[1] if self.ends[0] is node else self.ends[0]

    def life(self, node: Node) -> int:
        return self.lives[0] if self.ends[0] is node else self.lives[1]


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.links: dict[frozenset[PeerId], Link] = {}
        self.sides: dict[PeerId, int] = {}
        """Partition: peers on different sides cannot reach each other."""
        self.cut: set[frozenset[PeerId]] = set()
        self._old: dict[frozenset[PeerId], Link] = {}
        """Single pairs that cannot reach each other."""
        self.slowest_s = 0.06
        self.lost_probes = 0.01

    # -------------------------------------------------------------- who reaches whom

    def reaches(self, a: PeerId, b: PeerId) -> bool:
        if self.cut and frozenset((a, b)) in self.cut:
            return False
        return self.sides.get(a, 0) == self.sides.get(b, 0)

    def partition(self, sides: dict[PeerId, int]) -> None:
        self.sides = dict(sides)
        self._reconsider()

    def cut_pair(self, a: PeerId, b: PeerId) -> None:
        self.cut.add(frozenset((a, b)))
        self._reconsider()

    def heal(self) -> None:
        self.sides = {}
        self.cut = set()
        self._reconsider()

    def _blocked(self, link: Link) -> bool:
        a, b = link.ends
        return a.paused or b.paused or not self.reaches(a.peer, b.peer)

    def _reconsider(self) -> None:
        for link in list(self.links.values()):
            blocked = self._blocked(link)
            if blocked and link.silent_since is None:
                link.silent_since = self.world.now
                self.world.after(SILENCE_S, self._silent, link, self.world.now)
            elif not blocked and link.silent_since is not None:
                link.silent_since = None
                held, link.held = link.held, []
                for sender, to, payload in held:
                    self._pass_on(link, sender, to, payload)

    def _silent(self, link: Link, since: float) -> None:
        if link.open and link.silent_since == since:
            self._drop(link, closed_for=(), says="silent for too long")

    def paused(self, node: Node, seconds: float) -> None:
        self._reconsider()
        self.world.after(seconds + 5e-7, self._reconsider)

    # -------------------------------------------------------------- coming up, going down

    def dial(self, dialer: Node, peer: PeerId) -> None:
        target = self.world.nodes.get(peer)
        if target is None or target is dialer or frozenset((dialer.peer, peer)) in self.links:
            return
        latency_s = self._latency()
        life = dialer.life
        if not self.reaches(dialer.peer, peer) or target.paused:
            self.world.after(DIAL_TIMEOUT_S, self._failed, dialer, life, peer, False)
        else:
            self.world.after(2 * latency_s, self._connect, dialer, life, target, latency_s)

    def _failed(self, dialer: Node, life: int, peer: PeerId, refused: bool) -> None:
        if dialer.life == life:
            dialer.deliver(DialFailed(peer, refused, "refused" if refused else "timed out"))

    def _connect(self, dialer: Node, life: int, target: Node, latency_s: float) -> None:
        if dialer.life != life or not dialer.up:
            return
        pair = frozenset((dialer.peer, target.peer))
        if pair in self.links:
            return
        if not target.up:
            self._failed(dialer, life, target.peer, self.reaches(dialer.peer, target.peer))
            return
        if not self.reaches(dialer.peer, target.peer) or target.paused or dialer.paused:
            self._failed(dialer, life, target.peer, False)
            return
        old = self._old.pop(pair, None)
        if old is not None:
            # Each end hears of the old link's end before it hears of a new one.
            for end in old.ends:
                self._down(old, end, False, "replaced")
            if pair in self.links or dialer.life != life or not target.up:
                return
        link = Link((dialer, target), (dialer.life, target.life), latency_s)
        self.links[pair] = link
        dialer.deliver(LinkUp(target.peer, f"n{target.index}", f"10.0.0.{target.index}:1"))
        if link.open:
            target.deliver(LinkUp(dialer.peer, f"n{dialer.index}", f"10.0.0.{dialer.index}:1"))

    def _latency(self) -> float:
        return 0.002 + self.slowest_s * self.world.rng.random() ** 2

    def died(self, node: Node) -> None:
        for pair, link in list(self.links.items()):
            if node.peer in pair:
                reach = self.reaches(*(end.peer for end in link.ends))
                self._drop(link, closed_for=(link.other(node),) if reach else (), says="closed")

    def close(self, node: Node, peer: PeerId, says: str) -> None:
        link = self.links.get(frozenset((node.peer, peer)))
        if link is not None:
            link.flushing = True
            self._drop(link, closed_for=(link.other(node),), says=says)

    def reset(self, link: Link) -> None:
        """Something on the way breaks the connection; both processes live."""
        self._drop(link, closed_for=link.ends, says="connection reset")

    def _drop(self, link: Link, closed_for: tuple[Node, ...], says: str) -> None:
        if not link.open:
            return
        link.open = False
        link.held.clear()
        link.unaware = {end.peer for end in link.ends}
        self._old[frozenset(end.peer for end in link.ends)] = link
        self.links.pop(frozenset(end.peer for end in link.ends), None)
        for end in link.ends:
            # A death behind a partition shows only by silence.
            closed = end in closed_for
            soon = closed or link.silent_since is not None or says != "closed"
            wait_s = link.latency_s if soon else SILENCE_S
            wait_s = max(wait_s, link.arrives.get(end.peer, 0.0) - self.world.now)
            self.world.after(wait_s, self._down, link, end, closed, says)
        self.world.reduces.broken(link.ends[0].peer, link.ends[1].peer)

    def _down(self, link: Link, end: Node, closed: bool, says: str) -> None:
        if end.peer not in link.unaware:
            return
        link.unaware.discard(end.peer)
        if end.life == link.life(end):
            end.deliver(LinkDown(link.other(end).peer, closed, says))

    # -------------------------------------------------------------- traffic

    def send(self, sender: Node, peer: PeerId, payload: bytes) -> None:
        link = self.links.get(frozenset((sender.peer, peer)))
        if link is None or not link.open:
            return
        to = link.other(sender)
        if link.silent_since is not None:
            link.held.append((sender, to, payload))
        else:
            self._pass_on(link, sender, to, payload)

    def _pass_on(self, link: Link, sender: Node, to: Node, payload: bytes) -> None:
        delay_s = link.latency_s * (1 + 0.5 * self.world.rng.random())
        at = max(self.world.now + delay_s, link.arrives.get(to.peer, 0.0))
        link.arrives[to.peer] = at
        self.world.at(at, self._arrive, link, sender, to, payload)

    def _arrive(self, link: Link, sender: Node, to: Node, payload: bytes) -> None:
        # What a dead process has put on the wire still arrives, unless the link broke.
        if to.life != link.life(to):
            return
        if link.open or link.flushing:
            if link.silent_since is not None:
                link.held.append((sender, to, payload))
            else:
                to.deliver(Received(sender.peer, payload))

    def probe(self, sender: Node, probe: Probe) -> None:
        link = self.links.get(frozenset((sender.peer, probe.peer)))
        if link is None or link.silent_since is not None:
            return
        if self.world.rng.random() < self.lost_probes:
            return
        delay_s = 2 * link.latency_s * (1 + 0.3 * self.world.rng.random())
        self.world.after(delay_s, self._ack, link, sender, probe)

    def _ack(self, link: Link, sender: Node, probe: Probe) -> None:
        to = link.other(sender)
        if not link.open or link.silent_since is not None or sender.life != link.life(sender):
            return
        if probe.suspected_incarnation >= to.incarnation:
            to.incarnation = probe.suspected_incarnation + 1
        sender.deliver(ProbeAcked(to.peer, probe.seq, to.incarnation, to.trainer.progress()))
