"""What happens to the peers: schedules of faults, all drawn from the seed.

0 s ── everybody joins ── faults for most of the time ── all heals ── quiet ── checks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from decentral.peer.protocol import CoreConfig, Leave
from decentral.simulator.world import FINGERPRINT, RUN, Node, World

QUIET_S = 60.0
"""Time to settle after the last fault: partitions merge, everybody is back, rounds commit."""
COMMIT_WITHIN_S = 20.0
"""I3: with all faults over, rounds follow each other at most so far apart."""


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


def simulated_config(lease_samples: int = 64) -> CoreConfig:
    """The times of a real mesh, except that trainers are called hung earlier."""
    return CoreConfig(
        run=RUN,
        fingerprint=FINGERPRINT,
        lease_samples=lease_samples,
        reduce_timeout_s=15.0,
        hung_after_s=60.0,
    )


def make_world(seed: int, peers: int) -> World:
    """A founder, and the others joining it within the first seconds."""
    world = World(seed, simulated_config())
    founder = world.add()
    founder.boot(found=True)
    for _ in range(peers - 1):
        node = world.add()
        world.at(0.1 + 3.0 * world.rng.random(), _join, node)
    return world


def _join(node: Node) -> None:
    """Come in through a few of those that live, as a volunteer with an old invite would."""
    if not node.up:
        live = [one.peer for one in node.world.alive() if one is not node]
        node.boot(entries=tuple(node.world.rng.sample(live, min(3, len(live)))))


def _restart(node: Node, life: int) -> None:
    if not node.up and node.life == life:
        _join(node)


def crash(world: World, node: Node, back_after_s: float) -> None:
    """Kill a peer; it starts again from its disk after a while."""
    if node.up:
        node.crash()
        world.after(back_after_s, _restart, node, node.life)


def _split(world: World, seconds: float) -> None:
    parts = world.rng.choice((2, 2, 2, 3))
    weight = world.rng.random()
    sides = {
        peer: (0 if world.rng.random() < weight else world.rng.randrange(1, parts))
        for peer in world.nodes
    }
    world.network.partition(sides)
    world.after(seconds, world.network.heal)


def _leave(world: World, node: Node) -> None:
    if node.up and not node.paused:
        node.deliver(Leave("enough for today"))
        # It comes again later, as a newcomer with an old record.
        world.after(20.0, _come_again, node)


def _come_again(node: Node) -> None:
    if not node.up:
        _join(node)


class _Faults:
    """Faults as calls that the world can schedule."""

    def __init__(self, world: World, until: float) -> None:
        self.world = world
        self.until = until

    def strike(self, kind: str) -> None:
        world, rng = self.world, self.world.rng
        alive = world.alive()
        left_s = max(0.5, self.until - world.now)
        if not alive:
            return
        node = rng.choice(alive)
        match kind:
            case "crash":
                crash(world, node, min(left_s, 0.2 + 15 * rng.random()))
            case "crowd":
                for one in rng.sample(alive, rng.randrange(1, len(alive) + 1)):
                    crash(world, one, min(left_s, 1 + 15 * rng.random()))
            case "split":
                if not world.network.sides:
                    _split(world, min(left_s, 1 + 30 * rng.random()))
            case "pause":
                node.pause(min(left_s, 0.5 + 8 * rng.random()))
            case "reset":
                links = list(world.network.links.values())
                for link in rng.sample(links, min(len(links), 3)):
                    world.network.reset(link)
            case "leave":
                _leave(world, node)
            case "newcomer":
                if len(world.nodes) < 40:
                    _join(world.add())
            case _:
                links = list(world.network.links.values())
                for link in rng.sample(links, len(links) // 3):
                    world.network.reset(link)


def everything_at_once(world: World, until: float) -> None:
    """The scenario of the same name in SCENARIOS."""
    faults = _Faults(world, until)
    rng = world.rng
    kinds = ("crash", "crowd", "split", "pause", "reset", "leave", "newcomer", "storm")
    at = 8.0
    while at < until:
        kind = rng.choices(kinds, (8, 1, 2, 3, 4, 2, 1, 1))[0]
        world.at(at, faults.strike, kind)
        at += rng.expovariate(1 / 4.0)


def _only(*kinds: str) -> Callable[[World, float], None]:
    def schedule(world: World, until: float) -> None:
        faults = _Faults(world, until)
        at = 8.0
        while at < until:
            world.at(at, faults.strike, world.rng.choice(kinds))
            at += world.rng.expovariate(1 / 4.0)

    return schedule


def _calm(world: World, until: float) -> None:
    """Nothing goes wrong."""


SCENARIOS: dict[str, Callable[[World, float], None]] = {
    "everything": everything_at_once,
    "calm": _calm,
    "crashes": _only("crash"),
    "crowds": _only("crowd"),
    "partitions": _only("split"),
    "stalls": _only("pause", "reset"),
    "comings": _only("leave", "newcomer", "crash"),
}


def simulate(
    seed: int,
    peers: int = 32,
    scenario: str = "everything",
    duration_s: float = 150.0,
    prepare: Callable[[World], None] | None = None,
) -> Report:
    """Run one seed to its end and check everything that must hold."""
    world = make_world(seed, peers)
    if prepare is not None:
        prepare(world)
    faults_end = duration_s - QUIET_S
    SCENARIOS[scenario](world, faults_end)
    world.run(faults_end)
    world.network.heal()
    for node in world.nodes.values():
        if not node.up and node.life:
            world.after(0.1 + world.rng.random(), _come_again, node)
    world.run(duration_s - COMMIT_WITHIN_S)
    rounds = world.checker.rounds_committed
    world.run(duration_s)
    if world.checker.rounds_committed == rounds:
        world.checker.violation(f"I3: no round was committed in the last {COMMIT_WITHIN_S:.0f} s")
    world.checker.settled()
    return Report(
        seed=seed,
        peers=peers,
        simulated_s=world.now,
        events=world.events,
        violations=world.checker.violations,
        trace_hash=world.trace_hash(),
        rounds=world.checker.rounds_committed,
        longest_gap_s=world.checker.longest_gap_s,
    )
