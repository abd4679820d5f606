"""Who was up, frozen, cut off or out of the run when, as driver and peers told it.

A peer is *well* while its process listens, is not frozen and has not said that it is done. That is
the driver's doing: a peer that is well and does nothing has no excuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from decentral.churn.audit.logs import DRIVER, Event

FREEZES = frozenset({"stop"})
"""Kinds of faults that stop a process without ending it, until they are healed. A fault of
another kind does if its detail has "freezes": true."""
SPOILS = frozenset({"corrupt", "disk-full", "oom"})
"""Kinds that leave a process running, but nobody could ask anything of it until they are healed
(or "spoils": true). Lost packets, thin or long lines and slow steps are no excuse."""
PAUSES = frozenset({"pause"})
"""Kinds that hold the whole run up on purpose, until they are healed (or "pauses": true)."""
ASKS_BACK = frozenset({"rollback"})
"""Kinds that ask the run to go back (or "rolls_back": true)."""
WIPES = frozenset({"wipe"})
"""Kinds that take a peer's disk away (or "wipes": true)."""
HARMLESS = frozenset({"join", "join-storm", "spawn", "rollback", "pause"})
"""Kinds that take nobody away. Their recovery is told by kind only."""


@dataclass(slots=True)
class Fault:
    id: int
    kind: str
    peers: tuple[str, ...]
    detail: dict[str, Any]
    at: float
    healed_at: float | None = None

    def is_a(self, kinds: frozenset[str], flag: str) -> bool:
        return self.kind in kinds or bool(self.detail.get(flag))

    @property
    def says(self) -> str:
        return f"fault {self.id} ({self.kind}{' of ' if self.peers else ''}{', '.join(self.peers)})"


@dataclass(slots=True)
class PeerState:
    name: str
    id: str = ""
    pid: int | None = None
    listening: bool = False
    own_pid: int | None = None
    """As its own log says: the driver's line may come later."""
    over: bool = False
    """It has said `left` or `done`, or that it is no member of anything any more."""
    adrift: bool = False
    """It has been evicted, or its lineage gave way to another, and it is not back in yet."""
    frozen: set[int] = field(default_factory=set)
    spoilt: set[int] = field(default_factory=set)
    """Faults that hold it now, by number."""
    lineage: str = ""
    """That it told something of last, in any of its lives."""
    told_lineage: bool = False
    """In this life."""
    life: int = 0
    member: bool = False
    """It has joined in this life, and was not evicted since."""
    came_over: bool = False
    """It joined after the last round that it committed: as somebody who gave up its own."""
    well_since: float | None = None
    reach_since: float = 0.0
    """When it last came to reach somebody whom it had not reached."""
    lineage_since: float = 0.0
    """When it came to its lineage from another one."""
    round_at: float | None = None
    lanes: list[tuple[float, str]] = field(default_factory=list)

    @property
    def well(self) -> bool:
        held = self.frozen or self.spoilt or self.over
        return self.pid is not None and self.listening and not held

    def condition(self, cut: bool) -> str:
        if self.pid is None:
            return "down"
        if self.frozen:
            return "frozen"
        if self.over:
            return "left"
        if self.spoilt:
            return "struck"
        if not self.listening:
            return "starting"
        return "cut" if cut else "up"


class World:
    """The state of all peers as of the last event seen."""

    def __init__(self) -> None:
        self.peers: dict[str, PeerState] = {}
        self.names: dict[str, str] = {}
        """Name by full peer id."""
        self.faults: list[Fault] = []
        self.run: dict[str, Any] = {}
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.calm_at: float | None = None
        self.period_s: float | None = None
        self.calm_samples_per_s: float | None = None
        self.groups: tuple[frozenset[str], ...] = ()
        self.cuts: frozenset[tuple[str, str]] = frozenset()
        self.paused: set[int] = set()
        self.resumed_at = 0.0
        self.at_end: Counter[str] = Counter()
        """Peers by lineage when the driver called it a day."""
        self._by_id: dict[int, Fault] = {}

    def name(self, peer: str) -> str:
        """What people call a full id."""
        return self.names.get(peer) or peer.removeprefix("peer:")[:8]

    def peer(self, name: str) -> PeerState:
        return self.peers.setdefault(name, PeerState(name))

    def reaches(self, one: str, other: str) -> bool:
        """In both directions."""
        if one == other:
            return True
        if (one, other) in self.cuts or (other, one) in self.cuts:
            return False
        for group in self.groups:
            if one in group or other in group:
                return one in group and other in group
        return True

    # ------------------------------------------------------------------ what is told

    def see(self, event: Event) -> bool:
        """Whether anything changed that decides about a healthy quorum."""
        if self.began_at is None:
            self.began_at = event.at
        if event.source == DRIVER:
            return self._driver(event)
        return self._peer(event)

    def _driver(self, event: Event) -> bool:
        data, at = event.data, event.at
        match event.what:
            case "run":
                self.run = data
                self.period_s = data.get("period_s")
            case "calm":
                self.calm_at, self.period_s = at, data["period_s"]
                self.calm_samples_per_s = data["samples_per_s"]
            case "start":
                peer = self.peer(data["peer"])
                if peer.own_pid != data["pid"]:
                    peer.listening = peer.over = peer.told_lineage = False
                peer.pid = int(data["pid"])
                peer.frozen.clear()
                self._changed((peer,), at)
            case "exit":
                peer = self.peer(data["peer"])
                if data["pid"] == peer.pid:
                    peer.pid, peer.listening = None, False
                    peer.frozen.clear()
                    self._changed((peer,), at)
            case "fault":
                self._fault(data, at)
            case "healed":
                self._healed(int(data["id"]), at)
            case "reach":
                self._connect(tuple(frozenset(group) for group in data["groups"]), self.cuts, at)
            case "cut":
                cuts = frozenset((one, other) for one, other in data["pairs"])
                self._connect(self.groups, cuts, at)
            case "end":
                self.ended_at = at
                self.at_end = Counter(one.lineage for one in self.peers.values() if one.well)
            case _:
                return False
        return True

    def _fault(self, data: dict[str, Any], at: float) -> None:
        fault = Fault(
            int(data["id"]), data["kind"], tuple(data["peers"]), dict(data.get("detail") or {}), at
        )
        self.faults.append(fault)
        self._by_id[fault.id] = fault
        if fault.is_a(PAUSES, "pauses"):
            self.paused.add(fault.id)
        hit = [self.peer(name) for name in fault.peers]
        for peer in hit:
            if fault.is_a(FREEZES, "freezes"):
                peer.frozen.add(fault.id)
            if fault.is_a(SPOILS, "spoils"):
                peer.spoilt.add(fault.id)
        self._changed(hit, at)

    def _healed(self, id: int, at: float) -> None:
        fault = self._by_id.get(id)
        if fault is None:
            return
        fault.healed_at = at
        if id in self.paused:
            self.paused.discard(id)
            self.resumed_at = at
        hit = [self.peer(name) for name in fault.peers]
        for peer in hit:
            peer.frozen.discard(id)
            peer.spoilt.discard(id)
        self._changed(hit, at)

    def _connect(
        self, groups: tuple[frozenset[str], ...], cuts: frozenset[tuple[str, str]], at: float
    ) -> None:
        before = {name: self._reached(name) for name in self.peers}
        self.groups, self.cuts = groups, cuts
        for name, reached in before.items():
            if self._reached(name) - reached:
                self.peers[name].reach_since = at
        self._changed(self.peers.values(), at)

    def _reached(self, name: str) -> set[str]:
        return {other for other in self.peers if self.reaches(name, other)}

    def _peer(self, event: Event) -> bool:
        peer, data, at = self.peer(event.source), event.data, event.at
        peer.life = event.life
        lineage = data.get("lineage")
        moved = bool(lineage) and event.what != "contribution" and lineage != peer.lineage
        if lineage and event.what != "contribution":
            if moved:
                peer.lineage_since = at
            peer.lineage, peer.told_lineage = lineage, True
        match event.what:
            case "start":
                peer.own_pid = peer.pid = int(data["pid"])
                peer.listening = peer.over = peer.told_lineage = False
                peer.member = peer.adrift = False
                self._changed((peer,), at)
            case "joined":
                peer.member = peer.came_over = True
                peer.adrift = False
            case "fault":
                return self._reports(peer, data)
            case "listening":
                peer.id = data["peer"]
                self.names[peer.id] = peer.name
                peer.listening = True
                self._changed((peer,), at)
            case "left" | "done":
                peer.over = True
                self._changed((peer,), at)
            case "round":
                back, peer.adrift = peer.adrift, False
                peer.round_at, peer.came_over = at, False
                return moved or back
            case _:
                return moved
        return True

    def _reports(self, peer: PeerState, data: dict[str, Any]) -> bool:
        """A `fault` event. Of two lineages that met, both sides say which one gives way."""
        kind, says = data.get("kind"), str(data.get("says"))
        gives_way = kind == "merge" and f"{peer.lineage} has more committed work" not in says
        if kind == "evicted":
            peer.member = False
        if kind in ("evicted", "superseded") or gives_way:
            peer.adrift = True
            return True
        return False

    def _changed(self, peers: Iterable[PeerState], at: float) -> None:
        for peer in peers:
            if not peer.well:
                peer.well_since = None
            elif peer.well_since is None:
                peer.well_since = at
            condition = peer.condition(self._is_cut_off(peer.name))
            if not peer.lanes or peer.lanes[-1][1] != condition:
                peer.lanes.append((at, condition))

    def _is_cut_off(self, name: str) -> bool:
        """From half of those who are up, or more."""
        others = [one.name for one in self.peers.values() if one.pid is not None]
        return 2 * sum(self.reaches(name, other) for other in others) <= len(others)

    def is_cut(self, name: str) -> bool:
        """Whether some other peer cannot be reached from there."""
        return len(self._reached(name)) < len(self.peers)
