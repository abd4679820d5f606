"""The asking side: this peer's own calls, to any number of others.

    waiting ─ link ─▶ asked ──▶ (sending) ──▶ fetching ──▶ Ended
                        │ time over, cancelled: Ended at once
                        ▼
                      over ── the callee's last word ──▶ forgotten

A callee says exactly one last word about each call that it has got (an answer, or c/failed), also
about a cancelled one. So whatever else it says about calls is wrong, and ends its link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from decentral.errors import CallError, ProtocolError
from decentral.peer.calls.actions import CallAction, Connect, Ended, Expect, Forget, SendBody, Tell
from decentral.peer.calls.messages import (
    INLINE_BYTES,
    Answer,
    Call,
    Cancel,
    Failed,
    Fetch,
    Send,
    inline,
)
from decentral.peer.transfer import KeyMaker
from decentral.types import PeerId, short

CONNECT_S = 8.0
"""A link is waited for so long at most …"""
CONNECT_AGAIN_S = 2.0
"""… and asked for so often."""
MAX_OPEN = 64
"""Calls to one peer of which it has not said its last word."""


class _At(Enum):
    WAITING = auto()
    ASKED = auto()
    SENDING = auto()
    FETCHING = auto()
    OVER = auto()


@dataclass(slots=True)
class _Open:
    """A call that has not ended, or of which the callee has not said its last word."""

    number: int
    peer: PeerId
    method: str
    body: bytes = field(repr=False)
    due: float
    timeout_s: float
    at: _At = _At.WAITING
    key: int = 0
    size: int = 0
    link_due: float = 0.0
    connect_at: float = 0.0
    """When a link is to be asked for again."""


class Caller:
    """Every method returns actions to carry out in order."""

    def __init__(self, keys: KeyMaker) -> None:
        self._keys = keys
        self._open: dict[int, _Open] = {}
        self._last = 0

    # ---------------------------------------------------------------------- its user

    def call(
        self,
        peer: PeerId,
        method: str,
        body: bytes,
        *,
        linked: bool,
        timeout_s: float,
        now: float,
    ) -> tuple[int, list[CallAction]]:
        """The number of the new call, and what to do for it."""
        self._last += 1
        number = self._last
        if sum(one.peer == peer for one in self._open.values()) >= MAX_OPEN:
            says = f"{short(peer)} has yet to answer {MAX_OPEN} calls"
            return number, [Ended(number, CallError(says, peer=peer, phase="busy"))]
        call = _Open(number, peer, method, body, now + timeout_s, timeout_s)
        self._open[number] = call
        if linked:
            return number, [self._ask(call)]
        call.link_due, call.connect_at = now + CONNECT_S, now + CONNECT_AGAIN_S
        return number, [Connect(peer)]

    def cancel(self, number: int) -> list[CallAction]:
        """Nobody waits for it any more."""
        call = self._open.get(number)
        return [] if call is None or call.at is _At.OVER else self._give_up(call)

    def close(self) -> list[CallAction]:
        """This peer goes."""
        calls, self._open = list(self._open.values()), {}
        says = "this peer has left the run"
        return [self._ended(one, "link", says) for one in calls if one.at is not _At.OVER]

    # ---------------------------------------------------------------------- links

    def link_up(self, peer: PeerId) -> list[CallAction]:
        return [
            self._ask(call)
            for call in self._open.values()
            if call.peer == peer and call.at is _At.WAITING
        ]

    def down(self, peer: PeerId, says: str) -> list[CallAction]:
        """There is no use in waiting for a link to it."""
        waiting = [
            call for call in self._open.values() if call.peer == peer and call.at is _At.WAITING
        ]
        for call in waiting:
            del self._open[call.number]
        return [self._ended(call, "connect", says) for call in waiting]

    def link_down(self, peer: PeerId, says: str) -> list[CallAction]:
        """What was asked on that link is not answered on another: it may have been done."""
        actions: list[CallAction] = []
        for call in [one for one in self._open.values() if one.peer == peer]:
            if call.at is _At.WAITING:
                continue
            del self._open[call.number]
            actions += self._forget(call)
            if call.at is not _At.OVER:
                why = f"the link ended before its answer came: {says}"
                actions.append(self._ended(call, "link", why))
        return actions

    def received(self, peer: PeerId, said: Send | Answer | Failed) -> list[CallAction]:
        """ProtocolError for what an honest callee would not say."""
        call = self._open.get(said.number)
        if call is None or call.peer != peer or call.at is _At.WAITING:
            raise ProtocolError("it speaks of a call that was not made, or is over")
        match said:
            case Send(key=key):
                return self._send(call, key)
            case Answer():
                return self._answered(call, said)
            case Failed():
                return self._failed(call, said)

    def arrived(self, key: int, body: bytes) -> list[CallAction] | None:
        """A blob has come whole. None: it was not one of these."""
        call = self._by_key(key)
        if call is None:
            return None
        del self._open[call.number]
        return [Ended(call.number, body)]

    def lost(self, key: int, says: str) -> list[CallAction] | None:
        """A blob will not come. None: it was not one of these."""
        call = self._by_key(key)
        if call is None:
            return None
        del self._open[call.number]
        return [self._ended(call, "body", f"its answer did not come whole: {says}")]

    # ---------------------------------------------------------------------- time

    def tick(self, now: float) -> list[CallAction]:
        """Due at `next_timer`."""
        actions: list[CallAction] = []
        for call in list(self._open.values()):
            if call.at is _At.OVER:
                continue
            if call.at is _At.WAITING and now >= min(call.link_due, call.due):
                del self._open[call.number]
                actions.append(self._ended(call, "connect", "no link to it came up"))
            elif now >= call.due:
                said = "its answer had begun to come" if call.at is _At.FETCHING else "no answer"
                says = f"{said} within {call.timeout_s:g} s"
                actions += [*self._give_up(call), self._ended(call, "timeout", says)]
            elif call.at is _At.WAITING and now >= call.connect_at:
                call.connect_at = now + CONNECT_AGAIN_S
                actions.append(Connect(call.peer))
        return actions

    def next_timer(self) -> float | None:
        times = [one.due for one in self._open.values() if one.at is not _At.OVER]
        waiting = (one for one in self._open.values() if one.at is _At.WAITING)
        times += [min(one.link_due, one.connect_at) for one in waiting]
        return min(times, default=None)

    # ---------------------------------------------------------------------- parts

    def _ask(self, call: _Open) -> Tell:
        call.at = _At.ASKED
        return Tell(call.peer, Call(call.number, call.method, *inline(call.body)).pack())

    def _send(self, call: _Open, key: int) -> list[CallAction]:
        if call.at is _At.OVER:
            return []  # it has not heard yet that nobody waits
        if call.at is not _At.ASKED or len(call.body) <= INLINE_BYTES:
            raise ProtocolError("it asks for the body of a call that it has")
        if self._keys.made(key):
            raise ProtocolError("it asks for a body under a key that it was not to choose")
        call.at = _At.SENDING
        body, call.body = call.body, b""
        return [SendBody(call.peer, key, body)]

    def _answered(self, call: _Open, answer: Answer) -> list[CallAction]:
        if call.at is _At.FETCHING:
            raise ProtocolError("it answers a call twice")
        if call.at is _At.ASKED and len(call.body) > INLINE_BYTES:
            raise ProtocolError("it answers a call before it has its body")
        if call.at is _At.OVER or answer.size <= INLINE_BYTES:
            over = call.at is _At.OVER
            del self._open[call.number]
            return [] if over else [Ended(call.number, answer.body)]
        call.at, call.key, call.size = _At.FETCHING, self._keys(), answer.size
        message = Fetch(call.number, call.key).pack()
        return [Expect(call.peer, call.key, answer.size, message)]

    def _failed(self, call: _Open, failed: Failed) -> list[CallAction]:
        if call.at is _At.FETCHING:
            raise ProtocolError("it answers a call, and calls it off")
        del self._open[call.number]
        if call.at is _At.OVER:
            return []
        return [self._ended(call, failed.phase, failed.says)]

    def _give_up(self, call: _Open) -> list[CallAction]:
        """Its user has its outcome; the callee may not have heard of that."""
        actions = self._forget(call)
        if call.at in (_At.WAITING, _At.FETCHING):  # it heard nothing, or said its last word
            del self._open[call.number]
        if call.at is not _At.WAITING:
            actions.append(Tell(call.peer, Cancel(call.number).pack()))
        call.at, call.body = _At.OVER, b""
        return actions

    def _forget(self, call: _Open) -> list[CallAction]:
        return [Forget(call.key)] if call.at is _At.FETCHING else []

    def _by_key(self, key: int) -> _Open | None:
        fetching = (one for one in self._open.values() if one.at is _At.FETCHING)
        return next((one for one in fetching if one.key == key), None)

    def _ended(self, call: _Open, phase: str, says: str) -> Ended:
        says = f"{short(call.peer)} did not do {call.method!r}: {says}"
        return Ended(call.number, CallError(says, peer=call.peer, phase=phase))
