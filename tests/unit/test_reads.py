"""Reading in states over real links in one process: parts, from all who hold them, beside whole
fetches, again and again until the time is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, cast

import numpy as np
import pytest
from fetch_world import CHUNK, make_state
from transfer_peers import ModulePeer, Peer, arrived, link

from decentral.errors import ConfigError, FingerprintError, StateError
from decentral.mesh_port import StateArrived
from decentral.peer.manifest import specs_of
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.transfer_router import TransferRouter
from decentral.state import hash_state
from decentral.types import CommittedState, TensorSpec

PART = 3 * CHUNK


def state_of(number: int, seed: int = 0) -> CommittedState:
    rng = np.random.default_rng(number + 100 * seed)
    parts = {
        f"{which}/{kind}": rng.integers(0, 256, PART, np.uint8)
        for which in ("delta", "own")
        for kind in "vw"
    }
    return make_state(number, **parts)


class Reader(ModulePeer):
    """Knows schemas of more tags than it holds. Its links are all that it knows of members."""

    def __init__(self, tags: str, upload_mbit: float = 0) -> None:
        self.spec: Sequence[TensorSpec] = specs_of(state_of(7))
        super().__init__(tags, upload_mbit)

    async def _make(self) -> Any:
        links = cast(LinkTable, self.links)
        return TransferRouter(
            self.endpoint, links, dict.fromkeys("abc", self.spec), self.loop.loop, self._done,
            self._failed, lambda: list(self.links.up),
        )  # fmt: skip

    def read(
        self, tag: str, state: CommittedState, prefix: str = "", timeout_s: float = 20.0
    ) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        args = tag, state.round, state.root, prefix, timeout_s, future
        self.loop.call(self.transfers.read, *args)  # type: ignore[attr-defined]
        return future

    def at_rest(self) -> bool:
        """Nothing is under way, held for others, or looked at from time to time."""
        return all(
            one._fetching.idle
            and not one._fetching._incoming
            and one._reads.idle
            and not one._donor.pinned_rounds
            for one in self.transfers._tags.values()  # type: ignore[attr-defined]
        )


def check(got: dict[str, Any], state: CommittedState, prefix: str) -> None:
    assert sorted(got) == [name for name in sorted(state.tensors) if name.startswith(prefix)]
    assert all(np.array_equal(array, state.tensors[name]) for name, array in got.items())


@pytest.fixture
def crew() -> Iterator[list[Reader]]:
    """Three holders of a, and a reader that holds b."""
    made = [Reader("a", 100) for _ in range(3)] + [Reader("b")]
    link(made[-1], made[:-1])
    yield made
    for peer in made:
        peer.close()


def test_a_part_comes_from_all_and_nothing_else_travels(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    for holder in holders:
        holder.publish("a", state)
    check(reader.read("a", state, "delta/").result(20), state, "delta/")
    assert 2 * PART <= reader.received() < 2 * PART + CHUNK
    given = [
        reader.endpoint.stats(link.id).bulk_bytes_received for link in reader.links.up.values()
    ]
    # A holder that is slow to answer may find nothing left to give.
    assert sum(one > 0 for one in given) >= 2, given
    assert not any(holder.transfers.wants_updates("a") for holder in holders)  # type: ignore
    for peer in crew:
        peer.wait_until(peer.at_rest, "something is left behind")


def test_reads_and_a_whole_fetch_of_one_root_at_once(crew: list[Reader]) -> None:
    """The first to end must not release what the others still need, though all holders move on."""
    *holders, reader = crew
    state, newer = state_of(7), state_of(8)
    for holder in holders:
        holder.publish("a", state)
    reader.want("a", state, holders)
    small = [reader.read("a", state, "delta/v") for _ in range(2)]
    others = [reader.read("a", state, prefix) for prefix in ("own/", "")]
    reader.wait_until(lambda: reader.received() > 0, "nothing came")
    for holder in holders:
        holder.publish("a", newer)
    for read, prefix in zip([*small, *others], ("delta/v", "delta/v", "own/", ""), strict=True):
        check(read.result(20), state, prefix)
    order = arrived(reader)
    assert isinstance(order, StateArrived)
    assert hash_state(order.state.tensors)[0] == state.root
    assert reader.errors == []
    for holder in holders:
        holder.wait_until(holder.at_rest, "a pin was not released")


def test_it_is_read_again_once_somebody_has_it(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    holders[0].publish("a", state_of(6))
    read = reader.read("a", state, "own/")
    with pytest.raises(TimeoutError):
        read.result(0.3)
    holders[1].publish("a", state)
    check(read.result(5), state, "own/")


def test_holders_that_die_are_replaced_by_others_that_get_it_later(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    holders[0].publish("a", state)
    read = reader.read("a", state, "delta/")
    reader.wait_until(lambda: reader.received() > 0, "nothing came")
    reader.endpoint.close_link(reader.links.up[holders[0].me].id, "it died")
    holders[2].publish("a", state)
    check(read.result(10), state, "delta/")


def test_what_is_here_is_read_from_memory(crew: list[Reader]) -> None:
    *_, reader = crew
    state = state_of(7)
    reader.publish("b", state)
    got = reader.read("b", state, "own/").result(5)
    check(got, state, "own/")
    assert got["own/v"] is state.tensors["own/v"] and reader.received() == 0


def test_a_liar_is_named_and_the_others_give_it(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    spoilt = {name: array.copy() for name, array in state.tensors.items()}
    spoilt["own/v"] ^= 1
    lie = CommittedState(round=7, tensors=spoilt, root=state.root, leaves=state.leaves)
    for holder, held in zip(holders, (lie, lie, state), strict=True):
        holder.publish("a", held)
    check(reader.read("a", state, "own/v").result(20), state, "own/v")
    assert {str(error.peer) for error in reader.errors} <= {holder.me for holder in holders[:2]}
    assert all("wrong bytes for chunk" in error.says for error in reader.errors)


def test_only_liars_have_it(crew: list[Reader]) -> None:
    liar, *_, reader = crew
    state = state_of(7)
    spoilt = {name: array ^ 1 for name, array in state.tensors.items()}
    lie = CommittedState(round=7, tensors=spoilt, root=state.root, leaves=state.leaves)
    liar.publish("a", lie)
    with pytest.raises(StateError, match="was not to be had in time"):
        reader.read("a", state, "own/v", timeout_s=1.0).result(5)
    assert [error.peer for error in reader.errors] == [liar.me], "named once, not asked again"


def test_a_cancelled_read_leaves_nothing(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    for holder in holders:
        holder.publish("a", state)
    read = reader.read("a", state)
    reader.wait_until(lambda: reader.received() > 0, "nothing came")
    assert read.cancel()
    with pytest.raises(CancelledError):
        read.result(0)
    for peer in crew:
        peer.wait_until(peer.at_rest, "something is left behind")
    check(reader.read("a", state, "own/").result(20), state, "own/")


def test_what_there_is_not(crew: list[Reader]) -> None:
    *holders, reader = crew
    state = state_of(7)
    with pytest.raises(ConfigError, match="schema was not given"):
        reader.read("z", state).result(5)
    with pytest.raises(ConfigError, match="'what/'"):
        reader.read("a", state, "what/").result(5)
    with pytest.raises(StateError, match="round 7 of a was not to be had"):
        reader.read("a", state, timeout_s=0.2).result(5)
    reader.loop.call(reader.transfers._schemas.update, {"c": specs_of(make_state())})  # type: ignore
    holders[0].publish("c", state)
    with pytest.raises(FingerprintError):
        reader.read("c", state).result(5)
    read = reader.read("a", state)
    reader.loop.call(reader.transfers.close)
    with pytest.raises(StateError, match="has left the run"):
        read.result(5)


def test_tags_at_rest_cost_nothing(crew: list[Reader]) -> None:
    """No timer runs for a tag of which nothing comes and nothing goes."""
    *holders, reader = crew
    state = state_of(7)
    holders[0].publish("a", state)
    check(reader.read("a", state, "own/v").result(20), state, "own/v")

    def resting(peer: Peer) -> bool:
        return all(one._timer is None for one in peer.transfers._tags.values())  # type: ignore

    for peer in crew:
        assert peer.loop.wait(_soon(peer, resting)), "a timer goes on"


async def _soon(peer: Peer, true: Any) -> bool:
    import asyncio

    for _ in range(40):
        if true(peer):
            return True
        await asyncio.sleep(0.1)
    return False
