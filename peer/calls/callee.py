"""The answering side: what others ask of this peer.

    queued ─▶ receiving ─▶ running ─▶ offered ─▶ sending
       │          │           │          └ a large answer, until its caller has made room for it
       │          │           └ a handler: nothing can stop it
       │          └ a large body, for which memory is taken only now
       └ all places of this caller are taken

From receiving to sending a call has one of its caller's places, so no caller costs more than
`at_once` bodies and answers; a handler whose caller has gone keeps its place until it returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from decentral.errors import ConfigError, ProtocolError
from decentral.peer.calls.actions import CallAction, Expect, Forget, Run, SendBody, Tell
from decentral.peer.calls.messages import (
    INLINE_BYTES,
    MAX_BODY_BYTES,
    Answer,
    Call,
    Cancel,
    Failed,
    Fetch,
    Send,
    inline,
    sayable,
)
from decentral.peer.transfer import KeyMaker
from decentral.types import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """What one caller may cost."""

    at_once: int = 4
    queued: int = 16
    move_s: float = 120.0
    """A body, or the asking for an answer, that is not here after so long never comes."""

    def __post_init__(self) -> None:
        if min(self.at_once, self.queued, self.move_s) <= 0:
            raise ConfigError("calls need positive limits")


class _At(Enum):
    QUEUED = auto()
    RECEIVING = auto()
    RUNNING = auto()
    OFFERED = auto()
    SENDING = auto()


@dataclass(slots=True, eq=False)
class _Asked:
    """One call of somebody else's."""

    peer: PeerId
    number: int
    method: str
    size: int
    body: bytes = field(repr=False)
    """The question, then the answer."""
    at: _At = _At.QUEUED
    key: int = 0
    due: float = float("inf")
    wanted: bool = True
    """False: its caller has gone, or called it off, while it is running."""


@dataclass(slots=True)
class _Guest:
    """One caller."""

    last: int = 0
    """The highest number that it has used on this link."""
    open: dict[int, _Asked] = field(default_factory=dict)
    queue: deque[_Asked] = field(default_factory=deque)
    places: int = 0
    """How many are taken."""


class Callee:
    """Every method returns actions to carry out in order."""

    def __init__(
        self, keys: KeyMaker, serves: Callable[[str], bool], limits: CallLimits | None = None
    ) -> None:
        """`serves(method)`: whether there is a handler for it."""
        self._keys, self._serves = keys, serves
        self._limits = limits or CallLimits()
        self._guests: dict[PeerId, _Guest] = {}
        self._running: dict[int, _Asked] = {}
        self._sending: dict[int, deque[_Asked]] = {}
        """By key. Callers choose them, so two may have chosen the same."""
        self._tickets = 0

    # ---------------------------------------------------------------------- links

    def received(self, peer: PeerId, said: Call | Fetch | Cancel, now: float) -> list[CallAction]:
        """ProtocolError for what an honest caller would not say."""
        guest = self._guests.setdefault(peer, _Guest())
        if isinstance(said, Call):
            return self._call(peer, guest, said, now)
        if said.number > guest.last:
            raise ProtocolError("it speaks of a call that it has not made")
        asked = guest.open.get(said.number)
        if asked is None:
            return []  # the last word about it was on its way meanwhile
        if isinstance(said, Cancel):
            return self._cancelled(guest, asked, now)
        if asked.at is not _At.OFFERED or self._keys.made(said.key):
            raise ProtocolError("it asks for an answer that it was not offered so")
        asked.at, asked.key, asked.due = _At.SENDING, said.key, float("inf")
        self._sending.setdefault(said.key, deque()).append(asked)
        body, asked.body = asked.body, b""
        return [SendBody(peer, said.key, body)]

    def link_down(self, peer: PeerId) -> list[CallAction]:
        """Its calls are gone with it."""
        guest = self._guests.pop(peer, None)
        if guest is None:
            return []
        asked = list(guest.open.values())
        for one in asked:
            one.wanted = False
        places = sum(one.at is _At.RUNNING for one in self._running.values() if one.peer == peer)
        if places:
            self._guests[peer] = _Guest(places=places)
        return [Forget(one.key) for one in asked if one.at is _At.RECEIVING]

    def arrived(self, key: int, body: bytes) -> list[CallAction] | None:
        """A blob has come whole. None: it was not one of these."""
        asked = self._by_key(key)
        return None if asked is None else [self._run(asked, body)]

    def lost(self, key: int, says: str, now: float) -> list[CallAction] | None:
        """A blob will not come. None: it was not one of these."""
        asked = self._by_key(key)
        if asked is None:
            return None
        return self._fail(asked, "body", f"the body did not come whole: {says}", now)

    def sent(self, key: int, now: float) -> list[CallAction] | None:
        """A blob has left. None: it was not one of these."""
        sending = self._sending.get(key)
        if not sending:
            return None
        asked = sending.popleft()
        if not sending:
            del self._sending[key]
        return self._close(asked, now) if asked.wanted else []

    # ---------------------------------------------------------------------- handlers

    def finished(
        self, ticket: int, outcome: bytes | tuple[str, str], now: float
    ) -> list[CallAction]:
        """A handler has returned this; or (phase, why there is nothing)."""
        asked = self._running.pop(ticket)
        if not asked.wanted:
            return self._free(asked.peer, now)
        if isinstance(outcome, bytes) and len(outcome) > MAX_BODY_BYTES:
            says = f"an answer of {len(outcome)} bytes is more than {MAX_BODY_BYTES}"
            outcome = "handler", says
        if isinstance(outcome, tuple):
            return self._fail(asked, *outcome, now)
        answer = Tell(asked.peer, Answer(asked.number, *inline(outcome)).pack())
        if len(outcome) <= INLINE_BYTES:
            return [answer, *self._close(asked, now)]
        asked.at, asked.body, asked.due = _At.OFFERED, outcome, now + self._limits.move_s
        return [answer]

    # ---------------------------------------------------------------------- time

    def tick(self, now: float) -> list[CallAction]:
        """Due at `next_timer`."""
        actions: list[CallAction] = []
        for asked in [one for one in self._moving() if now >= one.due]:
            if asked.at is _At.OFFERED:
                actions += self._close(asked, now)
            else:
                actions.append(Forget(asked.key))
                actions += self._fail(asked, "body", "the body did not come in time", now)
        return actions

    def next_timer(self) -> float | None:
        return min((one.due for one in self._moving()), default=None)

    # ---------------------------------------------------------------------- parts

    def _call(self, peer: PeerId, guest: _Guest, call: Call, now: float) -> list[CallAction]:
        if call.number <= guest.last:
            raise ProtocolError("it uses the number of a call again")
        guest.last = call.number
        if not self._serves(call.method):
            return [self._failed(peer, call.number, "method", "nothing of that name is served")]
        asked = _Asked(peer, call.number, call.method, call.size, call.body)
        if guest.places < self._limits.at_once:
            guest.open[call.number] = asked
            return [self._begin(guest, asked, now)]
        if len(guest.queue) >= self._limits.queued:
            doing, waiting = guest.places, len(guest.queue)
            says = f"{doing} calls of its caller are being answered, and {waiting} wait for that"
            return [self._failed(peer, call.number, "busy", says)]
        guest.open[call.number] = asked
        guest.queue.append(asked)
        return []

    def _begin(self, guest: _Guest, asked: _Asked, now: float) -> CallAction:
        guest.places += 1
        if asked.size <= INLINE_BYTES:
            return self._run(asked, asked.body)
        asked.at, asked.key, asked.due = _At.RECEIVING, self._keys(), now + self._limits.move_s
        message = Send(asked.number, asked.key).pack()
        return Expect(asked.peer, asked.key, asked.size, message)

    def _run(self, asked: _Asked, body: bytes) -> Run:
        asked.at, asked.body, asked.due = _At.RUNNING, b"", float("inf")
        self._tickets += 1
        self._running[self._tickets] = asked
        return Run(self._tickets, asked.peer, asked.method, body)

    def _cancelled(self, guest: _Guest, asked: _Asked, now: float) -> list[CallAction]:
        last_word = self._failed(asked.peer, asked.number, "cancelled", "its caller called it off")
        match asked.at:
            case _At.QUEUED:
                guest.queue.remove(asked)
                del guest.open[asked.number]
                return [last_word]
            case _At.RECEIVING:
                return [Forget(asked.key), last_word, *self._close(asked, now)]
            case _At.RUNNING:
                asked.wanted = False
                del guest.open[asked.number]
                return [last_word]
            case _At.OFFERED:
                return self._close(asked, now)
            case _At.SENDING:
                return []

    def _fail(self, asked: _Asked, phase: str, says: str, now: float) -> list[CallAction]:
        told = self._failed(asked.peer, asked.number, phase, says)
        return [told, *self._close(asked, now)]

    def _failed(self, peer: PeerId, number: int, phase: str, says: str) -> Tell:
        return Tell(peer, Failed(number, phase, sayable(says)).pack())

    def _close(self, asked: _Asked, now: float) -> list[CallAction]:
        """It is over, and its place is free."""
        self._guests[asked.peer].open.pop(asked.number, None)
        return self._free(asked.peer, now)

    def _free(self, peer: PeerId, now: float) -> list[CallAction]:
        guest = self._guests[peer]
        guest.places -= 1
        if not guest.places and not guest.last:
            del self._guests[peer]  # it has gone, and now its last handler has returned
        if not guest.queue:
            return []
        return [self._begin(guest, guest.queue.popleft(), now)]

    def _moving(self) -> list[_Asked]:
        open_ = (one for guest in self._guests.values() for one in guest.open.values())
        return [one for one in open_ if one.at in (_At.RECEIVING, _At.OFFERED)]

    def _by_key(self, key: int) -> _Asked | None:
        receiving = (one for one in self._moving() if one.at is _At.RECEIVING)
        return next((one for one in receiving if one.key == key), None)
