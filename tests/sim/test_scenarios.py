"""What one person would try: kill the coordinator, split the mesh, pull every plug."""

from __future__ import annotations

from dataclasses import replace

import pytest

from decentral.peer.protocol import Leave, Stop
from decentral.simulator.scenarios import simulated_config
from decentral.simulator.world import Node, World


def mesh(seed: int, peers: int, **times: float | str) -> World:
    """A founder and its joiners, run until all are members and a round is committed."""
    world = World(seed, replace(simulated_config(), **times))  # type: ignore[arg-type]
    founder = world.add()
    founder.boot(found=True)
    for _ in range(peers - 1):
        world.add().boot(entries=(founder.peer,))
    assert world.run(60.0, lambda: rounds(world) >= 2 and members(world) == peers)
    return world


def rounds(world: World) -> int:
    return world.checker.rounds_committed


def members(world: World) -> int:
    """How many live peers agree on a view that is made of exactly them."""
    views = {
        node.core.replica.state.view
        for node in world.alive()
        if node.core is not None and node.core.replica.state is not None
    }
    if len(views) != 1 or not all(n.core and n.core.replica.member for n in world.alive()):
        return 0
    return len(views.pop().members)


def coordinator(world: World) -> Node:
    for node in world.alive():
        assert node.core is not None
        if node.core.status().coordinator == node.peer:
            return node
    raise AssertionError("nobody coordinates")


def kinds(node: Node) -> list[str]:
    return [fault.kind for fault in node.faults]


def no_violations(world: World) -> None:
    world.checker.settled()
    assert not world.checker.violations, f"seed {world.seed}: {world.checker.violations[:3]}"


@pytest.mark.parametrize("step", range(0, 60, 3))
def test_coordinator_dies_after_any_action(step: int) -> None:
    world = mesh(step, 4)
    victim = coordinator(world)
    victim.crash_after = step
    assert world.run(world.now + 30.0, lambda: not victim.up)
    died_at, before = world.now, rounds(world)
    assert world.run(died_at + 30.0, lambda: rounds(world) > before)
    period_s = world.compute_s * 1.43 + world.reduce_s * 1.1
    assert world.now - died_at < period_s + 5.0, f"seed {step}: {world.now - died_at:.1f} s"
    world.run(world.now + 5.0)
    assert members(world) == 3
    no_violations(world)


def test_alone_goes_on_as_a_new_lineage_and_the_other_comes_back() -> None:
    world = mesh(1, 2)
    dead, survivor = world.node(0), world.node(1)
    dead.crash()
    died_at, before = world.now, rounds(world)
    assert world.run(world.now + 40.0, lambda: rounds(world) > before)
    assert 15.0 <= world.now - died_at < 30.0
    assert {"quorum-lost", "fork"} <= set(kinds(survivor))
    says = next(fault.says for fault in survivor.faults if fault.kind == "fork")
    assert "n0" in says and "lineage" in says
    dead.boot()
    assert world.run(world.now + 30.0, lambda: members(world) == 2)
    assert len(world.checker.lineages) == 2
    no_violations(world)


def test_alone_pauses_if_told_so() -> None:
    world = mesh(2, 2, on_quorum_loss="pause")
    world.node(0).crash()
    before = rounds(world)
    world.run(world.now + 60.0)
    assert rounds(world) == before
    assert kinds(world.node(1)).count("quorum-lost") == 1
    world.node(0).boot()
    assert world.run(world.now + 30.0, lambda: rounds(world) > before)
    assert len(world.checker.lineages) == 1
    no_violations(world)


def test_two_halves_fork_and_merge() -> None:
    world = mesh(3, 8)
    world.network.partition({peer: index % 2 for index, peer in enumerate(sorted(world.nodes))})
    world.run(world.now + 45.0)
    assert len(world.checker.lineages) == 3
    world.network.heal()
    assert world.run(world.now + 60.0, lambda: members(world) == 8)
    before = rounds(world)
    assert world.run(world.now + 15.0, lambda: rounds(world) > before)
    no_violations(world)


def test_all_die_and_resume_at_the_durable_round() -> None:
    world = mesh(4, 5)
    world.run(world.now + 20.0)
    node = world.node(0)
    assert node.core is not None
    durable, last = node.core.status().durable_round, node.core.status().round
    assert 0 < durable <= last
    for one in world.alive():
        one.crash()
    world.run(world.now + 5.0)
    for one in world.nodes.values():
        one.boot()
    before = rounds(world)
    assert world.run(world.now + 40.0, lambda: rounds(world) > before)
    assert node.core.status().round > durable
    assert len(world.checker.lineages) == 1
    no_violations(world)


def test_everybody_leaves_down_to_the_last_who_can_start_again() -> None:
    world = mesh(5, 4)
    for node in world.alive():
        node.deliver(Leave("done"))
    assert world.run(world.now + 20.0, lambda: not world.alive())
    assert all(node.left for node in world.nodes.values())
    before = rounds(world)
    for node in world.nodes.values():
        node.boot()
    assert world.run(world.now + 30.0, lambda: rounds(world) > before)
    assert world.run(world.now + 30.0, lambda: members(world) == 4)
    assert len(world.checker.lineages) == 1
    no_violations(world)


def test_one_leaves_and_nobody_waits_for_it() -> None:
    world = mesh(6, 4)
    leaver = coordinator(world)
    leaver.deliver(Leave("enough"))
    assert world.run(world.now + 5.0, lambda: leaver.left)
    left_at, before = world.now, rounds(world)
    assert world.run(left_at + 12.0, lambda: rounds(world) > before)
    assert "peer-died" not in {kind for node in world.alive() for kind in kinds(node)}
    world.run(world.now + 5.0)
    assert members(world) == 3
    no_violations(world)


def test_late_joiner_enters_while_the_others_train() -> None:
    world = mesh(7, 4)
    late = world.add()
    late.boot(entries=(world.node(2).peer,))
    world.checker.longest_gap_s = 0.0
    assert world.run(world.now + 20.0, lambda: members(world) == 5)
    before = rounds(world)
    assert world.run(world.now + 20.0, lambda: rounds(world) >= before + 2)
    assert world.checker.longest_gap_s < 2 * (world.compute_s * 1.43 + world.reduce_s)
    no_violations(world)


def test_stopped_process_is_evicted_and_returns() -> None:
    world = mesh(8, 4)
    before = rounds(world)
    world.node(3).pause(25.0)
    assert world.run(world.now + 22.0, lambda: rounds(world) > before + 1)
    assert world.run(world.now + 40.0, lambda: members(world) == 4)
    assert all(not node.core.replica.deposed for node in world.alive() if node.core)
    no_violations(world)


def test_hung_trainer_is_evicted_though_its_process_lives() -> None:
    world = mesh(9, 4, hung_after_s=20.0)
    hung = world.node(2)
    hung.trainer.hung = True
    before = rounds(world)
    assert world.run(world.now + 60.0, lambda: rounds(world) > before + 1)


def test_hung_coordinator_is_evicted_too() -> None:
    world = mesh(10, 4, hung_after_s=20.0)
    coordinator(world).trainer.hung = True
    before = rounds(world)
    assert world.run(world.now + 60.0, lambda: rounds(world) > before + 1)


def test_pair_that_cannot_link_does_not_stop_the_run() -> None:
    world = mesh(11, 5)
    world.network.cut_pair(world.node(1).peer, world.node(3).peer)
    world.run(world.now + 10.0)
    before = rounds(world)
    assert world.run(world.now + 30.0, lambda: rounds(world) > before + 1)
    world.network.heal()
    assert world.run(world.now + 40.0, lambda: members(world) == 5)
    no_violations(world)


def test_wiped_disk_is_a_newcomer_not_a_voter() -> None:
    world = mesh(12, 4)
    node = world.node(1)
    for _ in range(2):
        node.crash()
        node.boot()
        world.run(world.now + 3.0)
    node.crash()
    node.disk = node.checkpoint = None
    node.boot(entries=(world.node(2).peer,))
    assert world.run(world.now + 30.0, lambda: members(world) == 4)
    no_violations(world)


def test_stop_ends_the_run_for_all_at_one_round() -> None:
    world = mesh(13, 3)
    world.node(2).deliver(Stop("target reached"))
    world.run(world.now + 20.0)
    before = rounds(world)
    world.run(world.now + 20.0)
    assert rounds(world) == before
    states = [node.core.replica.state for node in world.alive() if node.core]
    assert {state.stop for state in states if state} == {"target reached"}


def test_foreign_recipe_is_refused_with_a_reason() -> None:
    world = mesh(14, 2)
    config = world.config
    world.config = replace(config, fingerprint=b"another recipe")
    stranger = world.add()
    stranger.boot(entries=(world.node(0).peer,))
    world.config = config
    world.run(world.now + 3.0)
    refused = [fault for fault in stranger.faults if fault.kind == "refused"]
    assert refused and "fingerprint" in refused[0].says
    assert stranger.core is not None and not stranger.core.replica.member
