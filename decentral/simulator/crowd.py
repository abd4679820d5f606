"""A thousand peers and more: leaders die, the network tears in three, hundreds join, 5 % is lost.

     0 s  everybody starts from one formed view, as after a stop of the whole run
    15 s  the first peers of the view die: the coordinator and those who would follow it
    20 s  three parts do not reach each other: 60, 25 and 15 of 100 peers
    32 s  the network is whole again
    34 s  newcomers, within three seconds
    60 s  checks

The view is formed beforehand: what a thousand joins one after another would cost is known from
smaller meshes, and this is about what a crowd does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from decentral.peer.acceptor import Record, RecordWriter, Votes
from decentral.peer.protocol import ViewEntry
from decentral.peer.views_log import LogState, apply, founding_state
from decentral.simulator.conditions import Conditions
from decentral.simulator.part import initial_root
from decentral.simulator.scenarios import Report, simulated_config
from decentral.simulator.world import RUN, Node, World
from decentral.types import View

LOSS = 0.05
DURATION_S = 60.0
QUIET_S = 20.0
"""I3: a round commits in the last part, in which nothing is struck any more."""


def formed(world: World, members: list[Node]) -> LogState:
    """The log of a run in which these are members and round 0 is what all hold."""
    config = world.config
    state = founding_state(RUN, members[0].peer, b"formed " * 2, config.lease_samples, config.tags)
    for scope in state.scopes:
        state = state.with_scope(replace(scope, root=initial_root(scope.tag)))
    peers = tuple(node.peer for node in members)
    view = View(lineage=state.view.lineage, epoch=state.view.epoch + 1, members=peers)
    return apply(state, ViewEntry(view=view, reason="formed"))


def crowd(
    seed: int,
    peers: int = 1000,
    joiners: int = 200,
    deaths: int = 5,
    duration_s: float = DURATION_S,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run one seed and check everything that must hold."""
    config = replace(simulated_config(), full_mesh_up_to=64)
    conditions = Conditions(loss=LOSS, compute_s=5.0, reduce_s=0.6, farthest_s=0.08)
    world = World(seed, config, conditions)
    members = [world.add() for _ in range(peers)]
    state = formed(world, members)
    book = tuple((node.peer, node.name, node.address) for node in members)
    record = RecordWriter().pack(Record(boot_seq=1, state=state, votes=Votes(), past=(), book=book))
    for node in members:
        node.disk.write(record)
        node.disk.sync()
        world.at(2.0 * world.rng.random(), node.boot)
    for node in members[:deaths]:
        world.at(15.0 + world.rng.random(), node.crash)
    world.at(20.0, _tear, world)
    world.at(32.0, world.network.unite)
    for _ in range(joiners):
        world.at(34.0 + 3.0 * world.rng.random(), _join, world)
    while world.now < duration_s - QUIET_S:
        world.run(world.now + 5.0)
        say(f"{world.now:.0f} s: {world.events} events, {world.checker.rounds_committed} rounds")
    rounds = world.checker.rounds_committed
    world.run(duration_s)
    if world.checker.rounds_committed == rounds:
        world.checker.violation(f"I3: no round was committed in the last {QUIET_S:.0f} s")
    return Report(
        seed=seed,
        peers=peers,
        simulated_s=world.now,
        events=world.events,
        violations=world.checker.violations,
        trace_hash=world.trace_hash(),
        rounds=world.checker.rounds_committed,
        longest_gap_s=world.checker.longest_gap_s,
        healed_s=0.0,
    )


def _tear(world: World) -> None:
    parts = world.rng.choices((0, 1, 2), (60, 25, 15), k=len(world.nodes))
    world.network.partition(dict(zip(world.nodes, parts, strict=True)))


def _join(world: World) -> None:
    alive = world.alive()
    world.add().boot(entries=tuple(one.peer for one in world.rng.sample(alive, 3)))
