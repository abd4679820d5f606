"""Peers that call one another, on a pretended network and clock.

What one peer says to another arrives in order; blobs take their time, and come in any order beside
it. Handlers end when the test says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from decentral.errors import CallError
from decentral.peer.calls.actions import (
    CallAction,
    Connect,
    Ended,
    Expect,
    Forget,
    Run,
    SendBody,
    Tell,
)
from decentral.peer.calls.callee import Callee, CallLimits
from decentral.peer.calls.caller import Caller
from decentral.peer.calls.messages import Answer, Failed, Send, unpack_message
from decentral.peer.transfer import KeyMaker
from decentral.types import PeerId

METHODS = ("echo", "large", "small")


@dataclass
class Seat:
    """One peer: both sides of it, and what its driver keeps."""

    name: PeerId
    caller: Caller
    callee: Callee
    posted: dict[int, tuple[PeerId, int]] = field(default_factory=dict)
    """By key: from whom, and how many bytes."""
    running: list[Run] = field(default_factory=list)
    outcomes: dict[int, bytes | CallError] = field(default_factory=dict)
    connecting: list[PeerId] = field(default_factory=list)
    asked_for: set[int] = field(default_factory=set)
    """Keys of bodies of others' calls."""
    most_running: int = 0
    most_room: int = 0
    """Bytes that others had this peer make room for at a time."""


class World:
    """All of them, and what is on its way."""

    def __init__(self, *names: PeerId, limits: CallLimits | None = None) -> None:
        self.now = 0.0
        self.seats: dict[PeerId, Seat] = {}
        for number, name in enumerate(names):
            keys = KeyMaker(number + 1)
            callee = Callee(keys, METHODS.__contains__, limits)
            self.seats[name] = Seat(name, Caller(keys), callee)
        self.links: set[frozenset[PeerId]] = set()
        self.said: dict[tuple[PeerId, PeerId], deque[bytes]] = {}
        self.blobs: list[tuple[PeerId, PeerId, int, bytes]] = []
        """From, to, key, bytes."""

    # ---------------------------------------------------------------------- its user

    def link(self, one: PeerId, other: PeerId) -> None:
        self.links.add(frozenset((one, other)))
        for me, peer in ((one, other), (other, one)):
            self.do(me, self.seats[me].caller.link_up(peer))

    def cut(self, one: PeerId, other: PeerId) -> None:
        self.links.discard(frozenset((one, other)))
        for me, peer in ((one, other), (other, one)):
            seat = self.seats[me]
            self.said.pop((me, peer), None)
            self.do(me, seat.caller.link_down(peer, "cut"))
            self.do(me, seat.callee.link_down(peer))
            seat.posted = {key: at for key, at in seat.posted.items() if at[0] != peer}
        gone = [blob for blob in self.blobs if {blob[0], blob[1]} == {one, other}]
        for blob in gone:
            self.blobs.remove(blob)
            self.left(blob)

    def call(
        self, me: PeerId, peer: PeerId, method: str, body: bytes, timeout_s: float = 10.0
    ) -> int:
        linked = frozenset((me, peer)) in self.links
        number, actions = self.seats[me].caller.call(
            peer, method, body, linked=linked, timeout_s=timeout_s, now=self.now
        )
        self.do(me, actions)
        return number

    def cancel(self, me: PeerId, number: int) -> None:
        self.do(me, self.seats[me].caller.cancel(number))

    def finish(self, me: PeerId, outcome: bytes | tuple[str, str] | None = None) -> None:
        """Of the first handler that runs there; None: it echoes."""
        seat = self.seats[me]
        run = seat.running.pop(0)
        self.do(me, seat.callee.finished(run.ticket, outcome or run.body, self.now))

    # ---------------------------------------------------------------------- the network

    def do(self, me: PeerId, actions: Sequence[CallAction]) -> None:
        seat = self.seats[me]
        for action in actions:
            match action:
                case Tell(peer, message) if frozenset((me, peer)) in self.links:
                    self.said.setdefault((me, peer), deque()).append(message)
                case Expect(peer, key, size, message) if frozenset((me, peer)) in self.links:
                    assert key not in seat.posted
                    seat.posted[key] = peer, size
                    if isinstance(unpack_message(message), Send):
                        seat.asked_for.add(key)
                    room = sum(seat.posted[key][1] for key in seat.posted.keys() & seat.asked_for)
                    seat.most_room = max(seat.most_room, room)
                    self.said.setdefault((me, peer), deque()).append(message)
                case SendBody(peer, key, body) if frozenset((me, peer)) in self.links:
                    self.blobs.append((me, peer, key, body))
                case Forget(key):
                    seat.posted.pop(key, None)
                case Run():
                    seat.running.append(action)
                    seat.most_running = max(seat.most_running, len(seat.running))
                case Ended(number, outcome):
                    assert number not in seat.outcomes, "it has ended already"
                    seat.outcomes[number] = outcome
                case Connect(peer):
                    seat.connecting.append(peer)

    def hear(self, me: PeerId, peer: PeerId) -> None:
        """The next thing that `me` has said to `peer`."""
        said = self.said[me, peer]
        message = unpack_message(said.popleft())
        if not said:
            del self.said[me, peer]
        seat = self.seats[peer]
        if isinstance(message, Send | Answer | Failed):
            self.do(peer, seat.caller.received(me, message))
        else:
            self.do(peer, seat.callee.received(me, message, self.now))

    def land(self, index: int = 0) -> None:
        blob = self.blobs.pop(index)
        sender, peer, key, body = blob
        seat = self.seats[peer]
        posted = seat.posted.pop(key, None)
        if posted is not None:
            assert posted == (sender, len(body))
            actions = seat.caller.arrived(key, body)
            if actions is None:
                actions = seat.callee.arrived(key, body)
            assert actions is not None, "somebody waits for what was posted"
            self.do(peer, actions)
        self.left(blob)

    def left(self, blob: tuple[PeerId, PeerId, int, bytes]) -> None:
        self.do(blob[0], self.seats[blob[0]].callee.sent(blob[2], self.now) or [])

    def flow(self) -> None:
        """Everything that is on its way arrives, and what follows from it."""
        while self.said or self.blobs:
            for me, peer in list(self.said):
                if (me, peer) in self.said:
                    self.hear(me, peer)
            if self.blobs:
                self.land()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for name, seat in self.seats.items():
            self.do(name, seat.caller.tick(self.now))
            self.do(name, seat.callee.tick(self.now))

    def settle(self, rng: Random | None = None) -> None:
        """Until nothing is under way and nobody waits."""
        for _ in range(1000):
            self.flow()
            busy = [name for name, seat in self.seats.items() if seat.running]
            if busy:
                self.finish(rng.choice(busy) if rng is not None else busy[0])
            elif any(s.caller.next_timer() or s.callee.next_timer() for s in self.seats.values()):
                self.pass_time(5.0)
            else:
                return
        raise AssertionError("it does not come to rest")

    def check_rest(self) -> None:
        """No memory, place or name is left behind."""
        assert not self.said and not self.blobs
        for seat in self.seats.values():
            assert not seat.posted and not seat.caller._open and not seat.callee._running
            assert not seat.callee._sending
            for guest in seat.callee._guests.values():
                assert (guest.places, guest.open, list(guest.queue)) == (0, {}, [])
