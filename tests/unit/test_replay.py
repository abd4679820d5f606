"""Rounds that were committed while a state was on its way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fetch_world import make_state

from decentral.peer.donor import Donor, DonorConfig, Tell
from decentral.peer.fetcher import Blame
from decentral.peer.replay import DATA, HOW, PATIENCE_S, FetchUpdate, Replay, ReplayAction
from decentral.peer.transfer import Pin, UpdateOffer, UpdateWanted, unpack_message

ROOTS = {number: bytes([number]) * 32 for number in range(1, 12)}
GOOD, BAD = b"g" * 32, b"b" * 32
HOLDERS = ("peer:a", "peer:b", "peer:c")


def offer(number: int, update: bytes = GOOD, size: int = 100) -> UpdateOffer:
    return UpdateOffer(number, ROOTS[number], update, size if update else 0, 9)


def asked(actions: Sequence[ReplayAction]) -> set[tuple[str, int]]:
    out = set()
    for action in actions:
        if isinstance(action, Tell):
            message = unpack_message(action.message)
            assert isinstance(message, UpdateWanted) and message.root == ROOTS[message.round]
            out.add((action.peer, message.round))
    return out


def test_every_round_is_asked_of_everybody_once() -> None:
    replay = Replay(1000)
    assert asked(replay.aim(5, 7, ROOTS, HOLDERS)) == {(p, n) for p in HOLDERS for n in (6, 7)}
    assert replay.aim(5, 7, ROOTS, HOLDERS) == []
    assert asked(replay.aim(5, 8, ROOTS, [*HOLDERS, "peer:d"])) == {
        *((p, 8) for p in HOLDERS), ("peer:d", 6), ("peer:d", 7), ("peer:d", 8),
    }  # fmt: skip


def test_all_who_make_the_same_offer_serve_it() -> None:
    replay = Replay(1000)
    replay.aim(5, 6, ROOTS, HOLDERS)
    assert replay.received("peer:a", offer(6), 0.0) == []
    assert replay.received("peer:c", offer(6, b""), 0.0) == []
    assert replay.received("peer:stranger", offer(6, BAD), 0.0) == []
    (fetch,) = replay.received("peer:b", offer(6), 0.0)
    assert isinstance(fetch, FetchUpdate)
    assert (fetch.round, fetch.update, fetch.holders) == (6, GOOD, ("peer:a", "peer:b"))
    assert [(s.name, s.shape) for s in fetch.schema] == [(DATA, (100,)), (HOW, (9,))]


def test_who_does_not_answer_is_not_waited_for() -> None:
    replay = Replay(1000)
    replay.aim(5, 6, ROOTS, HOLDERS)
    replay.received("peer:a", offer(6), 1.0)
    assert replay.tick(1.0 + PATIENCE_S - 0.1) == []
    (fetch,) = replay.tick(1.0 + PATIENCE_S)
    assert isinstance(fetch, FetchUpdate) and fetch.holders == ("peer:a",)


def test_a_false_update_names_who_vouched_and_the_next_offer_is_taken() -> None:
    replay = Replay(1000)
    replay.aim(5, 6, ROOTS, HOLDERS)
    replay.received("peer:a", offer(6, BAD), 0.0)
    replay.received("peer:b", offer(6, BAD), 0.0)
    (fetch,) = replay.received("peer:c", offer(6), 0.0)
    assert isinstance(fetch, FetchUpdate) and fetch.update == BAD  # the majority lies
    replay.fetched(6)
    *blames, again = replay.wrong(6, 0.0)
    assert [b.peer for b in blames if isinstance(b, Blame)] == ["peer:a", "peer:b"]
    assert isinstance(again, FetchUpdate) and again.holders == ("peer:c",)
    assert asked(replay.aim(5, 7, ROOTS, HOLDERS)) == {("peer:c", 7)}  # never asked again
    assert not replay.lost
    replay.wrong(6, 0.0)
    assert replay.lost


def test_where_nobody_has_it_the_way_is_closed() -> None:
    for answer in (offer(6, b""), offer(6, size=2000)):  # not there, or more than a state
        replay = Replay(1000)
        replay.aim(5, 6, ROOTS, ["peer:a"])
        assert replay.received("peer:a", answer, 0.0) == [] and replay.lost
    replay = Replay(1000)
    assert replay.aim(5, 20, ROOTS, HOLDERS) == [] and replay.lost  # older than the log knows


def test_a_holder_that_goes_is_not_waited_for_and_is_asked_when_back() -> None:
    replay = Replay(1000)
    replay.aim(5, 6, ROOTS, ["peer:a", "peer:b"])
    replay.received("peer:a", offer(6), 0.0)
    (fetch,) = replay.gone("peer:b", 0.0)
    assert isinstance(fetch, FetchUpdate)
    assert asked(replay.aim(5, 6, ROOTS, ["peer:a", "peer:b"])) == {("peer:b", 6)}


def test_another_lineage_forgets_what_it_had() -> None:
    replay = Replay(1000)
    replay.aim(5, 6, ROOTS, ["peer:a"])
    replay.received("peer:a", offer(6), 0.0)
    other = {**ROOTS, 6: b"x" * 32}
    replay.aim(5, 6, other, ["peer:a"])
    assert replay.received("peer:a", offer(6), 0.0) == []


# ------------------------------------------------------------------------------- the donor


def update(number: int) -> tuple[bytes, object]:
    made = make_state(
        number, seed=number, **{DATA: np.full(10, number, np.uint8), HOW: np.zeros(3, np.uint8)}
    )
    return ROOTS[number], made


@pytest.mark.parametrize("small_bytes", [20, 1000], ids=["large updates", "small updates"])
def test_updates_are_kept_only_while_somebody_fetches(small_bytes: int) -> None:
    config = DonorConfig(pin_idle_s=10, max_updates=2, small_updates_bytes=small_bytes)
    donor, state = Donor(config), make_state(5)
    donor.hold(state)
    assert not donor.wants_updates
    donor.handle("p", Pin(5, state.root).pack(), 0.0)
    assert donor.wants_updates
    for number in (6, 7, 8):
        root, made = update(number)
        assert donor.hold_update(root, made, 0.0) == []  # type: ignore[arg-type]
        donor.hold(make_state(number, seed=number))

    def ask(number: int, now: float) -> UpdateOffer:
        (told,) = donor.handle("p", UpdateWanted(number, ROOTS[number]).pack(), now)
        assert isinstance(told, Tell)
        message = unpack_message(told.message)
        assert isinstance(message, UpdateOffer)
        return message

    assert bool(ask(6, 1.0).update) == (small_bytes == 1000)  # bounded
    made = ask(8, 1.0)
    assert made.update and (made.data_bytes, made.how_bytes) == (10, 3)
    donor.tick(11.0)
    assert not donor.wants_updates and ask(8, 12.0).update == b""


def test_a_question_that_comes_early_is_answered_when_the_round_is_adopted() -> None:
    donor = Donor()
    donor.hold(make_state(5))
    for number in (6, 7):
        assert donor.handle("p", UpdateWanted(number, ROOTS[number]).pack(), 0.0) == []
    root, made = update(6)
    (told,) = donor.hold_update(root, made, 0.0)  # type: ignore[arg-type]
    assert isinstance(told, Tell) and told.peer == "p"
    assert donor.hold(make_state(6, seed=6)) == []
    (told,) = donor.hold(make_state(7, seed=7))  # adopted without having reduced it
    assert isinstance(told, Tell) and unpack_message(told.message).update == b""  # type: ignore


def test_who_is_behind_itself_has_no_updates_to_promise() -> None:
    donor = Donor()
    donor.hold(make_state(5))
    for number in (6, 7, 8):
        assert donor.handle("p", UpdateWanted(number, ROOTS[number]).pack(), 0.0) == []
    denied = donor.fetches(7)
    assert [unpack_message(one.message).round for one in denied] == [6, 7]  # type: ignore
    assert all(unpack_message(one.message).update == b"" for one in denied)  # type: ignore
    donor.hold(make_state(6, seed=6))  # on the way there
    assert len(donor.handle("q", UpdateWanted(7, ROOTS[7]).pack(), 0.0)) == 1
    root, made = update(8)
    (told,) = donor.hold_update(root, made, 0.0)  # type: ignore[arg-type]
    assert isinstance(told, Tell) and unpack_message(told.message).update  # type: ignore


def test_who_waits_too_long_is_told_no() -> None:
    donor = Donor(DonorConfig(pin_idle_s=10))
    donor.hold(make_state(5))
    assert donor.handle("p", UpdateWanted(6, ROOTS[6]).pack(), 0.0) == []
    (told,) = donor.tick(11.0)
    assert isinstance(told, Tell) and unpack_message(told.message).update == b""  # type: ignore


def test_who_gave_a_module_away_answers_that_nothing_newer_will_come() -> None:
    """A founder keeps nothing of a module that others train; who asks it must not wait for it."""
    donor, state = Donor(tag="c"), make_state(0)
    donor.hold(state)
    donor.handle("slow", Pin(0, state.root, tag="c").pack(), 0.0)
    assert donor.handle("p", UpdateWanted(1, ROOTS[6], tag="c").pack(), 0.0) == []
    (told,) = donor.retire()
    assert isinstance(told, Tell)
    assert unpack_message(told.message) == UpdateOffer(1, ROOTS[6], b"", 0, 0, tag="c")
    (told,) = donor.handle("p", UpdateWanted(2, ROOTS[7], tag="c").pack(), 0.0)
    assert isinstance(told, Tell) and unpack_message(told.message).update == b""  # type: ignore
    assert donor.pinned_rounds == (0,), "who fetches it may finish"
