"""A handful of real `PeerCore`s in one process: links without bytes lost, trainers without work.

    handle(event) ──▶ actions ──▶ the others' events, in order, until nobody has anything to do
    step(dt)      ──▶ the clock moves; whose timer is due gets a Tick

For attacks on what is behind decryption: whatever `handle` raises comes out of `run`.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from dataclasses import dataclass, field
from math import inf

from decentral.peer import protocol as p
from decentral.peer.core import PeerCore
from decentral.types import PeerId

RUN = hashlib.sha256(b"hostile run").digest()
FINGERPRINT = hashlib.sha256(b"hostile recipe").digest()
INITIAL = hashlib.sha256(b"initial state").digest()
SAMPLES = 64
COMPUTE_S = 0.2
MOST_EVENTS = 200_000
"""More than that at one moment is a storm that does not end."""


def peer_id(number: int) -> PeerId:
    raw = hashlib.sha256(f"small mesh {number}".encode()).digest()
    return "peer:" + base64.b32encode(raw).decode().lower().rstrip("=")


@dataclass(slots=True)
class Seat:
    """One peer: its core, and what stands for its trainer."""

    core: PeerCore
    links: set[PeerId] = field(default_factory=set)
    incarnation: int = 1
    reduced: dict[tuple[int, int], bytes] = field(default_factory=dict)
    tokens: int = 0
    work_at: float = inf
    """When the trainer is done with its inner steps."""
    ended: str = ""
    """Why it has ended: fenced, or left."""
    faults: Counter[str] = field(default_factory=Counter)


class StormError(AssertionError):
    """The peers keep each other busy without time passing."""


class SmallMesh:
    def __init__(self, peers: int, seed: int = 0, lease_samples: int = SAMPLES) -> None:
        self.now = 1000.0
        self.seats: dict[PeerId, Seat] = {}
        self.config = p.CoreConfig(
            run=RUN, fingerprint=FINGERPRINT, lease_samples=lease_samples, quorum_timeout_s=5.0
        )
        self.entries: dict[tuple[str, int], p.Entry] = {}
        """Per (lineage, slot): what was committed there first."""
        self.given: dict[tuple[PeerId, int], int] = {}
        """Per (peer, round): the tokens that it contributes."""
        self.violations: list[str] = []
        self.sent: list[tuple[PeerId, PeerId, bytes]] = []
        """Every control message, while `record` is on."""
        self.record = False
        self.protected: PeerId | None = None
        """A peer whose links nobody closes, so that it may go on sending nonsense."""
        self.closed: Counter[PeerId] = Counter()
        """Links that were closed for what the other end had sent, by that end."""
        self._dialled: set[tuple[PeerId, PeerId]] = set()
        self._events: deque[tuple[PeerId, p.Event]] = deque()
        for number in range(peers):
            self.add(number, seed)

    # -------------------------------------------------------------- coming and going

    def add(self, number: int, seed: int = 0) -> PeerId:
        peer = peer_id(number)
        boot = hashlib.sha256(f"{number} {seed}".encode()).digest()[:16]
        core = PeerCore(self.config, peer, f"n{number}", f"n{number}:1", boot, None, seed + number)
        found = not self.seats
        others = list(self.seats)
        seat = self.seats[peer] = Seat(core)
        self._execute(peer, core.start(self.now, found))
        if found:
            self.give(peer, p.StateHeld(0, INITIAL))
        for other in others:
            self.link(peer, other)
        self.run()
        assert seat.core is core
        return peer

    def link(self, a: PeerId, b: PeerId) -> None:
        one, other = self.seats[a], self.seats[b]
        if a == b or b in one.links or one.ended or other.ended:
            return
        one.links.add(b)
        other.links.add(a)
        self.give(a, p.LinkUp(b, other.core.ctx.name, other.core.ctx.address))
        self.give(b, p.LinkUp(a, one.core.ctx.name, one.core.ctx.address))

    def unlink(self, a: PeerId, b: PeerId, says: str) -> None:
        if b in self.seats[a].links:
            self.seats[a].links.discard(b)
            self.seats[b].links.discard(a)
            self.give(a, p.LinkDown(b, False, says))
            self.give(b, p.LinkDown(a, True, says))

    # -------------------------------------------------------------- time

    def give(self, peer: PeerId, event: p.Event) -> None:
        """Handled by the next `run`."""
        self._events.append((peer, event))

    def run(self) -> None:
        """Until nobody has anything to do at this moment."""
        for _ in range(MOST_EVENTS):
            if not self._events:
                return
            peer, event = self._events.popleft()
            seat = self.seats[peer]
            if not seat.ended:
                self._execute(peer, seat.core.handle(event, self.now))
                seat.core.next_timer()
        raise StormError(f"{MOST_EVENTS} events at one moment")

    def step(self, seconds: float) -> None:
        """Let so much time pass."""
        self.now += seconds
        dialled, self._dialled = sorted(self._dialled), set()
        for peer, to in dialled:
            if to in self.seats:
                self.link(peer, to)
        for peer, seat in self.seats.items():
            if seat.work_at <= self.now:
                self._work(peer, seat)
            due = seat.core.next_timer()
            if not seat.ended and due is not None and due <= self.now:
                self.give(peer, p.Tick())
        self.run()

    def settle(self, rounds: int, most_s: float = 60.0) -> bool:
        """Go on until so many more rounds are committed by all who are in; False: they are not."""
        goal = self.round() + rounds
        until = self.now + most_s
        while self.round() < goal and self.now < until:
            self.step(0.05)
        return self.round() >= goal

    def round(self) -> int:
        """What every member that still runs has committed, the protected one aside."""
        return min(
            (
                seat.core.status().round
                for peer, seat in self.seats.items()
                if not seat.ended and seat.core.replica.member and peer != self.protected
            ),
            default=0,
        )

    # -------------------------------------------------------------- what the cores want done

    def _execute(self, peer: PeerId, actions: list[p.Action]) -> None:
        seat = self.seats[peer]
        for action in actions:
            match action:
                case p.Send(to, payload):
                    if self.record:
                        self.sent.append((peer, to, payload))
                    if to in seat.links:
                        self.give(to, p.Received(peer, payload))
                case p.Probe(to, seq, suspected):
                    if to in seat.links and not self.seats[to].ended:
                        other = self.seats[to]
                        if suspected >= other.incarnation:
                            other.incarnation = suspected + 1
                        self.give(peer, p.ProbeAcked(to, seq, other.incarnation, int(self.now * 9)))
                case p.Dial(to):
                    self._dialled.add((peer, to))
                case p.CloseLink(to, says):
                    self.closed[to] += 1
                    if to != self.protected:
                        self.unlink(peer, to, says)
                case p.Fenced(says) | p.Left(says):
                    seat.ended = says
                    for other_peer in list(seat.links):
                        self.unlink(peer, other_peer, "ended")
                case p.Fault(kind):
                    seat.faults[kind] += 1
                case _:
                    self._train(peer, seat, action)

    def _train(self, peer: PeerId, seat: Seat, action: p.Action) -> None:
        """The trainer's part: a reduce whose root depends on all that is counted, at once."""
        match action:
            case p.StartReduce(view, number, attempt, _, contributions):
                scope = seat.core.replica.state
                assert scope is not None
                told = (view.lineage, number, scope.scopes[0].root, contributions)
                root = hashlib.sha256(repr(told).encode()).digest()
                seat.reduced[number, attempt] = root
                self.give(peer, p.Reduced(number, attempt, root))
            case p.Committed(slot, entry, view):
                self._check(peer, slot, entry, view.lineage)
                if isinstance(entry, p.RoundEntry):
                    if seat.reduced.get((entry.round, entry.attempt)) == entry.state_root:
                        self.give(peer, p.StateHeld(entry.round, entry.state_root))
                    seat.reduced.clear()
                seat.work_at = min(seat.work_at, self.now + COMPUTE_S)
            case p.Joined():
                seat.work_at = min(seat.work_at, self.now + COMPUTE_S)
            case p.FetchState(number, root):
                if any(one.core.rounds[""].held == (number, root) for one in self.seats.values()):
                    self.give(peer, p.StateHeld(number, root))

    def _work(self, peer: PeerId, seat: Seat) -> None:
        seat.work_at = inf
        state = seat.core.replica.state
        if state is None or peer not in state.view.members:
            return
        seat.tokens += 1
        granted = state.ledger.granted(peer)[:1]
        tokens = 1000 * (1 + list(self.seats).index(peer)) + seat.tokens
        due = state.scopes[0].round + 1
        self.given[peer, due] = tokens
        self.give(peer, p.Contribute(due, tokens, granted, 0, 0.01))
        self.give(peer, p.Checkpointed(due - 1, "", (due - 1,)))

    def _check(self, peer: PeerId, slot: int, entry: p.Entry, lineage: str) -> None:
        known = self.entries.setdefault((lineage, slot), entry)
        if known != entry:
            self.violations.append(f"two values in slot {slot} of {lineage}: {known} and {entry}")
        if isinstance(entry, p.RoundEntry):
            for one in entry.contributions:
                if self.given.get((one.peer, entry.round)) != one.tokens:
                    self.violations.append(f"round {entry.round} counts {one}, which is stale")
