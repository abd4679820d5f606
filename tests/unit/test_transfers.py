"""Transfers over real links in one process: a state, what was committed meanwhile, and liars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fetch_world import CHUNK, make_state
from transfer_peers import SIZE, ModulePeer, Peer, arrived, link

from decentral.mesh_port import StateArrived, UpdateArrived
from decentral.peer.transfer import (
    ChunkMissing,
    ChunkUnwanted,
    ChunkWanted,
    ManifestMissing,
    Pin,
    Release,
    StateWanted,
    UpdateOffer,
    UpdateWanted,
    unpack_message,
)
from decentral.state import hash_state
from decentral.types import CommittedState
from decentral.updates import pack_update


def state_of(number: int, spoil: bool = False) -> CommittedState:
    data = np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)
    state = make_state(number, **{"param/0000": data})
    if spoil:
        data[::CHUNK] ^= 1
    return state


def update_of(number: int, lie: bool = False) -> CommittedState:
    mean = np.full(5000, number + lie, np.float32)
    return pack_update(number, mean, "fp32", number)


def interest(holders: Sequence[Peer]) -> None:
    """Until they know that somebody fetches."""
    for holder in holders:
        holder.wait_until(lambda h=holder: h.transfers.wants_updates, "no interest")  # type: ignore


@pytest.fixture
def crew() -> Iterator[list[Peer]]:
    """Three holders and a joiner, linked."""
    made = [Peer(upload_mbit=40) for _ in range(3)] + [Peer()]
    link(made[-1], made[:-1])
    yield made
    for peer in made:
        peer.close()


def test_rounds_committed_during_the_fetch_are_replayed(crew: list[Peer]) -> None:
    *holders, joiner = crew
    states = {number: state_of(number) for number in range(7, 10)}
    for holder in holders:
        holder.commit(states[7])
    joiner.fetch(states[7], holders)
    interest(holders)
    for number in (8, 9):  # at 3 × 5 MB/s the state takes about 0.4 s
        for holder in holders:
            holder.commit(states[number], update_of(number))
        joiner.fetch(states[number], holders, *[states[n] for n in range(7, number)])
    first = arrived(joiner)
    assert isinstance(first, StateArrived) and first.state.root == states[7].root
    assert hash_state(first.state.tensors)[0] == states[7].root
    joiner.commit(first.state)
    for number in (8, 9):
        order = arrived(joiner)
        assert isinstance(order, UpdateArrived)
        assert (order.round, order.state_root) == (number, states[number].root)
        assert np.array_equal(order.data, update_of(number).tensors["update/data"])
        joiner.commit(states[number])
    assert joiner.received() < 1.5 * SIZE and joiner.errors == []


def test_a_false_update_is_refused_and_who_offered_it_is_named(crew: list[Peer]) -> None:
    *holders, joiner = crew
    old, new = state_of(7), state_of(8)
    joiner.commit(old)
    for holder in holders:
        holder.commit(old)
    joiner.fetch(new, holders, old)  # asks before the holders have it
    interest(holders)
    for number, holder in enumerate(holders):
        holder.commit(new, update_of(8, lie=number < 2))
    order = arrived(joiner)
    assert isinstance(order, UpdateArrived) and order.data.view(np.float32)[0] == 9.0
    joiner.loop.call(joiner.transfers.update_refused, 8)
    order = arrived(joiner)
    assert isinstance(order, UpdateArrived) and order.data.view(np.float32)[0] == 8.0
    assert sorted(str(e.peer) for e in joiner.errors) == sorted(h.me for h in holders[:2])
    joiner.commit(new)


def test_without_updates_the_state_itself_is_fetched(crew: list[Peer]) -> None:
    *holders, joiner = crew
    old, new = state_of(7), state_of(8)
    joiner.commit(old)
    for holder in holders:
        holder.commit(new)  # nobody asked: nothing was kept
    joiner.fetch(new, holders, old)
    order = arrived(joiner)
    assert isinstance(order, StateArrived) and order.state.root == new.root


def test_two_who_missed_the_same_round_do_not_wait_for_one_another(crew: list[Peer]) -> None:
    """Each asks all for the update. Those who reduced say no; the other one who is behind must."""
    holder, *_, other, joiner = crew
    old, new = state_of(7), state_of(8)
    holder.commit(new)
    for behind, fellow in ((joiner, other), (other, joiner)):
        behind.commit(old)
        behind.fetch(new, [holder, fellow] if behind is joiner else [fellow], old)
    order = arrived(joiner, timeout_s=10)
    assert isinstance(order, StateArrived) and order.state.root == new.root
    joiner.commit(new)
    order = arrived(other, timeout_s=10)
    assert isinstance(order, StateArrived) and order.state.root == new.root


@pytest.mark.parametrize("updates", [True, False])
def test_nobody_waits_for_a_dead_source_of_an_old_state(crew: list[Peer], updates: bool) -> None:
    """Only it had that snapshot: the others have moved on, and give what they hold now."""
    first, *others, joiner = crew
    old, new = state_of(7), state_of(8)
    first.commit(old)
    for holder in others:
        holder.commit(new)
    joiner.fetch(old, [first, *others])
    joiner.wait_until(lambda: joiner.received() > 0, "nothing came")
    first.commit(new, update_of(8) if updates else None)
    joiner.fetch(new, [first, *others], old)
    joiner.endpoint.close_link(joiner.links.up[first.me].id, "it died")
    order = arrived(joiner, timeout_s=10)
    assert isinstance(order, StateArrived) and order.state.root == new.root


def test_nobody_waits_for_the_dead_source_of_an_update(crew: list[Peer]) -> None:
    """It alone had it, and dies while it sends: the state itself comes from the others."""
    first, *others, joiner = crew
    old, new = state_of(7), state_of(8)
    update = pack_update(8, np.zeros(SIZE // 8, np.float32), "fp32", 1)  # 3 MB: half a second
    joiner.commit(old)
    first.commit(old)
    joiner.fetch(new, [first, *others], old)  # asks before anybody has it
    interest([first])
    for holder in others:
        holder.commit(new)
    first.commit(new, update)
    joiner.wait_until(lambda: joiner.received() > 0, "nothing came")
    joiner.endpoint.close_link(joiner.links.up[first.me].id, "it died")
    order = arrived(joiner, timeout_s=10)
    assert isinstance(order, StateArrived) and order.state.root == new.root


def test_a_peer_that_differs_in_one_chunk_gets_one_chunk(crew: list[Peer]) -> None:
    *holders, joiner = crew
    right = state_of(7)
    changed = {name: array.copy() for name, array in right.tensors.items()}
    changed["param/0000"][3 * CHUNK + 5] ^= 1
    for holder in holders:
        holder.commit(right)
    joiner.commit(make_state(7, **changed))
    joiner.fetch(right, holders)
    order = arrived(joiner)
    assert isinstance(order, StateArrived)
    assert hash_state(order.state.tensors)[0] == right.root
    assert CHUNK <= joiner.received() < 1.2 * CHUNK


def test_identical_state_moves_no_byte(crew: list[Peer]) -> None:
    *holders, joiner = crew
    state = state_of(7)
    for holder in holders:
        holder.commit(state)
    joiner.commit(state)
    joiner.fetch(state, holders)
    assert joiner.orders.empty() and joiner.received() == 0
    renamed = CommittedState(
        round=9, tensors=state.tensors, root=state.root, leaves=state.leaves
    )  # back at the same bits in another round
    joiner.fetch(renamed, holders)
    order = arrived(joiner)
    assert isinstance(order, StateArrived) and order.state.round == 9
    assert joiner.received() == 0


def test_a_source_that_serves_other_bytes_is_named(crew: list[Peer]) -> None:
    *holders, joiner = crew
    liar, state = holders[1], state_of(7)
    for holder in holders:
        holder.commit(state_of(7, spoil=holder is liar))
    joiner.fetch(state, [liar])
    joiner.wait_until(lambda: bool(joiner.errors), "wrong bytes went unnoticed")
    assert joiner.errors[0].peer == liar.me and "wrong bytes for chunk" in joiner.errors[0].says
    joiner.fetch(state, [holder for holder in holders if holder is not liar])
    order = arrived(joiner)
    assert isinstance(order, StateArrived)
    assert hash_state(order.state.tensors)[0] == state.root


# ---------------------------------------------------------------------------- several modules


@pytest.fixture
def holders_of_modules() -> Iterator[list[ModulePeer]]:
    """Who holds a, who holds b, who holds nothing of either, and a joiner that takes both."""
    made = [ModulePeer("a", 200), ModulePeer("b", 200), ModulePeer("c"), ModulePeer("ab")]
    link(made[-1], made[:-1])
    yield made
    for peer in made:
        peer.close()


def test_modules_come_at_once_each_from_those_who_hold_it(
    holders_of_modules: list[ModulePeer],
) -> None:
    *holders, joiner = holders_of_modules
    states = {"a": state_of(7), "b": state_of(4)}
    for tag, holder in zip("ab", holders, strict=False):
        holder.publish(tag, states[tag])
    for tag, state in states.items():
        joiner.want(tag, state, holders)
    for _ in "ab":
        order = arrived(joiner)
        assert isinstance(order, StateArrived)
        assert order.state.root == states.pop(order.tag).root
        assert hash_state(order.state.tensors)[0] == order.state.root
    assert joiner.errors == []
    given = [joiner.endpoint.stats(joiner.links.up[h.me].id).bulk_bytes_received for h in holders]
    assert min(given[:2]) >= SIZE and given[2] < CHUNK


def test_a_holder_that_is_met_later_helps_at_once(holders_of_modules: list[ModulePeer]) -> None:
    """Only a stranger to the module is known at first; the fetch must not wait for a tick."""
    *holders, joiner = holders_of_modules
    holders[0].publish("a", state_of(7))
    joiner.want("a", state_of(7), holders[2:])
    joiner.want("a", state_of(7), holders)
    order = arrived(joiner)
    assert isinstance(order, StateArrived) and order.tag == "a"


def test_questions_about_a_module_that_is_not_here_are_answered(
    holders_of_modules: list[ModulePeer],
) -> None:
    *holders, joiner = holders_of_modules
    stranger = holders[2]
    heard: list[Any] = []
    joiner.transfers.message = lambda peer, payload: heard.append(  # type: ignore[method-assign]
        (peer, unpack_message(payload))
    )
    root = state_of(7).root
    asked = [
        Pin(7, root, tag="a"),
        StateWanted(7, root, 0, tag="a"),
        ChunkWanted(7, root, "param/0000", 0, 99, tag="a"),
        UpdateWanted(8, root, tag="a"),
    ]
    for message in (*asked, Release(7, root, tag="a"), ChunkUnwanted(7, root, 99, tag="a")):
        joiner.loop.call(joiner.links.send, stranger.me, message.pack(), 0)
    joiner.wait_until(lambda: len(heard) == len(asked), f"{len(heard)} answers")
    assert [answer for _, answer in heard] == [
        ManifestMissing(7, root, tag="a"),
        ManifestMissing(7, root, tag="a"),
        ChunkMissing(7, root, 99, False, tag="a"),
        UpdateOffer(8, root, b"", 0, 0, tag="a"),
    ]
