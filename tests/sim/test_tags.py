"""Rounds of several tags in flight, rounds that close on K, and what comes late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from decentral.peer.protocol import Ask, RoundEntry
from decentral.simulator.conditions import Conditions
from decentral.simulator.scenarios import simulated_config
from decentral.simulator.world import World

TAGS = ("body", "head", "tail")


def mesh(seed: int, takes: list[tuple[str, ...] | None], **options: object) -> World:
    """One peer per item, which says what it takes part in; run until all are members."""
    config = replace(simulated_config(), **options)  # type: ignore[arg-type]
    world = World(seed, config, Conditions(compute_s=1.0, reduce_s=0.8, checkpoint_s=0.2))
    for index, mine in enumerate(takes):
        node = world.add()
        node.takes = mine
        if index == 0:
            node.boot(found=True)
        else:
            node.boot(entries=(world.node(0).peer,))
    assert world.run(40.0, lambda: whole(world))
    return world


def whole(world: World) -> bool:
    states = [node.core.replica.state for node in world.alive() if node.core is not None]
    return all(one is not None and len(one.view.members) == len(states) for one in states)


def committed(world: World) -> list[RoundEntry]:
    (log,) = world.checker.lineages.values()
    return [one for one in log.entries.values() if isinstance(one, RoundEntry)]


def checked(world: World) -> None:
    world.checker.settled()
    assert not world.checker.violations, f"seed {world.seed}: {world.checker.violations[:3]}"


def test_rounds_of_several_tags_overlap() -> None:
    world = mesh(1, [None] * 4, tags=TAGS)
    overlap: set[int] = set()

    def look() -> bool:
        core = world.node(0).core
        assert core is not None
        overlap.add(sum(one.attempt is not None for one in core.coordination.values()))
        return False

    world.run(world.now + 20.0, look)
    assert max(overlap) >= 2, "reduces of several tags at the same time"
    by_tag = {tag: [one.round for one in committed(world) if one.tag == tag] for tag in TAGS}
    for rounds in by_tag.values():
        assert len(rounds) > 5 and rounds == list(range(1, len(rounds) + 1))
    checked(world)


def test_groups_synchronize_independently() -> None:
    """Two modules with members of their own; a slow one holds up its own group only."""
    left, right = ("body", "head"), ("body", "tail")
    world = mesh(2, [left, left, left, right, right, right], tags=TAGS)
    world.node(5).machine.slowness = 8.0
    start = world.checker.rounds_committed
    world.run(world.now + 40.0)
    assert world.checker.rounds_committed > start
    count = {tag: sum(one.tag == tag for one in committed(world)) for tag in TAGS}
    assert count["head"] > 1.3 * count["tail"] > 0
    for entry in committed(world):
        peers = {world.nodes[one.peer].index for one in entry.contributions}
        assert entry.tag == "body" or peers <= ({0, 1, 2} if entry.tag == "head" else {3, 4, 5})
    assert "tail" not in {p.tag for p in world.node(0).trainer.parts.values() if p.held[0] > 0}  # type: ignore[index]
    checked(world)


def test_a_joiner_waits_for_no_round_of_a_tag_that_it_does_not_take() -> None:
    """Half of the tail's holders have contributed, and the other half takes its time."""
    world = mesh(11, [("head",), ("head",), ("tail",), ("tail",)], tags=("head", "tail"))
    world.run(world.now + 5.0)
    world.node(3).trainer.hung = True
    world.run(world.now + 6.0)
    core = world.node(0).core
    assert core is not None and core.replica.state is not None
    assert core.coordination["tail"].closing(core.replica.state)
    joiner = world.add()
    joiner.takes = ("head",)
    joiner.boot(entries=(world.node(1).peer,))
    assert world.run(world.now + 15.0, lambda: whole(world)), "it waits for a stranger's round"
    world.node(3).trainer.hung = False
    world.run(world.now + 20.0)
    checked(world)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_the_coordinator_of_all_tags_dies_in_the_middle(seed: int) -> None:
    """And comes back in soon, although a round of some tag is always under way."""
    world = mesh(seed, [None] * 5, tags=TAGS)
    for step in range(0, 40, 4):
        core = world.alive()[0].core
        assert core is not None
        victim = world.nodes[core.status().coordinator or ""]
        victim.crash_after = step
        world.run(world.now + 12.0)
        assert not victim.up
        before = {tag: sum(one.tag == tag for one in committed(world)) for tag in TAGS}
        assert world.run(
            world.now + 20.0,
            lambda before=before: all(
                sum(one.tag == tag for one in committed(world)) > before[tag] for tag in TAGS
            ),
        ), f"step {step}"
        victim.boot(entries=(world.alive()[0].peer,))
        assert world.run(world.now + 15.0, lambda: whole(world)), f"step {step}"
    checked(world)


def test_a_round_closes_on_k_and_late_work_counts_as_stale() -> None:
    world = mesh(4, [None] * 5, min_contributors=4, grace_s=0.3)
    world.node(3).machine.slowness = 4.0
    slow = world.node(3).peer
    world.run(world.now + 40.0)
    entries = committed(world)
    assert sum(len(one.contributions) == 4 for one in entries) > 5
    late = [c for one in entries for c in one.contributions if c.peer == slow and c.staleness > 0]
    assert late, "the slow one's work counts in the end, and how late it is stands in the log"
    others = [c for one in entries[9:] for c in one.contributions if c.peer != slow]
    assert others and max(c.staleness for c in others) <= 1
    checked(world)


def test_one_is_enough_and_a_majority_still_votes() -> None:
    """K counts contributors, never voters."""
    world = mesh(5, [None] * 5, min_contributors=1)
    for index in range(1, 5):
        world.node(index).machine.slowness = 30.0
    world.run(world.now + 20.0)
    alone = [one for one in committed(world) if len(one.contributions) == 1]
    assert len(alone) > 4
    checked(world)
    world.network.partition({world.node(0).peer: 1})
    world.run(world.now + 8.0)
    before = world.checker.rounds_committed
    world.run(world.now + 6.0)
    newer = committed(world)[before:] if world.checker.rounds_committed > before else []
    assert all(c.peer != world.node(0).peer for one in newer for c in one.contributions)


def test_pause_and_rollback_as_entries() -> None:
    world = mesh(6, [None] * 4)
    world.run(world.now + 8.0)
    world.node(2).deliver(Ask("pause", reason="dinner"))
    world.run(world.now + 4.0)
    state = world.node(0).core.replica.state  # type: ignore[union-attr]
    assert state is not None and state.paused == "dinner"
    at = state.scopes[0].round
    world.run(world.now + 10.0)
    assert len(committed(world)) == at
    asker = world.node(3)
    asker.deliver(Ask("rollback", round=at - 1))
    assert world.run(
        world.now + 5.0,
        lambda: all(n.trainer.first.held[0] == at - 1 for n in world.alive()),  # type: ignore[index]
    )
    assert asker.core is not None and asker.core.wishes.outcome == "done"
    asker.deliver(Ask("rollback", round=at + 9))
    world.run(world.now + 1.0)
    assert f"the run is at round {at - 1}" in asker.core.wishes.outcome
    world.node(1).deliver(Ask("resume"))
    world.run(world.now + 10.0)
    assert len(committed(world)) > at
    checked(world)


def test_a_pause_gets_through_where_rounds_are_nearly_all_reduce() -> None:
    """A wish that comes while an attempt runs must outlive the commit of that round."""
    world = mesh(8, [None] * 4)
    world.conditions = Conditions(compute_s=0.02, reduce_s=1.5, checkpoint_s=0.2)
    world.run(world.now + 6.0)
    asker = world.node(2)
    asker.deliver(Ask("pause"))
    assert asker.core is not None
    assert world.run(world.now + 4.0, lambda: bool(asker.core and asker.core.wishes.outcome))
    assert asker.core.wishes.outcome == "done"
    checked(world)


def test_who_keeps_dying_waits_outside() -> None:
    world = mesh(7, [None] * 4)
    flapper = world.node(3)
    for _ in range(6):
        flapper.crash()
        world.run(world.now + 2.0)
        flapper.boot(entries=(world.node(0).peer,))
        world.run(world.now + 3.0, lambda: whole(world))
    assert any(fault.kind == "quarantine" for fault in flapper.faults)
    assert world.run(world.now + 40.0, lambda: whole(world))
    checked(world)
