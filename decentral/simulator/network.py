"""Links between simulated peers. They are TCP: in order and reliable while up, silent when not.

lost on the way       sent again after a timeout that doubles; all behind it waits
one direction cut     nothing arrives there; the other one stalls too, for want of acks
cut for SILENCE_S     both ends give the link up, what waited is lost
cut for less          what waited arrives after the next retransmission
process dies          the other end sees a closed link one latency later
machine dies, or the link breaks half: the other end sees nothing, until silence says it
"""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING, TypeAlias

from decentral.peer.protocol import DialFailed, LinkDown, LinkUp, Probe, ProbeAcked, Received
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.simulator.node import Node
    from decentral.simulator.world import World

SILENCE_S = 5.0
DIAL_TIMEOUT_S = 3.0
FIRST_RETRY_S = 0.2
"""TCP's first retransmission timeout, above two latencies."""
OVERHEAD_BYTES = 90
BETWEEN = -1
"""The side of a peer that every part of a partitioned network reaches."""

Carried: TypeAlias = bytes | Probe | ProbeAcked


class Link:
    """One connection. Index 0 of each pair is about what `ends[0]` sends, 1 about the other."""

    __slots__ = (
        "arrives",
        "cut_since",
        "ends",
        "flushing",
        "held",
        "latency_s",
        "lives",
        "open",
        "stalled",
        "unaware",
    )

    def __init__(self, ends: tuple[Node, Node], latency_s: float) -> None:
        self.ends = ends
        self.lives = (ends[0].life, ends[1].life)
        self.latency_s = latency_s
        self.open = True
        self.flushing = False
        """Over, but what was sent before its end still arrives."""
        self.arrives = [0.0, 0.0]
        """When the last message will be there: order is kept."""
        self.stalled = [False, False]
        self.held: list[tuple[int, Carried]] = []
        self.cut_since: float | None = None
        self.unaware = [True, True]
        """Ends that have not been told yet that it is over."""

    def side(self, node: Node) -> int:
        return 0 if self.ends[0] is node else 1

    def other(self, node: Node) -> Node:
        return self.ends[1] if self.ends[0] is node else self.ends[0]


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.sides: dict[PeerId, int] = {}
        """Partition: peers on different sides cannot reach each other."""
        self.cuts: set[tuple[PeerId, PeerId]] = set()
        """Directed: nothing that the first sends reaches the second."""
        self._over: dict[frozenset[PeerId], Link] = {}
        """Links that are over while an end may not know it yet."""

    # -------------------------------------------------------------- who reaches whom

    def passes(self, a: PeerId, b: PeerId) -> bool:
        """Whether packets of `a` reach `b`."""
        if self.cuts and (a, b) in self.cuts:
            return False
        one, other = self.sides.get(a, 0), self.sides.get(b, 0)
        return one == other or BETWEEN in (one, other)

    def connects(self, a: PeerId, b: PeerId) -> bool:
        return self.passes(a, b) and self.passes(b, a)

    def linked(self, a: PeerId, b: PeerId) -> bool:
        return b in self.world.nodes[a].links

    def flows(self, a: PeerId, b: PeerId) -> bool:
        """Whether bulk data can go from `a` to `b` at this moment."""
        link = self.world.nodes[a].links.get(b)
        return link is not None and link.cut_since is None

    def partition(self, sides: dict[PeerId, int]) -> None:
        self.sides = dict(sides)
        self._reconsider_all()

    def unite(self) -> None:
        self.sides = {}
        self._reconsider_all()

    def cut(self, a: PeerId, b: PeerId) -> None:
        """From now on nothing that `a` sends reaches `b`."""
        self.cuts.add((a, b))
        self.reconsider(self.world.nodes[a])

    def cut_pair(self, a: PeerId, b: PeerId) -> None:
        self.cut(a, b)
        self.cut(b, a)

    def mend(self, a: PeerId, b: PeerId) -> None:
        self.cuts.discard((a, b))
        self.reconsider(self.world.nodes[a])

    def heal(self) -> None:
        self.sides = {}
        self.cuts = set()
        self._reconsider_all()

    def links(self) -> list[Link]:
        """All that are open, in a fixed order."""
        return [
            link
            for node in self.world.nodes.values()
            for link in node.links.values()
            if link.ends[0] is node
        ]

    def _reconsider_all(self) -> None:
        for link in self.links():
            self._reconsider(link)

    def reconsider(self, node: Node) -> None:
        """Something changed about what this node sends, receives or answers."""
        for link in list(node.links.values()):
            self._reconsider(link)

    def _reconsider(self, link: Link) -> None:
        a, b = link.ends
        frozen = a.frozen or b.frozen
        cut = [frozen or not self.passes(a.peer, b.peer), frozen or not self.passes(b.peer, a.peer)]
        world = self.world
        if not (cut[0] or cut[1]):
            if link.cut_since is not None:
                # TCP tries again when its timer, which has doubled meanwhile, runs out.
                retry_s, next_s = FIRST_RETRY_S * (1 + world.rng.random()), 0.0
                while link.cut_since + next_s < world.now:
                    next_s += retry_s
                    retry_s *= 2
                wait_s = 0.0 if link.stalled == [False, False] else link.cut_since + next_s
                wait_s = 0.0 if a.woke or b.woke else max(0.0, wait_s - world.now)
                world.after(wait_s, self._flow_again, link, link.cut_since)
            return
        if link.cut_since is None:
            since = link.cut_since = world.now
            for end in (0, 1):
                # An end whose packets vanish hears the other until that one lacks acks, too.
                more_s = 0.25 * world.rng.random() + (0.0 if cut[1 - end] else FIRST_RETRY_S)
                world.after(SILENCE_S + more_s, self._silent, link, since, end)
            if not (cut[0] and cut[1]):
                world.after(FIRST_RETRY_S, self._starve, link, since)
        link.stalled = [link.stalled[0] or cut[0], link.stalled[1] or cut[1]]

    def _starve(self, link: Link, since: float) -> None:
        if link.open and link.cut_since == since:
            link.stalled = [True, True]

    def _flow_again(self, link: Link, since: float) -> None:
        a, b = link.ends
        if not link.open or link.cut_since != since or a.frozen or b.frozen:
            return
        if not self.connects(a.peer, b.peer):
            return
        link.cut_since = None
        link.stalled = [False, False]
        held, link.held = link.held, []
        for side, what in held:
            self._pass_on(link, side, what)

    def _silent(self, link: Link, since: float, end: int) -> None:
        """This end has heard nothing for too long and gives the link up."""
        if not link.open or link.cut_since != since:
            return
        me, other = link.ends[end], link.ends[1 - end]
        told = self.passes(me.peer, other.peer) and self.world.rng.random() < 0.5
        wait = [0.0, 0.0]
        wait[1 - end] = link.latency_s if told else 0.5 * self.world.rng.random()
        closed = [False, False]
        closed[1 - end] = told
        if other.frozen or me.frozen:
            # The kernel of a stopped process has received what the process has not read yet.
            for side, what in link.held:
                if link.ends[1 - side].frozen and isinstance(what, bytes):
                    link.ends[1 - side].deliver(Received(link.ends[side].peer, what))
        self._end(link, wait, closed, "silent for too long")

    # -------------------------------------------------------------- coming up

    def dial(self, dialer: Node, peer: PeerId) -> None:
        target = self.world.nodes.get(peer)
        if target is None or target is dialer or peer in dialer.links:
            return
        world = self.world
        latency_s = self._latency()
        life = dialer.life
        wait_s = 3 * latency_s
        if world.conditions.loss and world.rng.random() < 3 * world.conditions.loss:
            wait_s += 1.0
        if target.machine.natted and target.up:
            if not self._introduced(dialer, target):
                world.after(DIAL_TIMEOUT_S, self._failed, dialer, life, peer, False)
                return
            wait_s += 0.5 + 2 * world.rng.random()
        if not self._answers(dialer, target):
            world.after(DIAL_TIMEOUT_S, self._failed, dialer, life, peer, False)
        else:
            world.after(wait_s, self._connect, dialer, life, target, latency_s)

    def _introduced(self, a: Node, b: Node) -> bool:
        """Whether somebody is linked to both and can tell each of the other's dial."""
        few, many = (a, b) if len(a.links) <= len(b.links) else (b, a)
        return any(peer in many.links for peer in few.links)

    def _answers(self, dialer: Node, target: Node) -> bool:
        """Whether anything comes back from the target's machine, be it a refusal."""
        return (
            target.on
            and not (target.frozen or dialer.frozen)
            and (target.up or not target.machine.natted)
            and self.connects(dialer.peer, target.peer)
        )

    def _failed(self, dialer: Node, life: int, peer: PeerId, refused: bool) -> None:
        if dialer.life == life:
            dialer.deliver(DialFailed(peer, refused, "refused" if refused else "timed out"))

    def _connect(self, dialer: Node, life: int, target: Node, latency_s: float) -> None:
        if dialer.life != life or not dialer.up or target.peer in dialer.links:
            return
        if not self._answers(dialer, target) or not target.up:
            refused = self._answers(dialer, target)
            self._failed(dialer, life, target.peer, refused)
            return
        old = self._over.pop(frozenset((dialer.peer, target.peer)), None)
        if old is not None:
            # Each end hears of the old link's end before it hears of a new one.
            for end in (0, 1):
                self._down(old, end, False, "replaced")
            if target.peer in dialer.links or dialer.life != life or not target.up:
                return
        link = Link((dialer, target), latency_s)
        dialer.links[target.peer] = target.links[dialer.peer] = link
        dialer.deliver(LinkUp(target.peer, target.name, target.address))
        if link.open:
            target.deliver(LinkUp(dialer.peer, dialer.name, dialer.address))

    def _latency(self) -> float:
        return 0.001 + self.world.conditions.farthest_s * self.world.rng.random() ** 2

    # -------------------------------------------------------------- going down

    def process_died(self, node: Node) -> None:
        """Its kernel closes what it had open; behind a cut, that shows only by silence."""
        for link in list(node.links.values()):
            other = link.other(node)
            closed = self.passes(node.peer, other.peer) and not other.frozen
            wait = [0.0, 0.0]
            wait[link.side(other)] = link.latency_s if closed else SILENCE_S
            link.flushing = True
            self._end(link, wait, [closed, closed], "closed" if closed else "silent for too long")

    def machine_died(self, node: Node) -> None:
        for link in list(node.links.values()):
            link.flushing = True
            self._end(link, [SILENCE_S, SILENCE_S], [False, False], "silent for too long")

    def close(self, node: Node, peer: PeerId, says: str) -> None:
        link = node.links.get(peer)
        if link is not None:
            link.flushing = True
            wait = [link.latency_s, link.latency_s]
            closed = [False, False]
            closed[1 - link.side(node)] = True
            self._end(link, wait, closed, says)

    def reset(self, link: Link) -> None:
        """Something on the way breaks the connection; both processes live."""
        self._end(link, [link.latency_s] * 2, [True, True], "connection reset")

    def break_half(self, link: Link) -> None:
        """One end is told, the other is not: a router has forgotten the connection."""
        wait = [link.latency_s, SILENCE_S]
        closed = [True, False]
        if self.world.rng.random() < 0.5:
            wait.reverse()
            closed.reverse()
        self._end(link, wait, closed, "connection reset" if max(closed) else "silent for too long")

    def _end(self, link: Link, wait: list[float], closed: list[bool], says: str) -> None:
        if not link.open:
            return
        link.open = False
        link.held.clear()
        a, b = link.ends
        self._over[frozenset((a.peer, b.peer))] = link
        del a.links[b.peer], b.links[a.peer]
        now = self.world.now
        for end in (0, 1):
            wait_s = max(wait[end], link.arrives[1 - end] - now)
            self.world.after(wait_s, self._down, link, end, closed[end], says)
        self.world.reduces.broken(a.peer, b.peer)

    def _down(self, link: Link, end: int, closed: bool, says: str) -> None:
        if not link.unaware[end]:
            return
        link.unaware[end] = False
        node = link.ends[end]
        if node.life == link.lives[end]:
            node.deliver(LinkDown(link.ends[1 - end].peer, closed, says))

    # -------------------------------------------------------------- traffic

    def send(self, sender: Node, peer: PeerId, what: Carried) -> None:
        link = sender.links.get(peer)
        if link is not None:
            self._pass_on(link, 0 if link.ends[0] is sender else 1, what)

    def _pass_on(self, link: Link, side: int, what: Carried) -> None:
        if link.stalled[side]:
            link.held.append((side, what))
            return
        world = self.world
        conditions, rng = world.conditions, world.rng
        sender, to = link.ends[side], link.ends[1 - side]
        size = OVERHEAD_BYTES + len(what) if type(what) is bytes else OVERHEAD_BYTES
        sent_at = world.now if world.now > sender.uploaded_at else sender.uploaded_at
        sender.uploaded_at = sent_at = sent_at + size / sender.machine.upload
        at = sent_at + link.latency_s * (1 + conditions.jitter * rng.random())
        if conditions.loss and rng.random() < conditions.loss:
            retry_s = FIRST_RETRY_S + 2 * link.latency_s
            at += retry_s
            while rng.random() < conditions.loss:
                retry_s *= 2
                at += retry_s
        at = max(at, to.downloaded_at, link.arrives[side]) + size / to.machine.download
        if size > 2000:
            # Short messages find gaps; only long ones keep the line from others.
            to.downloaded_at = at
        link.arrives[side] = at
        world.order += 1
        heappush(world.heap, (at, world.order, self._arrive, (link, side, what)))

    def _arrive(self, link: Link, side: int, what: Carried) -> None:
        end = 1 - side
        to = link.ends[end]
        # What a dead process has put on the wire still arrives, unless the link broke.
        if to.life != link.lives[end] or not (link.open or link.flushing):
            return
        if not link.open and not link.unaware[end]:
            return  # this end has let go of it: what still came was thrown away
        if link.stalled[side] and link.open:
            link.held.append((side, what))
        elif type(what) is bytes:
            to.deliver(Received(link.ends[side].peer, what))
        elif type(what) is Probe:
            if link.open:
                self._pass_on(link, end, to.answer(what))
        else:
            to.deliver(what)  # type: ignore[arg-type]
