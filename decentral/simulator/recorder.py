"""What a person wants to see of a simulated run, as plain records; it only looks.

node, checker, faults ──▶ Recorder ──▶ lanes, commits, strikes, reports, violations ──▶ trace_page
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decentral.peer.protocol import Committed, Entry, Fault, RollbackEntry, RoundEntry, ViewEntry
from decentral.simulator.network import BETWEEN

if TYPE_CHECKING:
    from decentral.simulator.faults import Faults
    from decentral.simulator.network import Link
    from decentral.simulator.node import Node
    from decentral.simulator.world import World
    from decentral.types import PeerId

LINKS_NAMED = 8


@dataclass(frozen=True, slots=True)
class Standing:
    """How one peer stands from `at_s` on."""

    at_s: float
    state: str
    """"down", "frozen", "outside", "member" or "coordinator", each by its own opinion."""
    lineage: str
    says: str


@dataclass(frozen=True, slots=True)
class Commit:
    """An entry of a lineage's log, when the first peer learned that it is committed."""

    at_s: float
    lineage: str
    slot: int
    kind: str
    label: str
    says: str
    by: str
    tag: str
    """Whose rounds it is about, if it is about rounds."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Something that the scenario did to machines or the network."""

    at_s: float
    until_s: float
    kind: str
    says: str


@dataclass(frozen=True, slots=True)
class Reported:
    """A fault that a peer told its user about."""

    at_s: float
    name: str
    kind: str
    says: str


def _described(entry: Entry) -> tuple[str, str, str]:
    """Kind, a label for a mark, and a sentence."""
    match entry:
        case RoundEntry():
            tag = f" {entry.tag}" if entry.tag else ""
            members = len(entry.contributions)
            label = f"{entry.round} ×{members}"
            stop = f"; the run ends: {entry.stop}" if entry.stop else ""
            says = f"round {entry.round}{tag}, {members} contributors, attempt {entry.attempt}"
            return "round", label, says + stop
        case ViewEntry():
            members = len(entry.view.members)
            label = f"e{entry.view.epoch}: {entry.reason}"
            return "view", label, f"view {entry.view.epoch}, {members} members: {entry.reason}"
        case RollbackEntry():
            tag = f" {entry.tag}" if entry.tag else ""
            return (
                "rollback",
                f"back to {entry.round}",
                f"back to round {entry.round}{tag}: {entry.reason}",
            )
        case _:
            word = "pause" if entry.paused else "resume"
            return "pause", word, f"{word}: {entry.reason}"


class Recorder:
    """`attach` it to a world that has not run yet."""

    world: World

    def __init__(self) -> None:
        self.lanes: dict[str, list[Standing]] = {}
        self.parents: dict[str, str] = {}
        """Of each lineage that has committed something, the one it comes from, or ""."""
        self.commits: list[Commit] = []
        self.strikes: list[Strike] = []
        self.reports: list[Reported] = []
        self.violations: list[tuple[float, str]] = []
        self.heals_at_s: float | None = None

    def attach(self, world: World) -> None:
        self.world = world
        world.recorder = self
        for node in world.nodes.values():
            self.saw(node, "")

    # -------------------------------------------------------------- what peers do

    def saw(self, node: Node, how: str) -> None:
        """Note how a peer stands, if that has changed. `how` it died, if it just did."""
        if not node.life:
            return
        state, lineage = _standing(node)
        lane = self.lanes.setdefault(node.name, [])
        if not lane or lane[-1].state != state or lane[-1].lineage != lineage:
            lane.append(Standing(self.world.now, state, lineage, "left" if node.left else how))

    def reported(self, node: Node, fault: Fault) -> None:
        self.reports.append(Reported(self.world.now, node.name, fault.kind, fault.says))

    def committed(self, node: Node, action: Committed) -> None:
        lineage = action.view.lineage
        if lineage not in self.parents:
            state = node.core.replica.state if node.core is not None else None
            known = [one for one in (state.ancestry if state else ()) if one in self.parents]
            self.parents[lineage] = known[-1] if known else ""
        kind, label, says = _described(action.entry)
        at_s = self.world.now
        tag = action.entry.tag if isinstance(action.entry, RoundEntry | RollbackEntry) else ""
        self.commits.append(Commit(at_s, lineage, action.slot, kind, label, says, node.name, tag))

    def violated(self, says: str) -> None:
        self.violations.append((self.world.now, says))

    # -------------------------------------------------------------- what is done to them

    @contextmanager
    def strike(self, faults: Faults, kind: str) -> Iterator[None]:
        """What a fault did is what is different after it."""
        network = self.world.network
        sides, cuts, links = network.sides, set(network.cuts), network.links()
        clocks = {one.peer: one.machine.clock_offset_s for one in self.world.nodes.values()}
        yield
        parts = []
        if network.sides is not sides:
            parts.append(self._sides(network.sides))
        elif network.cuts != cuts:
            parts.append(self._cuts(network.cuts - cuts))
        elif not faults.hit and (broken := [one for one in links if not one.open]):
            parts.append(_links(broken))
        else:
            parts.append(" ".join(node.name for node in faults.hit))
        if kind == "clock":
            step_s = sum(one.machine.clock_offset_s - clocks[one.peer] for one in faults.hit)
            parts.append(f"{step_s:+.2f} s")
        if kind == "slow":
            slow = faults.hit[0].machine
            names = (("trainer", slow.slowness), ("disk", slow.disk_slowness))
            parts.append(" and ".join(name for name, factor in names if factor > 1))
        now = self.world.now
        says = " ".join(part for part in parts if part)
        self.strikes.append(Strike(now, now + faults.longest_s, kind, says))

    def _sides(self, sides: dict[PeerId, int]) -> str:
        """`n0 n2 | n1 n3`, and who reaches both."""
        named: dict[int, list[str]] = {}
        for peer, side in sides.items():
            named.setdefault(side, []).append(self.world.nodes[peer].name)
        between = named.pop(BETWEEN, [])
        text = " | ".join(" ".join(names) for _, names in sorted(named.items()))
        return f"{text}; between them: {' '.join(between)}" if between else text

    def _cuts(self, cuts: set[tuple[PeerId, PeerId]]) -> str:
        """Whose packets do not reach whom."""

        def names(peers: set[PeerId]) -> str:
            return " ".join(one.name for one in self.world.nodes.values() if one.peer in peers)

        return f"{names({a for a, _ in cuts})} ↛ {names({b for _, b in cuts})}"

    def heals(self) -> None:
        self.heals_at_s = self.world.now


def _links(links: list[Link]) -> str:
    named = [f"{link.ends[0].name}–{link.ends[1].name}" for link in links]
    more = f" and {len(named) - LINKS_NAMED} more" if len(named) > LINKS_NAMED else ""
    return " ".join(named[:LINKS_NAMED]) + more


def _standing(node: Node) -> tuple[str, str]:
    core = node.core
    if core is None:
        return "down", ""
    state = core.replica.state
    lineage = state.view.lineage if state is not None else ""
    if node.frozen:
        return "frozen", lineage
    if not core.replica.member:
        return "outside", ""
    first = core.duties.coordinator() == node.peer
    return ("coordinator" if first else "member"), lineage
