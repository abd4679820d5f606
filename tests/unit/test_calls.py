"""Calls between peers, without sockets: whatever happens, each ends once and leaves nothing."""

from __future__ import annotations

import itertools
from collections import deque
from random import Random
from typing import Any

import pytest
from call_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import CallError, ProtocolError
from decentral.peer import packing
from decentral.peer.calls.callee import Callee, CallLimits
from decentral.peer.calls.caller import CONNECT_AGAIN_S, CONNECT_S, MAX_OPEN, Caller
from decentral.peer.calls.messages import (
    INLINE_BYTES,
    MAX_BODY_BYTES,
    MAX_SAYS_BYTES,
    Answer,
    Call,
    Cancel,
    Failed,
    Fetch,
    Send,
    inline,
    is_call,
    sayable,
    unpack_message,
)
from decentral.peer.transfer import KeyMaker

A, B, C = "peer:a", "peer:b", "peer:c"
SMALL, LARGE = b"small", bytes(INLINE_BYTES + 1)


def world(limits: CallLimits | None = None) -> World:
    w = World(A, B, C, limits=limits)
    w.link(A, B)
    return w


def error(w: World, me: str, number: int) -> CallError:
    outcome = w.seats[me].outcomes[number]
    assert isinstance(outcome, CallError)
    return outcome


# ------------------------------------------------------------------------- what is said


MESSAGES = [
    Call(1, "echo", *inline(SMALL)),
    Call(1, "echo", *inline(LARGE)),
    Call(1, "echo", 0, b""),
    Send(2, 7),
    Answer(3, *inline(bytes(INLINE_BYTES))),
    Answer(3, *inline(LARGE)),
    Fetch(4, 2**64 - 1),
    Failed(5, "busy", "try again"),
    Cancel(6),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: f"{one.KIND}")
def test_messages_survive_the_wire(message: Any) -> None:
    assert is_call(message.pack()) and unpack_message(message.pack()) == message


@pytest.mark.parametrize(
    "value",
    [
        ["c/call"],
        ["c/call", 0, "echo", 0, b""],
        ["c/call", True, "echo", 0, b""],
        ["c/call", 1, "e" * 65, 0, b""],
        ["c/call", 1, "a\n", 0, b""],
        ["c/call", 1, b"echo", 0, b""],
        ["c/call", 1, "echo", 4, b"abc"],
        ["c/call", 1, "echo", MAX_BODY_BYTES + 1, b""],
        ["c/call", 1, "echo", INLINE_BYTES + 1, b"abc"],
        ["c/answer", 1, -1, b""],
        ["c/answer", 1, 3, "abc"],
        ["c/send", 1, 0],
        ["c/fetch", 1],
        ["c/failed", 1, "whim", "x"],
        ["c/failed", 1, "busy", "x" * (MAX_SAYS_BYTES + 1)],
        ["c/failed", 1, ["busy"], "x"],
        ["c/cancel", 1, 1],
        ["c/other", 1],
    ],
)
def test_nonsense_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError):
        unpack_message(packing.pack(value))


def test_other_families_are_not_taken_for_calls() -> None:
    for other in (["x/pin", 1], ["c", 47, 1], ["c", "lineage"], "c/call", ["r/card"], []):
        assert not is_call(packing.pack(other))
    assert not is_call(b"") and not is_call(b"\x91\xa2c/")


@pytest.mark.parametrize("says", ["", "plain", "two\nlines\x1b[2J", "é" * 400, "\ud800" * 3])
def test_whatever_a_handler_raises_can_be_said(says: str) -> None:
    message = Failed(1, "handler", sayable(says))
    assert unpack_message(message.pack()) == message


# ------------------------------------------------------------------------- how it goes


@pytest.mark.parametrize("answer", [SMALL, LARGE], ids=["small answer", "large answer"])
@pytest.mark.parametrize("body", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
def test_a_question_and_an_answer(body: bytes, answer: bytes) -> None:
    w = world()
    number = w.call(A, B, "echo", body)
    w.flow()
    (run,) = w.seats[B].running
    assert (run.peer, run.method, run.body) == (A, "echo", body)
    w.finish(B, answer)
    w.flow()
    assert w.seats[A].outcomes == {number: answer}
    w.check_rest()


def test_both_ways_at_once() -> None:
    w = world()
    asked = [(me, w.call(me, peer, "echo", body)) for me, peer in ((A, B), (B, A))
             for body in (SMALL, LARGE)]  # fmt: skip
    w.settle()
    assert [w.seats[me].outcomes[number] for me, number in asked] == [SMALL, LARGE] * 2
    w.check_rest()


def test_a_link_is_made_first() -> None:
    w = World(A, B)
    number = w.call(A, B, "echo", LARGE, timeout_s=100.0)
    assert w.seats[A].connecting == [B]
    w.pass_time(CONNECT_AGAIN_S)
    assert w.seats[A].connecting == [B, B]
    w.link(A, B)
    w.settle()
    assert w.seats[A].outcomes == {number: LARGE}


@pytest.mark.parametrize("timeout_s", [1.0, 100.0])
def test_no_link_comes_up(timeout_s: float) -> None:
    w = World(A, B)
    number = w.call(A, B, "echo", SMALL, timeout_s)
    w.pass_time(min(timeout_s, CONNECT_S))
    assert error(w, A, number).phase == "connect" and error(w, A, number).peer == B
    w.check_rest()


def test_who_is_known_to_be_gone_is_not_waited_for() -> None:
    w = World(A, B, C)
    w.link(A, C)
    calls = [w.call(A, peer, "echo", SMALL) for peer in (B, B, C)]
    w.do(A, w.seats[A].caller.down(B, "it has died"))
    assert [error(w, A, one).phase for one in calls[:2]] == ["connect"] * 2
    assert "it has died" in error(w, A, calls[0]).says
    w.settle()
    assert w.seats[A].outcomes[calls[2]] == SMALL
    w.check_rest()


def test_what_a_callee_says_no_to() -> None:
    w = world()
    for method, outcome, phase, says in (
        ("other", None, "method", "nothing of that name"),
        ("echo", ("handler", "out of luck\nat line 3"), "handler", "out of luck at line 3"),
        ("echo", bytes(MAX_BODY_BYTES + 1), "handler", "is more than"),
    ):
        number = w.call(A, B, method, LARGE)
        w.flow()
        if outcome is not None:
            w.finish(B, outcome)  # type: ignore[arg-type]
            w.flow()
        assert error(w, A, number).phase == phase and says in error(w, A, number).says
        assert error(w, A, number).peer == B and repr(method) in error(w, A, number).says
    w.check_rest()


def test_a_caller_has_some_places_and_some_may_wait() -> None:
    w = world(CallLimits(at_once=2, queued=3))
    w.link(C, B)
    first = [w.call(A, B, "echo", LARGE) for _ in range(7)]
    w.flow()
    assert len(w.seats[B].running) == 2 and w.seats[B].most_room <= 2 * len(LARGE)
    assert [error(w, A, one).phase for one in first[5:]] == ["busy", "busy"]
    other = w.call(C, B, "echo", SMALL)
    w.flow()
    assert [run.peer for run in w.seats[B].running] == [A, A, C], "another's places are its own"
    w.settle()
    assert [w.seats[A].outcomes[one] for one in first[:5]] == [LARGE] * 5
    assert w.seats[C].outcomes == {other: SMALL}
    w.check_rest()


def test_a_caller_waits_for_so_many_last_words() -> None:
    w = world()
    calls = [w.call(A, B, "echo", SMALL) for _ in range(MAX_OPEN + 1)]
    assert error(w, A, calls[-1]).phase == "busy"
    w.settle()
    w.check_rest()


# ------------------------------------------------------------------------- how it ends otherwise


def steps(w: World) -> None:
    """One message or blob further."""
    if w.said:
        w.hear(*next(iter(w.said)))
    elif w.blobs:
        w.land()
    elif w.seats[B].running:
        w.finish(B, LARGE)


@pytest.mark.parametrize("how", ["cancel", "timeout", "cut"])
@pytest.mark.parametrize("after", range(9))
def test_it_may_end_at_any_moment(how: str, after: int) -> None:
    """A large question and a large answer, given up after each step of it."""
    w = world()
    number = w.call(A, B, "echo", LARGE)
    for _ in range(after):
        steps(w)
    done = number in w.seats[A].outcomes
    match how:
        case "cancel":
            w.cancel(A, number)
        case "timeout":
            w.pass_time(10.0)
        case "cut":
            w.cut(A, B)
            w.link(A, B)
    if not done and how != "cancel":
        assert error(w, A, number).phase == {"cut": "link"}.get(how, how)
    assert not w.seats[A].posted
    again = w.call(A, B, "echo", SMALL)
    w.settle()
    assert w.seats[A].outcomes[again] == SMALL
    w.check_rest()


def test_what_waits_for_a_place_is_taken_back() -> None:
    w = world(CallLimits(at_once=1, queued=5))
    first, second, third = (w.call(A, B, "echo", SMALL) for _ in range(3))
    w.flow()
    w.cancel(A, second)
    w.settle()
    assert set(w.seats[A].outcomes) == {first, third}
    w.check_rest()


def test_a_handler_keeps_its_place_until_it_returns() -> None:
    """Whose caller comes back ever again would otherwise have as many as it likes."""
    w = world(CallLimits(at_once=2, queued=1))
    for _ in range(4):
        w.call(A, B, "echo", SMALL)
        w.flow()
        w.cut(A, B)
        w.link(A, B)
    assert len(w.seats[B].running) == 2
    waiting = w.call(A, B, "echo", SMALL)
    w.flow()
    assert waiting not in w.seats[A].outcomes
    w.finish(B)
    assert len(w.seats[B].running) == 2
    w.settle()
    assert w.seats[A].outcomes[waiting] == SMALL
    w.cut(A, B)
    w.check_rest()
    assert not w.seats[B].callee._guests


def test_a_body_that_never_comes_frees_its_place() -> None:
    w = world(CallLimits(at_once=1))
    number = w.call(A, B, "echo", LARGE, timeout_s=1000.0)
    w.hear(A, B)
    w.hear(B, A)
    w.blobs.clear()  # it is stuck on its way
    w.pass_time(121.0)
    w.flow()
    assert error(w, A, number).phase == "body" and not w.seats[B].posted
    w.check_rest()


def test_an_answer_that_nobody_fetches_is_dropped() -> None:
    w = world()
    number = w.call(A, B, "echo", SMALL, timeout_s=1000.0)
    w.flow()
    w.finish(B, LARGE)
    w.hear(B, A)
    (fetch,) = w.said.pop((A, B))
    w.pass_time(121.0)
    w.said[A, B] = deque([fetch])
    w.flow()
    assert number not in w.seats[A].outcomes
    w.pass_time(1000.0)
    assert error(w, A, number).phase == "timeout"
    w.flow()
    w.check_rest()


def test_a_blob_that_fails() -> None:
    w = world()
    number = w.call(A, B, "echo", SMALL)
    w.flow()
    w.finish(B, LARGE)
    w.hear(B, A)
    (key,) = w.seats[A].posted
    w.do(A, w.seats[A].caller.lost(key, "of another size") or [])
    assert error(w, A, number).phase == "body" and "of another size" in error(w, A, number).says
    assert w.seats[A].caller.lost(99, "x") is None and w.seats[A].caller.arrived(99, b"") is None
    asked = w.call(A, B, "echo", LARGE)
    w.hear(A, B)
    w.hear(A, B)
    (key,) = w.seats[B].posted
    del w.seats[B].posted[key]
    w.do(B, w.seats[B].callee.lost(key, "called off", w.now) or [])
    assert w.seats[B].callee.lost(99, "x", w.now) is None
    while w.said:
        w.hear(*next(iter(w.said)))
    assert error(w, A, asked).phase == "body"


# ------------------------------------------------------------------------- who does not play fair


def asking(body: bytes = SMALL) -> Caller:
    caller = Caller(KeyMaker(1))
    number, _ = caller.call(B, "echo", body, linked=True, timeout_s=9.0, now=0.0)
    assert number == 1
    return caller


def test_a_false_callee() -> None:
    for body, honest, lie in (
        (SMALL, [], Answer(2, 0, b"")),
        (SMALL, [], Send(1, 7)),
        (LARGE, [], Answer(1, 0, b"")),
        (LARGE, [Send(1, 7)], Send(1, 8)),
        (LARGE, [], Send(1, KeyMaker(1)())),
        (SMALL, [Answer(1, 1, b"x")], Answer(1, 1, b"x")),
        (SMALL, [Answer(1, *inline(LARGE))], Answer(1, *inline(LARGE))),
        (SMALL, [Answer(1, *inline(LARGE))], Failed(1, "busy", "")),
        (SMALL, [Failed(1, "busy", "")], Failed(1, "busy", "")),
    ):
        caller = asking(body)
        for said in honest:
            caller.received(B, said)
        with pytest.raises(ProtocolError):
            caller.received(B, lie)
    with pytest.raises(ProtocolError):
        asking().received(C, Answer(1, 1, b"x"))
    waiting = Caller(KeyMaker(1))
    waiting.call(B, "echo", SMALL, linked=False, timeout_s=9.0, now=0.0)
    with pytest.raises(ProtocolError):
        waiting.received(B, Answer(1, 1, b"x"))


def test_a_false_caller() -> None:
    for honest, lie in (
        ([], Fetch(1, 7)),
        ([], Cancel(1)),
        ([Call(5, "echo", 0, b"")], Call(5, "echo", 0, b"")),
        ([Call(5, "echo", 0, b"")], Call(4, "echo", 0, b"")),
        ([Call(5, "echo", 0, b"")], Fetch(5, 7)),
        ([Call(5, "echo", *inline(LARGE))], Fetch(5, 7)),
    ):
        callee = Callee(KeyMaker(1), {"echo"}.__contains__)
        for said in honest:
            callee.received(A, said, 0.0)
        with pytest.raises(ProtocolError):
            callee.received(A, lie, 0.0)
    for key, again in ((KeyMaker(1)(), False), (7, True)):
        callee = Callee(KeyMaker(1), {"echo"}.__contains__)
        callee.received(A, Call(1, "echo", 0, b""), 0.0)
        callee.finished(1, LARGE, 0.0)
        if again:
            callee.received(A, Fetch(1, key), 0.0)
        with pytest.raises(ProtocolError):
            callee.received(A, Fetch(1, key), 0.0)


def test_two_callers_may_choose_one_key() -> None:
    w = world()
    w.link(C, B)
    callee = w.seats[B].callee
    for peer in (A, C):
        callee.received(peer, Call(1, "echo", 0, b""), 0.0)
    for ticket in (1, 2):
        callee.finished(ticket, LARGE, 0.0)
    for peer in (A, C):
        callee.received(peer, Fetch(1, 7), 0.0)
    assert callee.sent(7, 0.0) == [] and callee.sent(7, 0.0) == [] and callee.sent(7, 0.0) is None
    assert all(guest.places == 0 for guest in callee._guests.values())


# ------------------------------------------------------------------------- anything at all


class Story:
    """Chance decides what happens next."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.limits = CallLimits(at_once=rng.choice((1, 2, 4)), queued=rng.choice((1, 3)))
        self.w = World(A, B, C, limits=self.limits)
        self.made: list[tuple[str, int, bytes]] = []
        self.cancelled: set[tuple[str, int]] = set()

    def step(self) -> None:
        rng, w = self.rng, self.w
        one, other = rng.sample((A, B, C), 2)
        match rng.choices(range(7), (6, 12, 6, 5, 1, 2, 2))[0]:
            case 0:
                method = rng.choice(("echo", "echo", "echo", "none"))
                body = rng.choice((SMALL, LARGE, b"")) + bytes([len(self.made) % 256])
                timeout_s = rng.choice((0.5, 5.0, 300.0))
                self.made.append((one, w.call(one, other, method, body, timeout_s), body))
            case 1 if w.said:
                w.hear(*rng.choice(list(w.said)))
            case 2 if w.blobs:
                w.land(rng.randrange(len(w.blobs)))
            case 3 if w.seats[one].running:
                failed = ("handler", "no") if rng.random() < 0.2 else None
                w.finish(one, failed)
            case 4:
                pair = frozenset((one, other))
                w.cut(one, other) if pair in w.links else w.link(one, other)
            case 5 if self.made:
                me, number, _ = rng.choice(self.made)
                if number not in w.seats[me].outcomes:
                    w.cancel(me, number)
                    self.cancelled.add((me, number))
            case 6:
                w.pass_time(rng.choice((0.1, 1.0, 130.0)))

    def end(self) -> None:
        for pair in itertools.combinations((A, B, C), 2):
            if frozenset(pair) not in self.w.links:
                self.w.link(*pair)
        self.w.settle(self.rng)
        self.w.check_rest()
        for me, number, body in self.made:
            outcome = self.w.seats[me].outcomes.get(number)
            assert (outcome is None) == ((me, number) in self.cancelled)
            assert outcome is None or isinstance(outcome, CallError) or outcome == body
        for seat in self.w.seats.values():
            assert seat.most_running <= 2 * self.limits.at_once
            assert seat.most_room <= 2 * self.limits.at_once * (len(LARGE) + 1)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(0, 150))
def test_whatever_happens_each_call_ends_once_and_leaves_nothing(seed: int, length: int) -> None:
    """Among honest peers: no ProtocolError either."""
    story = Story(Random(seed))
    for _ in range(length):
        story.step()
    story.end()
