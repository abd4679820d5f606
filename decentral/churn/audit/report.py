"""report.json, and one line that says it all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.churn.audit.findings import Violation
from decentral.churn.audit.goodput import Goodput, final_lineage
from decentral.churn.audit.leaks import Growth
from decentral.churn.audit.records import Records, records
from decentral.errors import DiskError

if TYPE_CHECKING:
    from decentral.churn.audit.auditor import Auditor


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    seed: int | None
    peers: int
    seconds: float
    rounds: int
    """Committed and not undone, in the lineage that the run ended in."""
    undone: int
    """Rounds that were rolled back or that a losing lineage had committed."""
    lineages: int
    rollbacks: int
    faults: dict[str, int]
    """By kind."""
    violations: list[Violation]
    counts: dict[str, int]
    """Of violations by invariant, those that are not listed too."""
    began_at: float
    longest_commit_gap_s: float
    longest_commit_gap_at: float | None
    healthy_s: float
    """How long a healthy quorum existed."""
    goodput: Goodput
    recovery_s: dict[str, Any]
    leaks: dict[str, Any]
    checked: dict[str, Any]
    """What the verdict rests on."""
    records: Records = field(repr=False)
    """What the page draws."""

    @property
    def held(self) -> bool:
        return not self.counts

    @property
    def exit_status(self) -> int:
        return 0 if self.held else 1

    @property
    def verdict(self) -> str:
        """One line."""
        faults = sum(self.faults.values())
        recovery = self.recovery_s
        parts = [f"{self.rounds} rounds, {faults} faults in {self.seconds:.0f} s"]
        parts.append(f"longest commit gap {self.longest_commit_gap_s:.1f} s")
        if recovery["count"]:
            parts.append(f"recovery p50 {recovery['p50']:.2f} s, p99 {recovery['p99']:.2f} s")
        if self.goodput.ratio is not None:
            parts.append(f"goodput {self.goodput.ratio:.0%}")
        parts.append(f"{self.checked['sums']} sums checked")
        if self.held:
            return f"held: {'; '.join(parts)}"
        which = ", ".join(f"{name} ×{many}" for name, many in sorted(self.counts.items()))
        return f"BROKEN ({which}): {self.violations[0].says}; {'; '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": "held" if self.held else "broken",
            "says": self.verdict,
            "seed": self.seed,
            "peers": self.peers,
            "seconds": round(self.seconds, 3),
            "faults": sum(self.faults.values()),
            "faults_by_kind": self.faults,
            "rounds": self.rounds,
            "undone_rounds": self.undone,
            "lineages": self.lineages,
            "rollbacks": self.rollbacks,
            "violations": [
                {**one.as_json(), "at": self._relative(one.at)} for one in self.violations
            ],
            "violations_by_invariant": self.counts,
            "longest_commit_gap_s": round(self.longest_commit_gap_s, 3),
            "longest_commit_gap_at": self._relative(self.longest_commit_gap_at),
            "healthy_quorum_s": round(self.healthy_s, 3),
            "goodput": self.goodput.as_json(),
            "recovery_s": self.recovery_s,
            "leaks": self.leaks,
            "checked": self.checked,
        }

    def _relative(self, at: float | None) -> float | None:
        """Seconds since the run began."""
        return None if at is None else round(at - self.began_at, 3)

    def write(self, folder: Path) -> None:
        """`report.json` and `report.html`. DiskError where that does not work."""
        from decentral.churn.audit.page import page

        try:
            text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
            (folder / "report.json").write_text(text + "\n", encoding="utf-8")
            (folder / "report.html").write_text(page(self), encoding="utf-8")
        except OSError as error:
            raise DiskError(f"the report could not be written: {error}", phase="audit") from error


def build(auditor: Auditor, good: Goodput, growths: list[Growth], end: float) -> Report:
    world, history, gaps = auditor.world, auditor.history, auditor.gaps
    began = world.began_at
    if began is None:
        began = min((one.at for one in history.commits), default=end)
    final = final_lineage(world, history)
    live = final.live if final is not None else {}
    return Report(
        seed=world.run.get("seed"),
        peers=len(world.peers),
        seconds=end - began,
        rounds=len(live),
        undone=len(history.commits) - len(live),
        lineages=len(history.lineages),
        rollbacks=sum(len(one.rollbacks) for one in history.lineages.values()),
        faults=dict(sorted(Counter(one.kind for one in world.faults).items())),
        violations=list(auditor.findings.violations),
        counts=dict(auditor.findings.counts),
        began_at=began,
        longest_commit_gap_s=gaps.longest.seconds,
        longest_commit_gap_at=gaps.longest.since,
        healthy_s=gaps.healthy_s,
        goodput=good,
        recovery_s=gaps.recovery_s(),
        leaks=auditor.leaks.summary(growths),
        checked={
            "log_lines": auditor.logs.lines,
            "commits": len(history.commits),
            "hashes_compared": history.compared,
            "sums": auditor.contributions.sums_checked,
            "sums_unchecked": dict(auditor.contributions.sums_unchecked),
            "leases": auditor.samples.ranges_checked,
            "skip_reviews": auditor.samples.lost_checked,
            "fault_events": auditor.failures.faults_checked,
            "unexpected_exits": auditor.failures.exits_checked,
        },
        records=records(auditor, began, end),
    )
