"""State transfer: from many holders at once, whatever they do; and only the right bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from fetch_world import CHUNK, CHUNKS, ROOT, STATE, failure, make_state, world
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decentral.errors import FingerprintError, StateError
from decentral.peer.donor import Donor, DonorConfig
from decentral.peer.fetcher import Done, FetchConfig
from decentral.peer.holders import Debt, Holders
from decentral.peer.manifest import (
    META,
    manifest_of,
    specs_of,
)
from decentral.peer.transfer import (
    ChunkMissing,
    ManifestMissing,
    ManifestPage,
    is_transfer,
)
from decentral.types import CommittedState, PeerId


def test_all_holders_serve_at_once() -> None:
    w = world(config=FetchConfig(max_window=2))
    w.run()
    w.check_done()
    assert w.fetcher.chunks_done == CHUNKS and sum(w.served.values()) == CHUNKS
    assert set(w.served) == {"peer:a", "peer:b", "peer:c"} and w.most_outstanding == 6
    w.end = None
    while w.queue:  # the releases arrive
        w.queue.pop(0)[2]()
    assert all(donor.pinned_rounds == () for donor in w.donors.values())


def test_newer_commits_do_not_disturb_it() -> None:
    w = world()
    w.run(until=lambda: bool(w.served))
    for donor in w.donors.values():
        donor.hold(make_state(8, seed=3))
    w.run()
    w.check_done()


def test_identical_state_moves_no_byte() -> None:
    w = world(held=STATE)
    w.check_done()
    assert w.served == {} and w.queue == []


def test_only_what_differs_travels() -> None:
    old = make_state(6, **{name: array.copy() for name, array in STATE.tensors.items()})
    changed = {name: array.copy() for name, array in STATE.tensors.items()}
    changed["param/w"][CHUNK // 4 + 7] += 1.0
    changed[META] = np.arange(50, dtype=np.uint8)
    old = make_state(6, **changed)
    w = world(held=old)
    w.run()
    w.check_done()
    assert w.fetcher.chunks_total == 2 and w.fetcher.bytes_fetched == CHUNK + 99
    assert np.array_equal(old.tensors["param/w"], changed["param/w"])  # held state is not touched


def test_only_what_is_wanted_is_allocated_and_travels() -> None:
    w = world(only="param/", config=FetchConfig(max_window=2))
    w.run(until=lambda: bool(w.served))
    w.cut(next(iter(w.served)))
    w.run()
    w.check_done(replace(STATE, tensors={n: a for n, a in STATE.tensors.items() if n[0] == "p"}))
    assert set(w.arrays) == {"param/w", "param/b", "param/none"}
    assert w.fetcher.chunks_total == 4 + 1
    assert not any(donor.wants_updates for donor in w.donors.values()), "a reader replays nothing"


def test_a_manifest_is_checked_beyond_what_is_wanted() -> None:
    """A holder whose model differs elsewhere has another state, whatever its hash."""
    other = [replace(s, shape=(2, 2)) if s.name == "param/b" else s for s in specs_of(STATE)]
    w = world(schema=other, only="momentum/")
    w.run()
    assert isinstance(failure(w), FingerprintError) and w.arrays == {}


def test_who_has_nothing_is_known() -> None:
    w = world(only="param/")
    w.donors["peer:b"].hold(None)
    w.run(until=lambda: w.fetcher.without != [])
    assert w.fetcher.without == ["peer:b"]
    w.donors["peer:b"].hold(STATE)
    w.do(w.fetcher.holder_up("peer:b", w.now))
    assert w.fetcher.without == []
    w.run()
    assert isinstance(w.end, Done) and w.blamed == []


def test_a_source_that_dies_is_replaced() -> None:
    w = world(config=FetchConfig(max_window=1))
    w.run(until=lambda: bool(w.served))
    w.cut("peer:a")
    w.cut("peer:b")
    w.run()
    w.check_done()
    assert w.now < 1.0 and w.blamed == []


def test_a_source_that_dies_before_its_manifest() -> None:
    for seed in range(4):
        w = world(seed=seed)
        w.cut("peer:a")
        w.cut("peer:c")
        w.run()
        w.check_done()


def test_a_silent_source_loses_its_chunks() -> None:
    for silent in ({"peer:a"}, {"peer:b", "peer:c"}):
        w = world(config=FetchConfig(stall_s=2.0, give_up_s=30.0))
        w.deaf = silent
        w.run()
        w.check_done()
        assert w.now < 10.0 and w.blamed == []


def test_a_liar_is_named_and_not_asked_again() -> None:
    w = world(config=FetchConfig(max_window=1))

    def spoil(peer: PeerId, data: bytes) -> bytes:
        lies = peer == "peer:b" and not is_transfer(data)
        return bytes([data[0] ^ 1]) + data[1:] if lies else data

    w.spoil = spoil
    w.run()
    w.check_done()
    assert w.blamed == ["peer:b"] and w.served["peer:b"] == 1
    assert w.fetcher.holder_up("peer:b", w.now) == []


def test_a_false_manifest_is_blamed() -> None:
    other = make_state(7, seed=9)
    w = world()
    real = w.donors["peer:a"]

    def spoil(peer: PeerId, data: bytes) -> bytes:
        if peer == "peer:a" and is_transfer(data):
            return ManifestPage(7, STATE.root, 0, 1, manifest_of(other).encode()).pack()
        return data

    w.spoil = spoil
    assert real is not None
    for seed in range(6):  # whoever is asked first
        w = world(seed=seed)
        w.spoil = spoil
        w.run()
        w.check_done()
        assert w.blamed in ([], ["peer:a"])


def test_everybody_lies() -> None:
    w = world()
    w.spoil = lambda peer, data: data if is_transfer(data) else bytes(len(data) - 1) + b"\xaa"
    w.run()
    assert isinstance(failure(w), StateError) and sorted(w.blamed) == sorted(w.donors)
    assert not w.posted


def test_nobody_holds_it_any_more() -> None:
    w = world()
    for donor in w.donors.values():
        donor.hold(None)
    w.run()
    error = failure(w)
    assert isinstance(error, StateError) and error.phase == "state transfer"
    assert "no peer could give the state of round 7" in str(error)
    assert w.now < 1.0


def test_a_holder_that_comes_later_helps() -> None:
    w = world(["peer:a"])
    w.cut("peer:a")
    assert w.end is None
    w.donors["peer:z"] = Donor()
    w.donors["peer:z"].hold(STATE)
    w.do(w.fetcher.holder_up("peer:z", w.now))
    w.run()
    w.check_done()


def test_all_gone_for_good() -> None:
    w = world(config=FetchConfig(give_up_s=20.0))
    for peer in w.donors:
        w.cut(peer)
    w.run()
    assert isinstance(failure(w), StateError) and w.now == 20.0


def test_busy_holders_are_asked_again() -> None:
    w = world(["peer:a"], config=FetchConfig(max_window=4))
    w.donors["peer:a"] = Donor(DonorConfig(max_serving=1, max_queued=1))
    w.donors["peer:a"].hold(STATE)
    w.run()
    w.check_done()


def test_a_failed_blob_is_asked_elsewhere() -> None:
    w = world()
    w.run(until=lambda: bool(w.posted))
    key = next(iter(w.posted))
    del w.posted[key]
    w.do(w.fetcher.chunk_failed(key, w.now))
    w.run()
    w.check_done()


def test_another_model_is_a_fingerprint_error_and_nothing_is_allocated() -> None:
    w = world(schema=[replace(s, shape=(2, 2)) if s.name == "param/b" else s
                      for s in specs_of(STATE)])  # fmt: skip
    w.run()
    error = failure(w)
    assert isinstance(error, FingerprintError) and "'param/b' has shape (2, 2)" in str(error)
    assert w.arrays == {} and w.blamed == []


def test_a_manifest_that_announces_too_much_is_blamed() -> None:
    w = world(["peer:a"])
    page = ManifestPage(7, STATE.root, 0, 4000, b"x").pack()
    w.do(w.fetcher.received("peer:a", page, 0.0))
    assert w.blamed == ["peer:a"] and isinstance(failure(w), StateError)


def test_late_and_foreign_answers_change_nothing() -> None:
    w = world()
    for payload in (
        ManifestMissing(6, STATE.root).pack(),
        ManifestMissing(7, ROOT).pack(),
        ManifestPage(7, STATE.root, 3, 4, b"x").pack(),
        ChunkMissing(7, STATE.root, 99, True).pack(),
    ):
        assert w.fetcher.received("peer:a", payload, 0.0) == []
    assert w.fetcher.received("peer:stranger", b"garbage", 0.0) == []
    assert w.fetcher.chunk_done(12345, ROOT, 0.0) == []
    assert w.fetcher.chunk_failed(12345, 0.0) == []
    w.run()
    w.check_done()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=156)  # two silent holders kept a chunk between them
@example(seed=1907)  # a timer that was due, by rounding, and yet not
def test_whatever_happens_it_ends_with_the_right_bytes_or_an_error(seed: int) -> None:
    """Random deaths, returns, silences, lies, garbage and lost blobs; one holder stays honest."""
    rng = random.Random(seed)
    small = make_state(
        3, seed=4, w=np.arange(CHUNK, dtype=np.float32), **{META: np.zeros(9, np.uint8)}
    )
    holders = [f"peer:{letter}" for letter in "abcdefgh"[: rng.randint(2, 8)]]
    honest = rng.choice(holders)
    w = world(
        holders, state=small, seed=seed,
        config=FetchConfig(max_window=rng.randint(1, 4), stall_s=1.0, give_up_s=60.0),
    )  # fmt: skip
    w.delay_s = rng.choice([0.001, 0.1])

    def spoil(peer: PeerId, data: bytes) -> bytes:
        if peer == honest or rng.random() > 0.1:
            return data
        return rng.randbytes(len(data))

    w.spoil = spoil
    for _ in range(rng.randint(1, 30)):
        target = w.now + rng.random() * 0.3
        w.run(until=lambda t=target: w.now >= t)  # type: ignore[misc]
        if w.end is not None:
            break
        peer = rng.choice([p for p in holders if p != honest] or holders)
        match rng.randrange(4):
            case 0 if peer != honest:
                w.cut(peer)
            case 1 if peer != honest:
                w.deaf.add(peer)
            case 2:
                w.deaf.discard(peer)
                w.do(w.fetcher.holder_up(peer, w.now))
            case _ if w.posted:
                key = rng.choice(sorted(w.posted))
                del w.posted[key]
                w.do(w.fetcher.chunk_failed(key, w.now))
    w.run()
    assert honest not in w.blamed
    w.check_done(small)


# ------------------------------------------------------------------------------- in proportion


def big_state(chunks: int) -> CommittedState:
    array = np.zeros((chunks, CHUNK), np.uint8)
    array[:, 0] = np.arange(chunks)
    return make_state(7, w=array)


def test_each_source_gives_what_it_can() -> None:
    rates = {"peer:a": 40e6, "peer:b": 20e6, "peer:c": 5e6}
    state = big_state(400)
    w = world(state=state, rates=rates, seed=3)
    w.run()
    w.check_done(state)
    total = sum(rates.values())
    for peer, rate in rates.items():
        assert w.served[peer] == pytest.approx(400 * rate / total, rel=0.15), w.served
    assert w.now < 1.06 * 400 * CHUNK / total


def test_a_long_fat_pipe_is_filled() -> None:
    state = big_state(600)
    w = world(["peer:a"], state=state, rates={"peer:a": 100e6})
    w.delay_s = 0.15
    w.run()
    w.check_done(state)
    assert w.now < 1.25 * 600 * CHUNK / 100e6  # a window of four chunks would take 7 times as long
    assert w.most_outstanding <= FetchConfig().max_window


def test_no_slow_source_holds_up_the_end() -> None:
    state = big_state(60)
    w = world(["peer:a", "peer:b"], state=state, rates={"peer:a": 50e6, "peer:b": 0.5e6})
    w.run()
    w.check_done(state)
    assert w.now < 60 * CHUNK / 50e6 + 2.5, "it waited for the slow one"


def test_a_slow_line_is_not_silent() -> None:
    state = big_state(3)
    w = world(["peer:a"], state=state, rates={"peer:a": 40e3}, config=FetchConfig(stall_s=5.0))

    def beat() -> None:  # as the runtime does while bytes of the link come in
        w.fetcher.heard("peer:a", w.now)
        w.later(beat, 0.5)

    beat()
    w.run()
    w.check_done(state)
    assert w.served == {"peer:a": 3} and w.dropped == []


def test_sources_may_change_their_minds() -> None:
    state = big_state(300)
    w = world(state=state, rates={"peer:a": 30e6, "peer:b": 30e6, "peer:c": 30e6})
    w.run(until=lambda: w.fetcher.chunks_done >= 100)
    w.rates["peer:a"] = 1e6
    w.run()
    w.check_done(state)
    assert w.now < 1.35 * (100 * CHUNK / 90e6 + 200 * CHUNK / 61e6), w.now


def test_who_was_asked_just_now_is_not_called_slow() -> None:
    """Of a that owes four chunks nothing is known yet, and b has delivered one: what a was asked
    for a moment ago is on its way and must not travel twice."""
    holders = Holders(["peer:a", "peer:b"], 64, 10.0)
    for key in range(4):
        holders["peer:a"].asked(key, Debt(0, key, CHUNK, 0.0))
    holders["peer:b"].asked(9, Debt(1, 0, CHUNK, 0.0))
    holders["peer:b"].delivered(holders["peer:b"].owes.pop(9), 0.1, 64)
    assert holders.late(0.11) is None
    assert holders.late(5.0) == ("peer:a", 3, "peer:b"), "in the end it is"
