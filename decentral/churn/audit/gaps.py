"""I3: while a healthy quorum exists, rounds commit; and how long each fault holds them up.

healthy quorum of a lineage: one set of members, a majority of its last view, all of them well
(`timeline`), in no other lineage, each reaching each other, without a break since `since`

      commit        fault              commit
────────┼─────────────╳──────────────────┼───     gap: from the last commit, or from `since`
        └──────────── gap ───────────────┘        if that is later, to the next commit
                      └── recovery + period ┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.history import Commit, History, Lineage, Listener
from decentral.churn.audit.settings import Settings
from decentral.churn.audit.timeline import HARMLESS, Fault, World


@dataclass(slots=True)
class Gap:
    seconds: float = 0.0
    since: float | None = None
    lineage: str = ""


@dataclass(slots=True)
class Recovery:
    fault: Fault
    seconds: float
    """From the fault, or from when a quorum was there again, less an undisturbed period, to the
    next commit that owes nothing to work of those that it stopped."""
    with_quorum: bool
    """A healthy quorum survived the fault."""

    @property
    def takes_away(self) -> bool:
        return self.fault.kind not in HARMLESS


@dataclass(slots=True)
class _Pace:
    """One lineage's commits against its quorum."""

    healthy_since: float | None = None
    last_commit_at: float | None = None
    who: tuple[str, ...] = field(default=())


class Gaps(Listener):
    def __init__(self, world: World, history: History, findings: Findings) -> None:
        self._world, self._history, self._findings = world, history, findings
        self.settings = Settings()
        self.longest = Gap()
        self.recoveries: list[Recovery] = []
        self.healthy_s = 0.0
        """How long some healthy quorum existed: what the gap was measured over."""
        self._paces: dict[str, _Pace] = {}
        self._open: list[Fault] = []
        self._faults_seen = 0
        self._now: float | None = None

    # ------------------------------------------------------------------ time passes

    def passed(self, now: float) -> None:
        """Everything up to `now` has been seen and nothing else committed."""
        for id, pace in self._paces.items():
            self._measure(id, pace, now)
        healthy = any(pace.healthy_since is not None for pace in self._paces.values())
        if healthy and self._now is not None:
            self.healthy_s += max(0.0, now - self._now)
        self._now = now if self._now is None else max(now, self._now)

    def changed(self, now: float) -> None:
        """Who is well, in reach or a member may have changed."""
        self.passed(now)
        for id, lineage in self._history.lineages.items():
            pace = self._paces.setdefault(id, _Pace())
            self._set(pace, lineage, now)
        for fault in self._world.faults[self._faults_seen :]:
            self._open.append(fault)
        self._faults_seen = len(self._world.faults)

    def committed(self, lineage: Lineage, commit: Commit) -> None:
        now = commit.at
        pace = self._paces.setdefault(lineage.id, _Pace())
        self._measure(lineage.id, pace, now)
        pace.last_commit_at = max(now, pace.last_commit_at or now)
        self._recovered(pace, commit)
        self._set(pace, lineage, now)

    def _set(self, pace: _Pace, lineage: Lineage, now: float) -> None:
        """One that was not there a moment ago has been there since now, whoever is in it."""
        since, pace.who = self._quorum(lineage)
        if since is not None:
            since = now if pace.healthy_since is None else max(since, pace.healthy_since)
        pace.healthy_since = since

    # ------------------------------------------------------------------ gaps

    def _measure(self, id: str, pace: _Pace, now: float) -> None:
        if pace.healthy_since is None or pace.last_commit_at is None:
            return
        since = max(pace.healthy_since, pace.last_commit_at)
        seconds = now - since
        if seconds > self.longest.seconds:
            self.longest = Gap(seconds, since, id)
        if seconds > self.settings.gap_limit_s:
            self._findings.add(
                "I3", since,
                f"no commit in lineage {id} for more than {self.settings.gap_limit_s:.0f} s, "
                f"though a healthy quorum was there: {', '.join(pace.who)}",
                key=(id, since),
            )  # fmt: skip

    def _quorum(self, lineage: Lineage) -> tuple[float | None, tuple[str, ...]]:
        """Since when one healthy majority of the last view has been there, and who."""
        if self._world.paused or not lineage.members or self._world.ended_at is not None:
            return None, ()
        names = {self._world.name(id) for id in lineage.members}
        peers = [self._world.peers[name] for name in names if name in self._world.peers]
        well = [
            peer
            for peer in peers
            if peer.well
            and not peer.adrift
            and (peer.lineage == lineage.id or not peer.told_lineage)
        ]
        majority = len(lineage.members) // 2 + 1
        if len(well) < majority:
            return None, ()
        together = self._clique([peer.name for peer in well])
        if len(together) < majority:
            return None, ()
        since = sorted(
            (max(peer.well_since or 0.0, peer.reach_since, peer.lineage_since), peer.name)
            for peer in well
            if peer.name in together
        )[:majority]
        who = tuple(sorted(name for _, name in since))
        return max(since[-1][0], self._world.resumed_at), who

    def _clique(self, names: list[str]) -> set[str]:
        """A large set in which everybody reaches everybody: drop whoever lacks most others."""
        if not self._world.groups and not self._world.cuts:
            return set(names)
        best: set[str] = set()
        groups = [set(group) & set(names) for group in self._world.groups] or [set(names)]
        for left in groups:
            while left:
                lacks = {
                    name: sum(not self._world.reaches(name, other) for other in left)
                    for name in left
                }
                worst = max(sorted(lacks), key=lambda name: lacks[name])
                if not lacks[worst]:
                    break
                left.discard(worst)
            best = max(best, left, key=len)
        return best

    # ------------------------------------------------------------------ recoveries

    def _recovered(self, pace: _Pace, commit: Commit) -> None:
        if not self._open:
            return
        now = commit.at
        worked = {self._world.name(one["peer"]) for one in commit.contributions or ()}
        done: list[Fault] = []
        for fault in self._open:
            # What they had contributed may still be on its way when they stop.
            stopped = {name for name in fault.peers if not self._world.peer(name).well}
            if fault.at < now and not stopped & worked:
                done.append(fault)
        self._open = [one for one in self._open if one not in done]
        period = self._world.period_s or 0.0
        since = pace.healthy_since
        for fault in done:
            kept = since is not None and since <= fault.at
            base = fault.at if since is None else max(fault.at, since)
            self.recoveries.append(Recovery(fault, max(0.0, now - base - period), kept))

    @property
    def unrecovered(self) -> list[Fault]:
        """Nothing was committed after them."""
        return list(self._open)

    def recovery_s(self) -> dict[str, Any]:
        """Percentiles over the faults that left a healthy quorum, by kind too, and the others'."""
        kept = [one for one in self.recoveries if one.with_quorum]
        kinds = sorted({one.fault.kind for one in kept})
        return {
            **percentiles([one.seconds for one in kept if one.takes_away]),
            "by_kind": {
                kind: percentiles([one.seconds for one in kept if one.fault.kind == kind])
                for kind in kinds
            },
            "after_lost_quorum": percentiles(
                [one.seconds for one in self.recoveries if not one.with_quorum]
            ),
            "unrecovered": len(self.unrecovered),
        }

    # ------------------------------------------------------------------ the end

    def left_behind(self, end: float) -> None:
        """Whoever is well and in reach has taken part in rounds lately, if there were any."""
        last = max((one.last_at or 0.0 for one in self._history.lineages.values()), default=0.0)
        limit = self.settings.return_limit_s
        if end - last > limit:
            return
        for name, peer in sorted(self._world.peers.items()):
            if not peer.well or peer.well_since is None or self._world.is_cut(name):
                continue
            since = max(peer.well_since, peer.reach_since, peer.round_at or 0.0)
            if end - since > limit:
                self._findings.add(
                    "I3", since,
                    f"{name} is up and in reach, others commit, but it has taken part in no round "
                    f"for {end - since:.0f} s",
                    peer=name,
                )  # fmt: skip


def percentiles(values: list[float]) -> dict[str, Any]:
    """p50, p99 (nearest rank) and max; null where there is nothing."""
    if not values:
        return {"p50": None, "p99": None, "max": None, "count": 0}
    ordered = sorted(values)

    def rank(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3)

    return {"p50": rank(0.5), "p99": rank(0.99), "max": round(ordered[-1], 3), "count": len(values)}
