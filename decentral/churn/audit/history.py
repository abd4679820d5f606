"""The committed history of each lineage, as all peers tell it.

    lineage a   0 ─ 1 ─ 2 ─ 3 ─ 4 ─ 5           what rolled-back undoes stays known, as undone
                        │       └╳╳╳┘─ 4' ─ 5'
    lineage b           └─ 3 ─ 4 ─ 5            shares 0 … 2 with the lineage that it left

A commit is told once by each peer that applies it; the first telling makes the `Commit`, all later
ones must say the same. Nothing is judged here except I1 and what cannot be put into order; the
checkers that listen get every new commit, every undoing and every fork.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.logs import Event
from decentral.churn.audit.timeline import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

STATES_KEPT = 1024
"""Witnesses of committed states; a rollback goes back 64 rounds at most."""
COMMITS_KEPT = 512
"""Commits of which all contributions are kept, for peers that tell them late."""


@dataclass(slots=True, eq=False)
class Commit:
    """One committed round, as first told."""

    lineage: str
    round: int
    state_hash: str
    at: float
    by: str
    """The peer that told it first."""
    epoch: int
    attempt: int | None = None
    members: tuple[str, ...] = ()
    """Full ids."""
    contributions: list[dict[str, Any]] | None = None
    """None: not told by a witness, or too long ago to keep."""
    contributors: int = 0
    useful: int = 0
    """Samples, or tokens where samples have no ids."""
    ranges: NDArray[np.int64] | None = None
    """Rows [start, stop) of the samples that it counts."""
    undone_at: float | None = None
    acknowledged_by: str = ""
    """The first peer that acknowledged it."""


@dataclass(slots=True, eq=False)
class Lineage:
    id: str
    parent: str
    """Empty: the run's first, or nobody knows."""
    first_at: float
    live: dict[int, Commit] = field(default_factory=dict)
    """By round, what is not undone; of the parent too, up to where it was left."""
    branched: bool = False
    """Its first own commit has come, so that the branch point is known."""
    head: int = 0
    last_at: float | None = None
    durable: int = 0
    epoch: int = 0
    members: tuple[str, ...] = ()
    """Full ids, of the newest view. Empty: told by nobody who knows them."""
    rollbacks: list[Rollback] = field(default_factory=list)
    adopted: dict[int, str] = field(default_factory=dict)
    """By round, the hash of a state that came by transfer, where no commit told it."""

    def hash_of(self, round: int) -> str | None:
        commit = self.live.get(round)
        return commit.state_hash if commit is not None else self.adopted.get(round)


@dataclass(slots=True, eq=False)
class Rollback:
    lineage: str
    round: int
    state_hash: str
    at: float
    by: str
    told_by: set[str] = field(default_factory=set)
    undone: list[Commit] = field(default_factory=list)


class Listener:
    """What checkers may want to hear of; all in the order of events."""

    def committed(self, lineage: Lineage, commit: Commit) -> None:
        """A round that nobody had told before."""

    def counted(self, lineage: Lineage, commit: Commit, event: Event) -> None:
        """What it counts is known: `event` is the `commit` that says so."""

    def replaced(self, lineage: Lineage, old: Commit, new: Commit) -> None:
        """A round was committed again, with other contributions, though nobody rolled back."""

    def rolled_back(self, lineage: Lineage, rollback: Rollback) -> None:
        """The commits in `rollback.undone` are undone."""

    def branched(self, lineage: Lineage, parent: Lineage, commit: Commit) -> None:
        """A lineage that left its parent has its first own commit; `live` holds what it shares."""


class History:
    def __init__(self, world: World, findings: Findings) -> None:
        self.world, self.findings = world, findings
        self.lineages: dict[str, Lineage] = {}
        self.commits: list[Commit] = []
        """All, the undone ones too, in order."""
        self.states: dict[str, tuple[list[float], list[float]]] = {}
        """By state hash, the witnesses of θ and momentum."""
        self.compared = 0
        """Hashes held against what another peer told."""
        self.listeners: list[Listener] = []
        self._recent: deque[Commit] = deque()
        self._told: dict[tuple[str, int, str], Commit] = {}
        self._acknowledged: dict[str, tuple[str, int, int, float]] = {}
        """Per peer: lineage, life and number of the last acknowledged round, and when."""
        self.held: dict[str, tuple[int, str, int, str]] = {}
        """Per peer: life, lineage, round and hash of the state that it has told last."""

    def see(self, event: Event) -> None:
        match event.what:
            case "round" | "commit":
                self._commit(event)
            case "adopted":
                self._adopted(event)
            case "rolled-back":
                self._rolled_back(event)
            case "view" | "members":
                self._view(event)

    # ------------------------------------------------------------------ commits

    def _commit(self, event: Event) -> None:
        data = event.data
        lineage = self._lineage(event)
        number, state_hash = int(data["round"]), str(data["state_hash"])
        commit = self._told.get((lineage.id, number, state_hash))
        if commit is not None:
            self.compared += 1
            if commit.undone_at is not None and self._went_back(event.source, commit):
                self._new(lineage, event, number, state_hash)  # committed again, the same bits
            elif event.what == "commit":
                self._same(commit, event)
        else:
            self._new(lineage, event, number, state_hash)
        if event.what == "round":
            self._acknowledge(lineage, event, number, state_hash)
        self.held[event.source] = (event.life, lineage.id, number, state_hash)
        if event.what == "commit":
            self._witness(event, state_hash)

    def _new(self, lineage: Lineage, event: Event, number: int, state_hash: str) -> None:
        data = event.data
        commit = Commit(
            lineage.id, number, state_hash, event.at, event.source, int(data["epoch"]),
            contributors=int(data.get("participants", 0)),
        )  # fmt: skip
        self._told[lineage.id, number, state_hash] = commit
        if event.what == "commit":
            _fill(commit, data)
        if lineage.parent and not lineage.branched:
            self._branch(lineage, commit)
        lineage.branched = True
        old = lineage.live.get(number)
        if old is not None:
            self._two_hashes(lineage, old, commit)
            return
        adopted = lineage.adopted.get(number)
        if adopted is not None and adopted != state_hash:
            self.findings.add(
                "I1", event.at,
                f"{event.source} committed round {number} of lineage {lineage.id} as "
                f"{state_hash[:12]}, but others adopted it as {adopted[:12]}",
                peer=event.source,
            )  # fmt: skip
        lineage.live[number] = commit
        lineage.head = max(lineage.head, number)
        lineage.last_at = max(event.at, lineage.last_at or 0.0)
        if commit.members and commit.epoch >= lineage.epoch:
            if commit.members == lineage.members:
                commit.members = lineage.members  # one tuple for all rounds of a view
            lineage.epoch, lineage.members = commit.epoch, commit.members
        self.commits.append(commit)
        for one in self.listeners:
            one.committed(lineage, commit)
        if commit.attempt is not None:
            self._counted(lineage, commit, event)

    def _counted(self, lineage: Lineage, commit: Commit, event: Event) -> None:
        self._recent.append(commit)
        if len(self._recent) > COMMITS_KEPT:
            self._recent.popleft().contributions = None
        for one in self.listeners:
            one.counted(lineage, commit, event)

    def _two_hashes(self, lineage: Lineage, old: Commit, new: Commit) -> None:
        """Other bits for a committed round: of the same commit (I1), or of another one (I2)."""
        same = (
            old.attempt is None
            or new.attempt is None
            or (old.attempt, old.contributions) == (new.attempt, new.contributions)
        )
        where = f"round {new.round} of lineage {lineage.id}"
        if not same:
            for one in self.listeners:
                one.replaced(lineage, old, new)
        self.findings.add(
            "I1", new.at,
            f"{where} has two hashes: {old.state_hash[:12]} told by {old.by}, "
            f"{new.state_hash[:12]} by {new.by}",
            peer=new.by,
        )  # fmt: skip

    def _same(self, commit: Commit, event: Event) -> None:
        """A second telling of a commit says the same as the first."""
        data = event.data
        if commit.attempt is None:
            if commit.undone_at is None:
                _fill(commit, data)
                self._counted(self.lineages[commit.lineage], commit, event)
            return
        for key in ("attempt", "epoch", "contributions"):
            known = getattr(commit, key)
            if known is not None and data[key] != known:
                self.findings.add(
                    "I1", event.at,
                    f"{event.source} and {commit.by} tell different {key} of round "
                    f"{commit.round} of lineage {commit.lineage}",
                    peer=event.source,
                )  # fmt: skip

    def _witness(self, event: Event, state_hash: str) -> None:
        """Equal hashes mean equal bits: the witness elements show it."""
        data = event.data
        told = (data["theta"], data["momentum"])
        known = self.states.get(state_hash)
        if known is None:
            self.states[state_hash] = told
            if len(self.states) > STATES_KEPT:
                del self.states[next(iter(self.states))]
        elif told != known:
            what = "parameters" if told[0] != known[0] else "outer momentum"
            self.findings.add(
                "I1", event.at,
                f"{event.source} holds other {what} in round {data['round']} of lineage "
                f"{data['lineage']} than others, under the same hash {state_hash[:12]}",
                peer=event.source,
            )  # fmt: skip

    def _acknowledge(self, lineage: Lineage, event: Event, number: int, state_hash: str) -> None:
        lineage.durable = max(lineage.durable, int(event.data.get("durable_round", 0)))
        commit = lineage.live.get(number)
        if commit is not None and commit.state_hash == state_hash and not commit.acknowledged_by:
            commit.acknowledged_by = event.source
        before = self._acknowledged.get(event.source)
        if (
            before is not None
            and before[:2] == (lineage.id, event.life)
            and before[2] >= number
            # Who is away during a rollback does not tell it, but comes back to its outcome.
            and not any(one.at >= before[3] and one.round < number for one in lineage.rollbacks)
        ):
            self.findings.add(
                "I2", event.at,
                f"{event.source} acknowledged round {number} of lineage {lineage.id} after round "
                f"{before[2]}, and nobody had rolled back",
                peer=event.source,
            )  # fmt: skip
        self._acknowledged[event.source] = (lineage.id, event.life, number, event.at)

    # ------------------------------------------------------------------ states from elsewhere

    def _adopted(self, event: Event) -> None:
        data = event.data
        number, state_hash = int(data["round"]), str(data["state_hash"])
        self._witness(event, state_hash)
        if not data["lineage"]:
            return  # from its own disk, before it has met anybody
        lineage = self._lineage(event)
        self.held[event.source] = (event.life, lineage.id, number, state_hash)
        known = {lineage.hash_of(number)}
        above = lineage
        while not lineage.branched and above.parent in self.lineages:
            above = self.lineages[above.parent]
            known.add(above.hash_of(number))
        known.discard(None)
        if not known:
            lineage.adopted[number] = state_hash
            return
        self.compared += 1
        if state_hash not in known and (lineage.id, number, state_hash) not in self._told:
            self.findings.add(
                "I1", event.at,
                f"{event.source} adopted {state_hash[:12]} as round {number} of lineage "
                f"{lineage.id}, which others hold as {next(iter(known))[:12]}",  # type: ignore[index]
                peer=event.source,
            )  # fmt: skip

    # ------------------------------------------------------------------ going back

    def _rolled_back(self, event: Event) -> None:
        """Everybody who is there tells it; who was away does not. See which rollback is meant."""
        data = event.data
        lineage = self._lineage(event)
        number, state_hash = int(data["round"]), str(data["state_hash"])
        name = event.source
        held = self.held.get(name)
        undoes = False  # this peer's own last state
        if held is not None and held[1] == lineage.id and held[2] > number:
            commit = lineage.live.get(held[2])
            undoes = commit is not None and commit.state_hash == held[3]
        same = [
            one
            for one in lineage.rollbacks
            if (one.round, one.state_hash) == (number, state_hash) and name not in one.told_by
        ]
        if same and not undoes:
            same[0].told_by.add(name)
        else:
            self._undo(lineage, Rollback(lineage.id, number, state_hash, event.at, name, {name}))
        self.held[name] = (event.life, lineage.id, number, state_hash)
        self._acknowledged.pop(name, None)

    def _undo(self, lineage: Lineage, rollback: Rollback) -> None:
        later = sorted(number for number in lineage.live if number > rollback.round)
        rollback.undone = [lineage.live.pop(number) for number in later]
        for commit in rollback.undone:
            if commit.lineage == lineage.id:
                commit.undone_at = rollback.at
        for number in [number for number in lineage.adopted if number > rollback.round]:
            del lineage.adopted[number]
        lineage.rollbacks.append(rollback)
        lineage.head = rollback.round
        known = lineage.hash_of(rollback.round)
        if known is not None and known != rollback.state_hash:
            self.findings.add(
                "I2", rollback.at,
                f"{rollback.by} rolled back to {rollback.state_hash[:12]} as round "
                f"{rollback.round} of lineage {lineage.id}, which was committed as {known[:12]}",
                peer=rollback.by,
            )  # fmt: skip
        for one in self.listeners:
            one.rolled_back(lineage, rollback)
        lineage.durable = min(lineage.durable, rollback.round)

    def _went_back(self, name: str, commit: Commit) -> bool:
        """Whether this peer has told the rollback that undid the commit."""
        return any(
            commit in one.undone and name in one.told_by
            for one in self.lineages[commit.lineage].rollbacks
        )

    # ------------------------------------------------------------------ lineages and views

    def _lineage(self, event: Event) -> Lineage:
        id = str(event.data["lineage"])
        found = self.lineages.get(id)
        if found is None:
            held = self.held.get(event.source)
            parent = held[1] if held is not None and held[1] in self.lineages else ""
            if not parent and self.lineages:
                parent = max(self.lineages.values(), key=lambda one: one.last_at or 0.0).id
            found = self.lineages[id] = Lineage(id, parent, event.at)
        return found

    def _branch(self, lineage: Lineage, commit: Commit) -> None:
        parent = self.lineages[lineage.parent]
        lineage.live = {n: one for n, one in parent.live.items() if n < commit.round}
        for one in self.listeners:
            one.branched(lineage, parent, commit)

    def _view(self, event: Event) -> None:
        data = event.data
        lineage = self._lineage(event)
        held = self.held.get(event.source)
        if str(data.get("reason", "")).startswith("fork") and not lineage.branched and held:
            lineage.parent = held[1] if held[1] != lineage.id else lineage.parent
        if data["epoch"] > lineage.epoch:
            lineage.epoch, lineage.members = int(data["epoch"]), ()
        if event.what == "members" and data["epoch"] == lineage.epoch:
            lineage.members = tuple(data["peers"])


def _fill(commit: Commit, data: dict[str, Any]) -> None:
    """From a `commit` event, which says more than a `round`."""
    commit.attempt = int(data["attempt"])
    commit.members = tuple(data["members"])
    commit.contributions = data["contributions"]
    rows = [pair for one in data["contributions"] for pair in one["leases"]]
    commit.contributors = len(data["contributions"])
    commit.ranges = np.array(rows, dtype=np.int64).reshape(-1, 2)
    samples = int((commit.ranges[:, 1] - commit.ranges[:, 0]).sum())
    commit.useful = samples or sum(int(one["tokens"]) for one in data["contributions"])
