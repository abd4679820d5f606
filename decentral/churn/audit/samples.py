"""I7: each sample counts in exactly one committed contribution of a lineage, and none is skipped.

counted  ████████████████  ██████████      ranges that commits consumed, merged
holes                    ░░                granted to a member, or returned: granted soon
                                           by nobody held, and still there much later: lost
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.history import Commit, Lineage, Listener, Rollback
from decentral.churn.audit.logs import Event
from decentral.churn.audit.settings import Settings
from decentral.churn.audit.timeline import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pairs = list[tuple[int, int]]


class RangeSet:
    """Disjoint half-open ranges, sorted and merged."""

    def __init__(self, starts: list[int] | None = None, stops: list[int] | None = None) -> None:
        self.starts, self.stops = starts or [], stops or []

    def add(self, start: int, stop: int) -> bool:
        """Whether none of it was in before."""
        if stop <= start:
            return True
        first = bisect_left(self.stops, start)  # the first that ends at `start` or later
        last = bisect_right(self.starts, stop)  # past the last that begins at `stop` or before
        apart = not any(self.starts[i] < stop and start < self.stops[i] for i in range(first, last))
        if first < last:
            start = min(start, self.starts[first])
            stop = max(stop, self.stops[last - 1])
        self.starts[first:last], self.stops[first:last] = [start], [stop]
        return apart

    def holes(self) -> Pairs:
        """What is missing below the highest; nothing is missing before 0."""
        before = [0, *self.stops[:-1]] if self.starts else []
        return [(a, b) for a, b in zip(before, self.starts, strict=True) if a < b]


def without(ranges: Pairs, taken: Iterable[tuple[int, int]]) -> Pairs:
    """`ranges` minus `taken`."""
    left = ranges
    for start, stop in taken:
        left = [
            piece
            for a, b in left
            for piece in ((a, min(b, start)), (max(a, stop), b))
            if piece[0] < piece[1]
        ] if any(a < stop and start < b for a, b in left) else left  # fmt: skip
    return left


def common(ours: Pairs, theirs: Pairs) -> Pairs:
    pieces = [(max(a, c), min(b, d)) for a, b in ours for c, d in theirs]
    return [(a, b) for a, b in pieces if a < b]


@dataclass(slots=True, eq=False)
class _Ledger:
    counted: RangeSet = field(default_factory=RangeSet)
    reviewed_at: int = 0
    """The round of the last review of holes."""
    old_holes: deque[Pairs] = field(default_factory=lambda: deque(maxlen=2))
    granted: dict[str, Pairs] = field(default_factory=dict)
    """By name, as told with the newest commit that the peer told."""


class Samples(Listener):
    def __init__(self, world: World, findings: Findings) -> None:
        self._world, self._findings = world, findings
        self.settings = Settings()
        self.ranges_checked = 0
        self.lost_checked = 0
        self._ledgers: dict[str, _Ledger] = {}

    def counted(self, lineage: Lineage, commit: Commit, event: Event) -> None:
        ledger = self._ledgers.setdefault(lineage.id, _Ledger())
        for one in commit.contributions or ():
            for start, stop in one["leases"]:
                self.ranges_checked += 1
                if not ledger.counted.add(start, stop):
                    self._twice(lineage, commit, self._world.name(one["peer"]), start, stop)
        if commit.round >= ledger.reviewed_at + self.settings.skip_rounds:
            self._review(lineage, ledger, commit)

    def granted(self, event: Event) -> None:
        """Any telling of a commit says what its peer may use from there on."""
        ledger = self._ledgers.get(event.data["lineage"])
        if ledger is not None:
            ranges = [(start, stop) for start, stop in event.data.get("granted", ())]
            ledger.granted[event.source] = ranges

    def rolled_back(self, lineage: Lineage, rollback: Rollback) -> None:
        self._rebuild(lineage)

    def branched(self, lineage: Lineage, parent: Lineage, commit: Commit) -> None:
        self._rebuild(lineage)

    def _rebuild(self, lineage: Lineage) -> None:
        ledger = self._ledgers[lineage.id] = _Ledger(reviewed_at=lineage.head)
        parts = [one.ranges for one in lineage.live.values() if one.ranges is not None]
        if parts:
            ledger.counted = _merged(np.concatenate(parts))

    def _twice(self, lineage: Lineage, commit: Commit, name: str, start: int, stop: int) -> None:
        before = [
            one.round
            for one in lineage.live.values()
            if one is not commit
            and one.ranges is not None
            and bool(((one.ranges[:, 0] < stop) & (one.ranges[:, 1] > start)).any())
        ]
        where = f"round {before[-1]}" if before else "another contribution to it"
        self._findings.add(
            "I7", commit.at,
            f"round {commit.round} of lineage {lineage.id} counts samples [{start}, {stop}) of "
            f"{name}, of which {where} had counted some",
            peer=name,
        )  # fmt: skip

    def _review(self, lineage: Lineage, ledger: _Ledger, commit: Commit) -> None:
        ledger.reviewed_at = commit.round
        holes = ledger.counted.holes()
        if len(lineage.live) <= commit.round - min(lineage.live):
            return  # some round was told by nobody who lived: what it counted is not known
        if len(ledger.old_holes) == ledger.old_holes.maxlen:
            self.lost_checked += 1
            members = {self._world.name(id) for id in commit.members}
            held = [pair for name in members for pair in ledger.granted.get(name, ())]
            unknown = members - ledger.granted.keys()
            lost = without(common(holes, ledger.old_holes[0]), held)
            if lost and not unknown:
                words = ", ".join(f"[{start}, {stop})" for start, stop in lost[:5])
                self._findings.add(
                    "I7", commit.at,
                    f"samples {words} are skipped: as of round {commit.round} of lineage "
                    f"{lineage.id} nobody has counted or held them for "
                    f"{2 * self.settings.skip_rounds} rounds",
                    key=(lineage.id, tuple(lost)),
                )  # fmt: skip
        ledger.old_holes.append(holes)


def _merged(rows: NDArray[np.int64]) -> RangeSet:
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ends = np.maximum.accumulate(rows[:, 1])
    first = np.r_[True, rows[1:, 0] > ends[:-1]]
    last = np.r_[first[1:], True]
    return RangeSet(rows[first, 0].tolist(), ends[last].tolist())
