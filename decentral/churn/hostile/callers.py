"""Nonsense about calls, from an admitted peer: what a `Caller` and a `Callee` make of it.

    genuine messages about calls of both sides ──▶ Mutator ──▶ read, then Caller or Callee
                                     meanwhile handlers end, blobs come and time passes

Whatever is wrong ends in a ProtocolError, and no peer has another make more room than it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgpack

from decentral.churn.hostile.guests import Refusals
from decentral.churn.hostile.mutations import Mutator
from decentral.errors import ProtocolError
from decentral.peer.calls.actions import CallAction, Expect, Forget, Run
from decentral.peer.calls.callee import Callee, CallLimits
from decentral.peer.calls.caller import Caller
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
    unpack_message,
)
from decentral.peer.transfer import KeyMaker
from decentral.types import PeerId

PEER: PeerId = "peer:" + "m" * 52
LARGE = bytes(INLINE_BYTES + 1)
PER_LINK = 300


def attack_calls(count: int, seed: int) -> Refusals:
    """Throw so many messages at both sides of a peer, on links that are made anew in between."""
    found = Refusals()
    rng = Random(seed)
    mutate = Mutator(rng)
    victim = _Victim(rng)
    while sum(found.sent.values()) < count:
        victim.link_again()
        for _ in range(PER_LINK):
            base, other = (rng.choice(_genuine(rng, victim.last)).pack() for _ in range(2))
            payload = mutate(base, other) if rng.random() < 0.6 else base
            kind = str(msgpack.unpackb(base)[0])
            found.sent[kind] += 1
            try:
                victim.hears(payload)
                found.heeded += 1
            except ProtocolError:
                found.refused += 1
            except Exception as error:
                found.note(kind, error)
            victim.goes_on()
    may_have = CallLimits().at_once * MAX_BODY_BYTES
    if victim.most_room > may_have:
        found.raised.append(f"{victim.most_room} bytes of memory for questions, not {may_have}")
    return found


def _genuine(rng: Random, last: int) -> Sequence[Call | Send | Answer | Fetch | Failed | Cancel]:
    """What may be meant for a call near the last one, or for a new one."""
    number = max(1, last - rng.randrange(4))
    body = rng.choice((b"", b"body", LARGE))
    return (
        Call(last + 1, rng.choice(("echo", "none")), *inline(body)),
        Call(last + 2, "echo", MAX_BODY_BYTES, b""),
        Send(number, rng.getrandbits(64) or 1),
        Answer(number, *inline(body)),
        Answer(number, MAX_BODY_BYTES, b""),
        Fetch(number, rng.getrandbits(64) or 1),
        Failed(number, "handler", "no"),
        Cancel(number),
    )


class _Victim:
    """Both sides of an honest peer, and a driver that keeps count of the memory."""

    def __init__(self, rng: Random) -> None:
        self._rng, self._now = rng, 0.0
        keys = KeyMaker(rng.getrandbits(32))
        self._caller, self._callee = Caller(keys), Callee(keys, {"echo"}.__contains__)
        self._room: dict[int, tuple[int, bool]] = {}
        """By key: bytes, and whether they are for a question of the attacker's."""
        self._running: list[Run] = []
        self.last = 0
        """The number of its own last call; the attacker uses the like."""
        self.most_room = 0
        """Bytes that the attacker had it make room for, for questions of its own."""

    def link_again(self) -> None:
        self._do(self._caller.link_down(PEER, "refused"))
        self._do(self._callee.link_down(PEER))
        self._do(self._caller.link_up(PEER))

    def hears(self, payload: bytes) -> None:
        said = unpack_message(payload)
        if isinstance(said, Send | Answer | Failed):
            self._do(self._caller.received(PEER, said))
        else:
            self._do(self._callee.received(PEER, said, self._now))

    def goes_on(self) -> None:
        """It calls, answers, and has its patience."""
        rng = self._rng
        body = rng.choice((b"", b"body", LARGE))
        if rng.random() < 0.5:
            self.last, actions = self._caller.call(
                PEER, "echo", body, linked=True, timeout_s=30.0, now=self._now
            )
            self._do(actions)
        if self._running and rng.random() < 0.5:
            run = self._running.pop()
            self._do(self._callee.finished(run.ticket, body, self._now))
        if self._room and rng.random() < 0.05:
            key = rng.choice(list(self._room))
            del self._room[key]
            came = self._caller.arrived(key, body)
            self._do(came if came is not None else self._callee.arrived(key, body) or [])
        if rng.random() < 0.1:
            self._now += rng.choice((0.1, 10.0, 200.0))
            self._do([*self._caller.tick(self._now), *self._callee.tick(self._now)])

    def _do(self, actions: Sequence[CallAction]) -> None:
        for action in actions:
            match action:
                case Expect(_, key, size, message):
                    self._room[key] = size, isinstance(unpack_message(message), Send)
                    room = sum(one for one, theirs in self._room.values() if theirs)
                    self.most_room = max(self.most_room, room)
                case Forget(key):
                    self._room.pop(key, None)
                case Run():
                    self._running.append(action)
