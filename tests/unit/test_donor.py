"""Giving state away: pins, queues and their bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fetch_world import CHUNK, ROOT, STATE, make_state

from decentral.errors import ConfigError, ProtocolError
from decentral.peer import merkle
from decentral.peer.donor import Donor, DonorAction, DonorConfig, ServeChunk, Tell
from decentral.peer.fetcher import (
    Allocate,
    Fetcher,
)
from decentral.peer.manifest import (
    manifest_of,
    specs_of,
)
from decentral.peer.transfer import (
    ChunkMissing,
    ChunkUnwanted,
    ChunkWanted,
    KeyMaker,
    ManifestMissing,
    Pin,
    Release,
    StateWanted,
    unpack_message,
)
from decentral.types import CommittedState

# ------------------------------------------------------------------------------- donor


def served(actions: list[DonorAction]) -> ServeChunk:
    (action,) = actions
    assert isinstance(action, ServeChunk)
    return action


def told(actions: list[DonorAction]) -> Any:
    (action,) = actions
    assert isinstance(action, Tell)
    return unpack_message(action.message)


def wanted(state: CommittedState, tensor: str = "param/w", index: int = 0, key: int = 1) -> bytes:
    return ChunkWanted(state.round, state.root, tensor, index, key).pack()


def test_a_donor_serves_pinned_rounds_while_newer_ones_commit() -> None:
    donor, newer = Donor(), make_state(8, seed=2)
    donor.hold(STATE)
    assert donor.handle("p", Pin(7, STATE.root).pack(), 0.0) == []
    donor.hold(newer)
    assert donor.pinned_rounds == (7,)
    chunk = served(donor.handle("p", wanted(STATE, index=3), 1.0))
    assert (chunk.tensor, chunk.offset, chunk.size) == ("param/w", 3 * CHUNK, 20)
    assert chunk.array is STATE.tensors["param/w"]
    served(donor.handle("q", wanted(newer, key=2), 1.0))
    donor.handle("p", Release(7, STATE.root).pack(), 2.0)
    assert donor.pinned_rounds == (8,)
    assert isinstance(told(donor.handle("p", wanted(STATE), 2.0)), ChunkMissing)
    assert isinstance(
        told(donor.handle("p", StateWanted(7, STATE.root, 0).pack(), 2.0)), ManifestMissing
    )


def test_pins_end_when_idle_or_when_the_fetcher_is_gone() -> None:
    donor = Donor(DonorConfig(pin_idle_s=10))
    donor.hold(STATE)
    assert donor.next_timer() is None
    for peer in ("p", "q"):
        donor.handle(peer, Pin(7, STATE.root).pack(), 0.0)
    donor.peer_down("p")
    assert donor.pinned_rounds == (7,) and donor.next_timer() == 10.0
    donor.tick(9.0)
    assert donor.pinned_rounds == (7,)
    donor.tick(10.0)
    assert donor.pinned_rounds == ()


def test_another_lineage_at_the_same_round_is_another_state() -> None:
    donor = Donor()
    donor.hold(STATE)
    assert isinstance(told(donor.handle("p", Pin(7, ROOT).pack(), 0.0)), ManifestMissing)
    assert isinstance(told(donor.handle("p", Pin(8, STATE.root).pack(), 0.0)), ManifestMissing)


def test_what_fetchers_may_cost_is_bounded() -> None:
    donor = Donor(DonorConfig(max_serving=2, max_queued=1, max_pins=1))
    donor.hold(STATE)
    served(donor.handle("p", wanted(STATE, key=1), 0.0))
    served(donor.handle("p", wanted(STATE, key=2), 0.0))
    assert donor.handle("p", wanted(STATE, key=3), 0.0) == []
    busy = told(donor.handle("p", wanted(STATE, key=4), 0.0))
    assert busy == ChunkMissing(7, STATE.root, 4, True)
    served(donor.handle("q", wanted(STATE, key=5), 0.0))  # one's queue is not another's
    assert donor.sent("p", 99, 0.0) == []
    assert served(donor.sent("p", 1, 0.0)).key == 3
    assert donor.handle("p", wanted(STATE, key=6), 0.0) == []
    donor.handle("p", ChunkUnwanted(7, STATE.root, 6).pack(), 0.0)
    assert donor.sent("p", 2, 0.0) == []
    for peer in ("p", "q"):
        donor.peer_down(peer)
    donor.handle("p", Pin(7, STATE.root).pack(), 0.0)
    newer = make_state(8, seed=2)
    donor.hold(newer)
    assert isinstance(told(donor.handle("q", Pin(8, newer.root).pack(), 0.0)), ManifestMissing)
    with pytest.raises(ConfigError):
        DonorConfig(max_pins=0)


@pytest.mark.parametrize(
    "payload",
    [
        wanted(STATE, index=4),
        wanted(STATE, tensor="param/none"),
        wanted(STATE, tensor="other"),
        StateWanted(7, STATE.root, 1).pack(),
        ManifestMissing(7, STATE.root).pack(),
        b"garbage",
    ],
)
def test_nonsense_names_the_fetcher(payload: bytes) -> None:
    donor = Donor()
    donor.hold(STATE)
    with pytest.raises(ProtocolError) as caught:
        donor.handle("p", payload, 0.0)
    assert caught.value.peer == "p" and caught.value.phase == "state transfer"


def test_a_large_manifest_is_paged() -> None:
    array = np.zeros((CHUNK // 4, 1), np.float32)
    leaf = merkle.leaf_hash(bytes(CHUNK))
    many = {f"param/{n:05}": array for n in range(20_000)}
    state = CommittedState(round=1, tensors=many, root=b"", leaves=dict.fromkeys(many, leaf))
    state = replace(state, root=manifest_of(state).root)
    donor = Donor()
    donor.hold(state)
    fetcher = Fetcher(
        schema=specs_of(state), round=1, root=state.root, holders=["h"],
        keys=KeyMaker(0), seed=0,
    )  # fmt: skip
    actions, pages = fetcher.start(0.0), 0
    while not any(isinstance(action, Allocate) for action in actions):
        message = next(a.message for a in reversed(actions) if isinstance(a, Tell))
        page = donor.handle("f", message, 0.0)[0]
        assert isinstance(page, Tell) and len(page.message) < 4 << 20
        actions, pages = fetcher.received("h", page.message, 0.0), pages + 1
    assert pages == 2 and fetcher.chunks_total == 20_000
