"""What one person would try: kill the coordinator, split the mesh, pull every plug."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from decentral.peer.core import PeerCore
from decentral.peer.entries import encode_entry
from decentral.peer.messages import Commit, pack
from decentral.peer.protocol import Action, Event, Leave, Received, Stop, ViewEntry
from decentral.simulator.conditions import Conditions
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
    period_s = world.conditions.compute_s * 1.43 + world.conditions.reduce_s * 1.1
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
    log = max(world.checker.lineages.values(), key=lambda one: len(one.entries))
    came = [one.reason for one in log.entries.values() if isinstance(one, ViewEntry)]
    assert any("coming over from lineage" in reason for reason in came), came


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


@pytest.mark.parametrize("coordinates", [True, False])
def test_an_attempt_does_not_wait_for_whoever_has_stopped_to_leave(coordinates: bool) -> None:
    """Its trainer was interrupted: it does not reduce any more, and the others cannot without."""
    world = mesh(6, 4)
    first = coordinator(world)
    leaver = first if coordinates else next(n for n in world.alive() if n is not first)
    assert leaver.core is not None
    mine = leaver.core.rounds[""]
    for part in leaver.trainer.parts.values():
        part.start_reduce = lambda order: None  # type: ignore[method-assign]
    assert world.run(world.now + 60.0, lambda: mine.running is not None)
    before = rounds(world)
    leaver.deliver(Leave("interrupted"))
    assert world.run(world.now + 3.0, lambda: leaver.left)
    assert world.run(world.now + 12.0, lambda: rounds(world) > before)
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
    assert world.checker.longest_gap_s < 2 * (
        world.conditions.compute_s * 1.43 + world.conditions.reduce_s
    )
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
    node.disk.wipe()
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


def test_whoever_follows_the_log_from_outside_is_told_that_it_is_in_again() -> None:
    """Its eviction and its return both reach it as entries, none of them as a snapshot."""
    world = mesh(20, 4)
    node, other = world.node(3), world.node(0)
    assert node.core is not None
    state = node.core.replica.state
    assert state is not None
    inside, slot = state.view, state.slot
    outside = tuple(peer for peer in inside.members if peer != node.peer)
    orders_seen: list[str] = []
    for step, present in enumerate((outside, inside.members)):
        then = replace(inside, epoch=inside.epoch + 1 + step, members=present)
        value = encode_entry(ViewEntry(view=then, reason="a test"))
        commit = Received(other.peer, pack(Commit(inside.lineage, slot + step, value)))
        orders = node.core.handle(commit, node.clock())
        orders_seen += [type(one).__name__ for one in orders]
    kept = [one for one in orders_seen if one in ("Committed", "Evicted", "Joined")]
    assert kept == ["Committed", "Evicted", "Committed", "Joined"]


def test_a_one_way_cut_is_noticed_by_both_ends() -> None:
    world = mesh(15, 5)
    deaf, mute = world.node(1), world.node(3)
    world.network.cut(mute.peer, deaf.peer)
    world.run(world.now + 7.0)
    assert not world.network.linked(deaf.peer, mute.peer)
    assert all(node.core and mute.peer not in node.core.ctx.links for node in (deaf,))
    assert all(node.core and deaf.peer not in node.core.ctx.links for node in (mute,))
    world.network.mend(mute.peer, deaf.peer)
    assert world.run(world.now + 40.0, lambda: members(world) == 5)
    no_violations(world)


def test_a_short_cut_delays_messages_and_loses_none() -> None:
    world = mesh(16, 4)
    links = set(world.network.links())
    for other in world.alive()[1:]:
        world.network.cut_pair(world.node(0).peer, other.peer)
    world.run(world.now + 1.0)
    world.network.heal()
    before = rounds(world)
    assert world.run(world.now + 20.0, lambda: rounds(world) > before)
    assert set(world.network.links()) == links
    no_violations(world)


def test_nobody_dials_a_peer_behind_nat_that_no_one_introduces() -> None:
    world = World(17, simulated_config())
    founder, hidden = world.add(), world.add()
    hidden.machine.natted = True
    founder.boot(found=True)
    hidden.boot()
    world.network.dial(founder, hidden.peer)
    world.run(10.0)
    assert not founder.links
    world.network.dial(hidden, founder.peer)
    assert world.run(30.0, lambda: members(world) == 2)
    late = world.add()
    late.boot(entries=(founder.peer,))
    assert world.run(60.0, lambda: members(world) == 3)
    assert hidden.peer in late.links
    no_violations(world)


def test_a_power_cut_loses_what_was_not_synced() -> None:
    world = World(18, simulated_config(), Conditions(fsync_s=0.05))
    node = world.add()
    node.boot(found=True)
    assert node.disk.written is not None
    assert node.disk.synced is None
    world.run(5.0)
    assert node.disk.synced == node.disk.written
    kept = node.disk.synced
    node.disk.write(b"a record whose fsync has not returned")
    node.disk.power_failed(Random(2))
    assert node.disk.read() == kept
    node.disk.write(b"a record in the page cache")
    node.disk.process_died()
    assert node.disk.read() == b"a record in the page cache"


def test_clocks_that_differ_do_not_matter() -> None:
    world = World(19, simulated_config(), Conditions(drift_ppm=200.0))
    founder = world.add()
    founder.boot(found=True)
    for _ in range(3):
        world.add().boot(entries=(founder.peer,))
    readings = [node.clock() for node in world.nodes.values()]
    assert len(set(readings)) == 4
    world.run(60.0)
    assert members(world) == 4
    assert rounds(world) > 3
    no_violations(world)


@pytest.mark.parametrize("dies", [False, True])
def test_a_suspended_clock_stands_still_and_never_goes_back(
    dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = mesh(2, 3)
    node = world.node(2)
    before, began_at = node.clock(), world.now
    readings: list[float] = []
    handle = PeerCore.handle

    def noted(core: PeerCore, event: Event, now: float) -> list[Action]:
        if core is node.core:
            readings.append(now)
        return handle(core, event, now)

    monkeypatch.setattr(PeerCore, "handle", noted)
    node.suspend(50.0)
    stood_s = 50.0
    if dies:
        stood_s = 20.0
        world.run(began_at + stood_s)
        node.crash()
        node.boot(entries=(world.node(0).peer,))
    world.run(began_at + 80.0)
    assert readings == sorted(readings)
    assert -1e-9 <= readings[0] - before < 1.0  # a clock of floats, rebased
    assert readings[-1] == pytest.approx(before + 80.0 - stood_s, abs=1.0)
