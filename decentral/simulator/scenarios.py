"""What happens to the peers: schedules of faults, all drawn from the seed.

0 s ── everybody joins ── faults ── all heals ── whole within HEAL_S ── quiet rounds ── checks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from decentral.peer.protocol import CoreConfig
from decentral.simulator.conditions import draw_conditions
from decentral.simulator.faults import WEIGHTS, Faults, end_all, join
from decentral.simulator.healing import not_whole
from decentral.simulator.world import FINGERPRINT, RUN, World

DURATION_S = 600.0
HEAL_S = 30.0
"""I3: with all faults over, everybody is a member of one view with one state within this time."""
FIRST_FAULT_S = 8.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one simulated run came to."""

    seed: int
    peers: int
    simulated_s: float
    events: int
    violations: list[str]
    trace_hash: str
    rounds: int
    longest_gap_s: float
    healed_s: float
    """From the last fault until everybody was back."""


def simulated_config(lease_samples: int = 64) -> CoreConfig:
    """The times of a real mesh, except that trainers are called hung earlier."""
    return CoreConfig(
        run=RUN,
        fingerprint=FINGERPRINT,
        lease_samples=lease_samples,
        reduce_timeout_s=15.0,
        hung_after_s=60.0,
    )


def make_world(seed: int, peers: int, duration_s: float = DURATION_S, copies: int = 0) -> World:
    """A founder, and the others joining it within the first seconds."""
    world = World(seed, simulated_config())
    world.conditions = draw_conditions(world.rng, duration_s)
    if copies:
        tags = tuple(f"cell/{number}" for number in range(2 * peers))
        world.config = replace(world.config, tags=tags, copies=copies, lease_samples=0)
    else:
        world.config = _draw_rounds(world.rng, world.config, peers)
    founder = world.add()
    founder.boot(found=True)
    for _ in range(peers - 1):
        world.at(0.1 + 3.0 * world.rng.random(), join, world.add())
    return world


def _draw_rounds(rng: Random, config: CoreConfig, peers: int) -> CoreConfig:
    """One tag or several, and rounds that wait for all or close on K."""
    tags = rng.choice((("",), ("",), ("",), ("", "head"), ("a", "b", "c")))
    least = rng.choice((0, 0, max(1, peers // 2), max(1, peers * 3 // 4)))
    grace_s = rng.choice((0.0, 0.5, 2.0)) if least else 0.0
    return replace(config, tags=tags, min_contributors=least, grace_s=grace_s)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Which faults strike, by weight; what else is special about the world."""

    weights: dict[str, float]
    most_peers: float = 1.25
    """Newcomers come until there are so many times the peers that it began with."""
    copies: int = 0
    """Instead of sums that all contribute to: tags that so many members keep (`keepers.py`)."""
    loss: float | None = None
    nat_share: float | None = None

    def schedule(self, world: World, until: float) -> None:
        """Each seed has its own mixture: some kinds are rare, some are frequent."""
        if self.loss is not None:
            world.conditions = replace(world.conditions, loss=self.loss)
        if not self.weights:
            return
        rng = world.rng
        weights = [one * rng.choice((0.0, 1.0, 1.0, 3.0)) for one in self.weights.values()]
        if not any(weights):
            weights = list(self.weights.values())
        faults = Faults(
            world, until, max(len(world.nodes) + 4, int(self.most_peers * len(world.nodes)))
        )
        at = FIRST_FAULT_S
        while at < until:
            world.at(at, faults.strike, rng.choices(list(self.weights), weights)[0])
            at += rng.expovariate(1 / world.conditions.fault_every_s)


def _only(*kinds: str, **special: Any) -> Scenario:
    return Scenario({kind: WEIGHTS[kind] for kind in kinds}, **special)


SCENARIOS: dict[str, Scenario] = {
    "everything": Scenario(WEIGHTS),
    "calm": Scenario({}),
    "crashes": _only("crash", "torn"),
    "crowds": _only("crowd", "blackout"),
    "power": _only("power", "torn", "blackout"),
    "partitions": _only("split", "triangle"),
    "one-way": _only("one-way"),
    "links": _only("reset", "storm", "half-open"),
    "stalls": _only("pause", "suspend", "hang"),
    "clocks": _only("clock", "suspend"),
    "slow": _only("slow"),
    "lossy": Scenario({"reset": 1.0}, loss=0.05),
    "nat": Scenario({"crash": 1.0, "reset": 1.0}, nat_share=0.5),
    "wishes": _only("halt", "undo", "crash"),
    "comings": _only("leave", "newcomer", "crash"),
    "leases": _only("crash", "leave", "newcomer", "reset", "pause", copies=2),
    "storms": _only("crush", "crowd", most_peers=3.0),
}


def quiet_s(world: World) -> float:
    """I3: with all faults over, rounds follow each other at most so far apart."""
    return 20.0 + 2 * world.conditions.compute_s


def simulate(
    seed: int,
    peers: int = 32,
    scenario: str = "everything",
    duration_s: float = DURATION_S,
    prepare: Callable[[World], None] | None = None,
) -> Report:
    """Run one seed to its end and check everything that must hold."""
    world = make_world(seed, peers, duration_s, SCENARIOS[scenario].copies)
    if prepare is not None:
        prepare(world)
    faults_end = duration_s - HEAL_S - quiet_s(world)
    SCENARIOS[scenario].schedule(world, faults_end)
    world.run(faults_end)
    end_all(world)
    checker = world.checker
    while (missing := not_whole(world)) and world.now < faults_end + HEAL_S:
        world.run(world.now + LOOK_EVERY_S)
    healed_s = world.now - faults_end
    if missing:
        checker.violation(f"I3: not whole {HEAL_S:.0f} s after the last fault: {missing}")
    world.run(duration_s - quiet_s(world))
    rounds = checker.rounds_committed
    world.run(duration_s)
    if checker.rounds_committed == rounds:
        checker.violation(f"I3: no round was committed in the last {quiet_s(world):.0f} s")
    checker.settled()
    return Report(
        seed=seed,
        peers=peers,
        simulated_s=world.now,
        events=world.events,
        violations=checker.violations,
        trace_hash=world.trace_hash(),
        rounds=checker.rounds_committed,
        longest_gap_s=checker.longest_gap_s,
        healed_s=healed_s,
    )


__all__ = ["SCENARIOS", "Report", "make_world", "simulate", "simulated_config"]
