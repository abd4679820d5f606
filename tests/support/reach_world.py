"""Peers with reach machines on a pretended network, behind pretended NATs, on a pretended clock.

Whether a way leads anywhere is decided packet by packet: by what the boxes on the way have let out
before, never by what the machine thinks of them.

    action ─▶ World ── SYN ─▶ Box.out ─ half a round trip ─▶ Box.lets_in ─▶ a listener or an opener
    event  ◀─ World ◀─ TCP, TLS and admission: three round trips ─────────────────────┘
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from nat_box import KINDS, Address, Box, join, split

from decentral.peer.reach import actions as a
from decentral.peer.reach import talk
from decentral.peer.reach.reach import Reach
from decentral.peer.reach.ways import RANK, Way
from decentral.types import PeerId
from decentral.types import peer_id as id_of

PORT = 4242
SYNS_S = (0.0, 1.0, 3.0)
"""When TCP says it again."""
DIAL_S, PROBE_S, KNOCK_S, OFFER_S = 5.0, 1.5, 1.5, 12.0
BATCH, BATCH_S = 64, 0.02
"""A spray's packets leave in batches."""
CAME_IN = Way(kind="direct", how="inbound", address="")
PUNCHED_IN = Way(kind="punched", how="inbound", address="")


@dataclass(eq=False)
class Attempt:
    """Somebody's `Connect`, or a dial of its user's (number 0)."""

    number: int
    way: Way
    to: PeerId
    began: float
    over: bool = False
    ports: dict[int, None] = field(default_factory=dict)
    """Local ports that it opens from, in order."""


@dataclass(eq=False)
class Link:
    ends: frozenset[PeerId]
    ways: dict[PeerId, Way]
    met: float
    """When its TCP connection stood."""
    seen: set[PeerId] = field(default_factory=set)
    """Ends that know of it."""
    relay: PeerId = ""
    token: bytes = b""

    @property
    def kind(self) -> str:
        return max((way.kind for way in self.ways.values()), key=RANK.__getitem__)


@dataclass(eq=False)
class Host:
    name: str
    id: PeerId
    ip: str
    box: Box
    reach: Reach
    networks: tuple[str, ...]
    alive: bool = True
    next_port: int = 20_000
    attempts: list[Attempt] = field(default_factory=list)
    wanted: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    offers: dict[bytes, dict[int, tuple[Host, Attempt]]] = field(default_factory=dict)
    unreached: list[a.Unreached] = field(default_factory=list)
    connects: list[tuple[float, a.Connect]] = field(default_factory=list)
    idle: int = 0
    """Ticks in a row that did nothing and moved no timer."""

    @property
    def address(self) -> str:
        return join((self.ip, PORT))

    def port(self) -> int:
        self.next_port += 1
        return self.next_port


class World:
    def __init__(self, *, rtt_s: float = 0.0002, seed: int = 0) -> None:
        self.rng, self.rtt_s, self.now = Random(seed), rtt_s, 0.0
        self.hosts: dict[PeerId, Host] = {}
        self.links: dict[frozenset[PeerId], Link] = {}
        self.history: list[tuple[float, str, frozenset[PeerId], str]] = []
        """(when, up | down, ends, kind)"""
        self.rtts: dict[frozenset[PeerId], float] = {}
        self.loses: Callable[[Host, PeerId, bytes], bool] = lambda sender, to, payload: False
        """Does this message get lost?"""
        self.drops: Callable[[Host, Address], bool] = lambda sender, to: False
        """Does this SYN get lost?"""
        self.again_s = 2.0
        """A link that is wanted and not there is wanted again after so long."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    # ------------------------------------------------------------------------ who is there

    def add(
        self, kind: str, *, box: Box | None = None, relays: str = "auto", remaps: bool = False
    ) -> Host:
        """A peer behind a box of that kind, or behind somebody's (they are on one LAN then)."""
        number = len(self.hosts) + 1
        mapping, filtering = KINDS[kind]
        if box is None:
            box = Box(f"203.0.113.{number}", mapping, filtering, self.rng, remaps)
        ip = box.ip if box.mapping == "none" else f"10.{box.ip.rpartition('.')[2]}.0.{number}"
        near = f"{ip}/32" if box.mapping == "none" else f"10.{box.ip.rpartition('.')[2]}.0.0/24"
        ident = id_of(self.rng.randbytes(32))
        reach = Reach(ident, Random(self.rng.random()), relays=relays)
        host = Host(f"{kind}{number}", ident, ip, box, reach, (near,))
        self.hosts[ident] = host
        self.feed(host, a.Moved((host.address,), host.networks))
        return host

    def rtt(self, one: Host, other: Host) -> float:
        return self.rtts.get(frozenset((one.id, other.id)), self.rtt_s)

    def link(self, one: Host, other: Host) -> Link | None:
        """The link of these two, if both ends know of it."""
        link = self.links.get(frozenset((one.id, other.id)))
        return link if link is not None and link.seen == link.ends else None

    def kind(self, one: Host, other: Host) -> str:
        link = self.link(one, other)
        return link.kind if link is not None else "none"

    # ------------------------------------------------------------------------ time

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay_s, what)

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(self.now, when), self._count, what))

    def run(self, limit_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """For so long, or until that holds: whether it does."""
        end = self.now + limit_s
        while not until():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return until()
            self.now, _, what = heapq.heappop(self._heap)
            what()
        return True

    # ------------------------------------------------------------------------ the machines

    def feed(self, host: Host, event: a.Event) -> None:
        if not host.alive:
            return
        before = host.reach.next_timer()
        todo = host.reach.handle(event, self.now, 1e9 + self.now)
        for action in todo:
            self._do(host, action)
        due = host.reach.next_timer()
        if isinstance(event, a.Tick) and not todo and due == before:
            host.idle += 1
            assert host.idle < 2, f"{host.name} is busy with nothing at {self.now}"
        else:
            host.idle = 0
        if due is not None:
            self.at(due, lambda: self._tick(host, due))

    def _tick(self, host: Host, due: float) -> None:
        if host.reach.next_timer() == due:
            self.feed(host, a.Tick())

    def _do(self, host: Host, action: a.Action) -> None:
        match action:
            case a.Say(to, payload):
                self._say(host, to, payload)
            case a.Connect(to, way, number):
                host.connects.append((self.now, action))
                self._connect(host, Attempt(number, way, to, self.now))
            case a.Probe(observer):
                self._probe(host, observer)
            case a.KnockAt(asker, address):
                self._knock(host, asker, address)
            case a.OfferRelay(token, _):
                host.offers[token] = {}
                self.later(OFFER_S, lambda: self._offer_over(host, token))
            case a.Unreached():
                host.unreached.append(action)
                self._again(host, action.peer)
            case a.NatLearned():
                pass

    def _say(self, host: Host, to: PeerId, payload: bytes) -> None:
        link = self.links.get(frozenset((host.id, to)))
        if link is None or host.id not in link.seen or self.loses(host, to, payload):
            return
        other = self.hosts[to]

        def arrives() -> None:
            if frozenset((host.id, to)) in self.links:
                self.feed(other, a.Heard(host.id, payload))

        self.later(self.rtt(host, other) / 2, arrives)

    def tell(self, host: Host, to: Host, message: talk.Message) -> None:
        """This host says what its machine never would."""
        self._say(host, to.id, talk.pack(message))

    # ------------------------------------------------------------------------ wishes

    def want(self, host: Host, other: Host, addresses: Iterable[str] | None = None) -> None:
        """It wants a link, and goes on wanting it; `addresses`: what it knows, without asking."""
        known = (other.address,) if addresses is None else tuple(addresses)
        host.wanted[other.id] = known
        if frozenset((host.id, other.id)) in self.links:
            return
        if not any(one.to == other.id and not one.number for one in host.attempts):
            for address in known:
                way = Way(kind="direct", how="dialled", address=address)
                self._connect(host, Attempt(0, way, other.id, self.now))
            if not known:
                self.later(0.0, lambda: self.feed(host, a.DirectFailed(other.id, "no address")))
        self.feed(host, a.Want(other.id, known))

    def _again(self, host: Host, peer: PeerId) -> None:
        def now() -> None:
            if host.alive and peer in host.wanted and self.hosts[peer].alive:
                self.want(host, self.hosts[peer], host.wanted[peer])

        self.later(self.again_s, now)

    # ------------------------------------------------------------------------ packets

    def _syn(
        self, host: Host, port: int, to: str, taken: Callable[[Host, int, Address], None]
    ) -> None:
        """One packet. `taken(who got it, at which port, from where)`, half a round trip later."""
        address = split(to)
        for other in self.hosts.values():  # on the same LAN no box is between
            if other.box is host.box and address[0] == other.ip:
                near = partial(taken, other, address[1], (host.ip, port))
                self.later(self.rtt(host, other) / 2, near)
                return
        source = host.box.out((host.ip, port), address)
        there = [one for one in self.hosts.values() if one.box.ip == address[0]]
        if not there or there[0].box is host.box or self.drops(host, address):
            return

        def arrives() -> None:
            inner = there[0].box.lets_in(address[1], source)
            for other in there:
                if inner is not None and other.ip == inner[0] and other.alive:
                    taken(other, inner[1], source)

        self.later(self.rtt(host, there[0]) / 2, arrives)

    def _probe(self, host: Host, observer: str) -> None:
        said: list[str] = []

        def answer(address: str) -> None:
            if not said:
                said.append(address)
                self.feed(host, a.Observed(observer, address))

        def taken(other: Host, port: int, source: Address) -> None:
            if port == PORT:
                self.later(1.5 * self.rtt(host, other), lambda: answer(join(source)))

        self._syn(host, PORT, observer, taken)
        self.later(PROBE_S, lambda: answer(""))

    def _knock(self, host: Host, asker: PeerId, address: str) -> None:
        said: list[bool] = []

        def done(got_in: bool) -> None:
            if not said:
                said.append(got_in)
                self.feed(host, a.KnockDone(asker, address, got_in))

        def taken(other: Host, port: int, source: Address) -> None:
            if port == PORT:
                self.later(self.rtt(host, other) / 2, lambda: done(True))

        self._syn(host, host.port(), address, taken)
        self.later(KNOCK_S, lambda: done(False))

    # ------------------------------------------------------------------------ attempts

    def _connect(self, host: Host, attempt: Attempt) -> None:
        way = attempt.way
        host.attempts.append(attempt)
        if way.from_listening_port:
            attempt.ports[PORT] = None
        for _ in range(0 if way.from_listening_port else way.sockets):
            attempt.ports[host.port()] = None
        for delay_s in SYNS_S:
            if delay_s < way.timeout_s and not way.spray:
                self.later(delay_s, lambda: self._open(host, attempt))
        if way.spray:
            ports = self.rng.sample(range(1024, 65536), way.spray)
            batches = [ports[at : at + BATCH] for at in range(0, len(ports), BATCH)]
            for number, batch in enumerate(batches):
                self.later(
                    number * BATCH_S, lambda guesses=batch: self._open(host, attempt, guesses)
                )
            for delay_s in SYNS_S[1:2]:  # each guess is said again, like any SYN
                self.later(delay_s + 0.5, lambda: self._open(host, attempt, ports))
        self.later(way.timeout_s, lambda: self._fails(host, attempt, "no answer"))

    def _open(self, host: Host, attempt: Attempt, guesses: Iterable[int] = ()) -> None:
        ip, port = split(attempt.way.address)
        for to in guesses or (port,):
            for local in attempt.ports:
                if not attempt.over:
                    self._syn(
                        host,
                        local,
                        join((ip, to)),
                        lambda other, at, source: self._met(host, attempt, other, at, source),
                    )

    def _met(self, host: Host, attempt: Attempt, other: Host, port: int, source: Address) -> None:
        """Its SYN has come to somebody's port: is anybody there?"""
        if attempt.over or not host.alive:
            return
        if attempt.way.kind == "relayed":
            if port == PORT:
                self._at_relay(host, attempt, other)
            return
        opens = (one for one in other.attempts if self._opens_to(one, host, port, source))
        twin = next(opens, None)
        if (port != PORT and twin is None) or other.id != attempt.to:
            return
        attempt.over = True
        if twin is not None and attempt.way.kind == "punched":
            twin.over = True
        else:
            twin = None
        trip_s = self.rtt(host, other)
        self.later(2.5 * trip_s, partial(self._up, host, attempt, other, twin, source))

    def _opens_to(self, one: Attempt, host: Host, port: int, source: Address) -> bool:
        """Whether this attempt opens from that port to there (or guesses where there is)."""
        return (
            not one.over
            and one.to == host.id
            and one.way.kind == "punched"
            and port in one.ports
            and split(one.way.address)[0] == source[0]
        )

    def _at_relay(self, host: Host, attempt: Attempt, relay: Host) -> None:
        sides = relay.offers.get(attempt.way.relay_token)
        if sides is None or attempt.way.relay_side in sides or relay.id != attempt.way.relay:
            return
        sides[attempt.way.relay_side] = (host, attempt)
        if len(sides) < 2:
            return
        (one, first), (other, second) = sides[0], sides[1]
        if first.over or second.over:
            return
        first.over = second.over = True
        trip_s = self.rtt(one, relay) + self.rtt(relay, other)
        self.later(2.5 * trip_s, partial(self._up, one, first, other, second, None, relay))

    def _fails(self, host: Host, attempt: Attempt, says: str) -> None:
        """Its time is up, or what it led to is not needed."""
        if attempt in host.attempts and not (attempt.over and says == "no answer"):
            host.attempts.remove(attempt)
            attempt.over = True
            if attempt.number:
                self.feed(host, a.WayFailed(attempt.number, says))
            elif not any(one.to == attempt.to and not one.number for one in host.attempts):
                self.feed(host, a.DirectFailed(attempt.to, says))

    def _offer_over(self, host: Host, token: bytes) -> None:
        used = any(link.token == token for link in self.links.values())
        if not used and host.offers.pop(token, None) is not None:
            self.feed(host, a.RelayEnded(token))

    # ------------------------------------------------------------------------ links

    def _up(
        self,
        client: Host,
        attempt: Attempt,
        server: Host,
        twin: Attempt | None,
        source: Address | None,
        relay: Host | None = None,
    ) -> None:
        ends = frozenset((client.id, server.id))
        known = self.links.get(ends)
        if not client.alive or not server.alive:
            return
        rank = RANK[attempt.way.kind]
        if known is not None and RANK[known.kind] <= rank:
            says = "another address of this peer was quicker"
            self._fails(client, attempt, says)
            if twin is not None:
                self._fails(server, twin, says)
            return
        came = CAME_IN if rank == 0 else PUNCHED_IN
        ways = {client.id: attempt.way, server.id: twin.way if twin is not None else came}
        trip_s = self.rtt(client, server)
        link = Link(ends, ways, self.now - 2 * trip_s)
        if relay is not None:
            link.relay, link.token = relay.id, attempt.way.relay_token
        if known is not None:
            self._unrelay(known)
        self.links[ends] = link
        self.history.append((self.now, "up", ends, link.kind))
        where = {client: attempt.way.address, server: join(source) if source is not None else ""}
        for host, mine, delay_s in ((client, attempt, 0.0), (server, twin, 0.5)):
            if mine is not None:
                host.attempts.remove(mine)
            if rank == 0:  # the other dials to it need not end
                for one in [one for one in host.attempts if one.to in ends and not one.number]:
                    host.attempts.remove(one)
                    one.over = True
            self.later(
                delay_s * trip_s,
                partial(self._know, host, link, client, where[host]),
            )

    def _know(self, host: Host, link: Link, client: Host, remote: str) -> None:
        if self.links.get(link.ends) is link and host.alive:
            link.seen.add(host.id)
            (other,) = link.ends - {host.id}
            way = link.ways[host.id]
            dialled = remote if host is client and RANK[way.kind] == 0 else ""
            self.feed(host, a.LinkUp(other, way, dialled, remote))

    def _unrelay(self, link: Link) -> None:
        if link.token:
            relay = self.hosts[link.relay]
            relay.offers.pop(link.token, None)
            self.later(0.0, lambda: self.feed(relay, a.RelayEnded(link.token)))

    def cut(self, link: Link) -> None:
        """It dies; both ends see it at once, and want it again if they wanted it."""
        if self.links.get(link.ends) is not link:
            return
        del self.links[link.ends]
        self.history.append((self.now, "down", link.ends, link.kind))
        self._unrelay(link)
        for ident in sorted(link.ends):
            host, (other,) = self.hosts[ident], link.ends - {ident}
            if ident in link.seen:
                self.feed(host, a.LinkDown(other))
                if other in host.wanted and self.hosts[other].alive:
                    self.want(host, self.hosts[other], host.wanted[other])

    def seeds(self, count: int = 2, *, relays: str = "auto") -> list[Host]:
        """Public peers that are linked to each other."""
        seeds = [self.add("public", relays=relays) for _ in range(count)]
        for one in seeds:
            for other in seeds:
                if one.id < other.id:
                    self.want(one, other)
        self.run(3.0)
        return seeds

    def join(self, kind: str, seeds: Iterable[Host], **how: Any) -> Host:
        """A peer that links with these and has time to look at its NAT."""
        host = self.add(kind, **how)
        for seed in seeds:
            self.want(host, seed)
        self.run(4.0)
        return host

    def kill(self, host: Host) -> None:
        host.alive = False
        for link in list(self.links.values()):
            if host.id in link.ends or link.relay == host.id:
                self.cut(link)
