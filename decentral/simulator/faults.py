"""Everything that goes wrong with machines and networks, each kind a function drawn from the seed.

A fault lasts for a while and ends by itself; `end_all` ends whatever is left, for the healing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from decentral.peer.protocol import Ask, Leave
from decentral.simulator.network import BETWEEN
from decentral.simulator.node import Node
from decentral.simulator.world import World

Fault = Callable[["Faults"], None]


def join(node: Node) -> None:
    """Come in through a few of those that can be dialled, as a volunteer with an old invite."""
    if node.up:
        return
    others = [one for one in node.world.alive() if one is not node]
    open_ones = [one.peer for one in others if not one.machine.natted]
    doors = open_ones or [one.peer for one in others]
    node.boot(entries=tuple(node.world.rng.sample(doors, min(3, len(doors)))))


def _restart(node: Node, life: int) -> None:
    if not node.up and node.life == life:
        join(node)


class Faults:
    """Strikes at what lives, for at most as long as faults may last."""

    def __init__(self, world: World, until: float, most_peers: int) -> None:
        self.world = world
        self.rng = world.rng
        self.until = until
        self.most_peers = most_peers
        self.hit: list[Node] = []
        """By the last strike, as far as it chose among the peers."""
        self.longest_s = 0.0
        """How long the last strike lasts, at most."""

    def strike(self, kind: str) -> None:
        if not self.world.alive():
            return
        self.hit, self.longest_s = [], 0.0
        recorder = self.world.recorder
        with nullcontext() if recorder is None else recorder.strike(self, kind):
            KINDS[kind](self)

    def lasts_s(self, least_s: float, most_s: float) -> float:
        """Mostly short, sometimes long, never into the healing."""
        drawn = least_s + (most_s - least_s) * self.rng.random() ** 2
        lasts_s = min(drawn, max(0.1, self.until - self.world.now))
        self.longest_s = max(self.longest_s, lasts_s)
        return lasts_s

    def one(self) -> Node:
        node = self.rng.choice(self.world.alive())
        self.hit.append(node)
        return node

    def down(self, node: Node, *, power: bool = False) -> None:
        """Kill a peer; it starts again from its disk after a while."""
        if not node.up:
            return
        if node not in self.hit:
            self.hit.append(node)
        node.power_cut() if power else node.crash()
        self.world.after(self.lasts_s(0.2, 20.0), _restart, node, node.life)

    def down_later(self, node: Node, life: int) -> None:
        """A `crash_after` has struck, or is called off: back after a while."""
        if not node.up and node.life == life + 1:
            self.world.after(self.lasts_s(0.2, 20.0), _restart, node, node.life)
        elif node.life == life:
            node.crash_after = None

    def newcomer(self) -> None:
        if len(self.world.nodes) < self.most_peers:
            node = self.world.add()
            self.hit.append(node)
            join(node)


def _crash(faults: Faults) -> None:
    faults.down(faults.one())


def _torn(faults: Faults) -> None:
    """Die in the middle of a list of actions."""
    node = faults.one()
    if node.crash_after is None:
        node.crash_after = faults.rng.randrange(60)
        node.power_fails = faults.rng.random() < 0.5
        faults.world.after(faults.lasts_s(5.0, 5.1), faults.down_later, node, node.life)


def _power(faults: Faults) -> None:
    faults.down(faults.one(), power=True)


def _blackout(faults: Faults) -> None:
    alive = faults.world.alive()
    for node in faults.rng.sample(alive, faults.rng.randrange(1, len(alive) + 1)):
        faults.down(node, power=True)


def _crowd(faults: Faults) -> None:
    alive = faults.world.alive()
    for node in faults.rng.sample(alive, faults.rng.randrange(1, len(alive) + 1)):
        faults.down(node)


def _split(faults: Faults) -> None:
    """Two or three parts that do not reach each other."""
    network, rng = faults.world.network, faults.rng
    if network.sides:
        return
    parts, weight = rng.choice((2, 2, 3)), rng.random()
    network.partition(
        {p: 0 if rng.random() < weight else rng.randrange(1, parts) for p in faults.world.nodes}
    )
    faults.world.after(faults.lasts_s(1.0, 40.0), network.unite)


def _triangle(faults: Faults) -> None:
    """Two parts that do not reach each other, and some peers that both reach."""
    network, rng = faults.world.network, faults.rng
    if network.sides:
        return
    sides = {peer: rng.choice((0, 0, 1, 1, BETWEEN)) for peer in faults.world.nodes}
    network.partition(sides)
    faults.world.after(faults.lasts_s(1.0, 30.0), network.unite)


def _one_way(faults: Faults) -> None:
    """What one peer sends does not reach some others, or theirs does not reach it."""
    network, rng, node = faults.world.network, faults.rng, faults.one()
    others = [peer for peer in faults.world.nodes if peer != node.peer]
    away, lasts_s = rng.random() < 0.5, faults.lasts_s(1.0, 20.0)
    for other in rng.sample(others, rng.randrange(1, len(others) + 1) if others else 0):
        pair = (node.peer, other) if away else (other, node.peer)
        network.cut(*pair)
        faults.world.after(lasts_s, network.mend, *pair)


def _pause(faults: Faults) -> None:
    faults.one().pause(faults.lasts_s(0.3, 12.0))


def _suspend(faults: Faults) -> None:
    faults.one().suspend(faults.lasts_s(5.0, 120.0))


def _clock(faults: Faults) -> None:
    faults.one().step_clock(10 ** faults.rng.uniform(-2, 1.5))


def _slow(faults: Faults) -> None:
    """Something else uses the machine: ten times slower, trainer or disk or both."""
    machine, rng = faults.one().machine, faults.rng
    both = rng.random() < 0.3
    disk = both or rng.random() < 0.5
    machine.disk_slowness = 10.0 if disk else 1.0
    machine.slowness = 10.0 if both or not disk else 1.0

    def over() -> None:
        machine.slowness = machine.disk_slowness = 1.0

    faults.world.after(faults.lasts_s(5.0, 60.0), over)


def _hang(faults: Faults) -> None:
    trainer = faults.one().trainer
    trainer.hang()
    faults.world.after(faults.lasts_s(5.0, 120.0), trainer.unhang)


def _reset(faults: Faults) -> None:
    links = faults.world.network.links()
    for link in faults.rng.sample(links, min(len(links), 3)):
        faults.world.network.reset(link)


def _storm(faults: Faults) -> None:
    """A third of all links break at once."""
    links = faults.world.network.links()
    for link in faults.rng.sample(links, len(links) // 3):
        faults.world.network.reset(link)


def _half_open(faults: Faults) -> None:
    links = faults.world.network.links()
    for link in faults.rng.sample(links, min(len(links), faults.rng.choice((1, 3, 10)))):
        faults.world.network.break_half(link)


def _leave(faults: Faults) -> None:
    """It comes again later, as a newcomer with an old record."""
    node = faults.one()
    if not node.frozen:
        node.deliver(Leave("enough for today"))
        faults.world.after(20.0, join, node)


def _newcomer(faults: Faults) -> None:
    faults.newcomer()


def _crush(faults: Faults) -> None:
    """Dozens within a second, as far as there is room."""
    room = max(0, faults.most_peers - len(faults.world.nodes))
    for _ in range(min(room, 48)):
        faults.world.after(faults.rng.random(), faults.newcomer)


def _halt(faults: Faults) -> None:
    """A person pauses the run; another one lets it go on."""
    node = faults.one()
    node.deliver(Ask("pause", reason="dinner"))
    faults.world.after(faults.lasts_s(3.0, 40.0), _resume, faults)


def _resume(faults: Faults) -> None:
    if faults.world.alive():
        faults.one().deliver(Ask("resume"))


def _undo(faults: Faults) -> None:
    """A person takes the run back to what disks still hold, or to what they do not."""
    node = faults.one()
    state = node.core.replica.state if node.core is not None else None
    if state is not None:
        back = faults.rng.randrange(1, 5)
        node.deliver(Ask("rollback", round=max(0, state.scopes[0].round - back)))


KINDS: dict[str, Fault] = {
    "crash": _crash,
    "torn": _torn,
    "power": _power,
    "blackout": _blackout,
    "crowd": _crowd,
    "split": _split,
    "triangle": _triangle,
    "one-way": _one_way,
    "pause": _pause,
    "suspend": _suspend,
    "clock": _clock,
    "slow": _slow,
    "hang": _hang,
    "reset": _reset,
    "storm": _storm,
    "half-open": _half_open,
    "leave": _leave,
    "newcomer": _newcomer,
    "crush": _crush,
    "halt": _halt,
    "undo": _undo,
}

WEIGHTS: dict[str, float] = {
    "crash": 6,
    "torn": 4,
    "power": 3,
    "blackout": 0.5,
    "crowd": 0.5,
    "split": 2,
    "triangle": 1,
    "one-way": 2,
    "pause": 4,
    "suspend": 1,
    "clock": 2,
    "slow": 2,
    "hang": 0.5,
    "reset": 3,
    "storm": 0.7,
    "half-open": 2,
    "leave": 2,
    "newcomer": 1,
    "crush": 0.5,
    "halt": 0.5,
    "undo": 0.5,
}


def end_all(world: World) -> None:
    """The faults are over: everything works, and everybody is there or on the way."""
    if world.recorder is not None:
        world.recorder.heals()
    world.network.heal()
    for node in world.nodes.values():
        node.machine.slowness = node.machine.disk_slowness = 1.0
        node.crash_after = None
        node.trainer.unhang()
        node.wake()
        if not node.up and node.life:
            world.after(world.rng.random(), join, node)
    # Whoever comes home last still finds a run that somebody has paused, and lets it go on.
    for seconds in (5.0, 15.0, 25.0):
        world.after(seconds, _let_go_on, world)


def _let_go_on(world: World) -> None:
    for node in world.alive():
        state = node.core.replica.state if node.core is not None else None
        if state is not None and state.paused:
            node.deliver(Ask("resume"))
            return
