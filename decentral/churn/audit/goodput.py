"""Useful work per second against an undisturbed run.

Useful is what counts in the end: samples of rounds that are committed and not undone, in the
lineage that the run ended in. What a losing lineage or a rolled-back round had counted is waste.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from decentral.churn.audit.history import Commit, History, Lineage
from decentral.churn.audit.timeline import World

BINS = 240
FINEST_S = 1.0


@dataclass(frozen=True, slots=True)
class Goodput:
    ratio: float | None
    """None without the undisturbed rate."""
    samples_per_s: float
    calm_samples_per_s: float | None
    useful: int
    wasted: int
    began_at: float
    seconds: float
    bin_s: float
    curve: list[float]
    """Useful samples per second in each bin, from the beginning of the measurement."""

    def as_json(self) -> dict[str, Any]:
        return {
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "samples_per_s": round(self.samples_per_s, 3),
            "calm_samples_per_s": self.calm_samples_per_s,
            "useful": self.useful,
            "wasted": self.wasted,
            "seconds": round(self.seconds, 3),
        }


def final_lineage(world: World, history: History) -> Lineage | None:
    """The one that most peers were in at the end, or are in now; of several, who has done more."""
    votes = world.at_end or Counter(peer.lineage for peer in world.peers.values() if peer.well)
    return max(
        history.lineages.values(),
        key=lambda one: (votes[one.id], one.last_at or 0.0, len(one.live)),
        default=None,
    )


def goodput(world: World, history: History, now: float) -> Goodput:
    """From the end of the undisturbed measurement until the end of the run, or `now`."""
    first = min((one.at for one in history.commits), default=now)
    begin = world.calm_at if world.calm_at is not None else first
    end = world.ended_at if world.ended_at is not None else now
    seconds = max(end - begin, 1e-9)
    final = final_lineage(world, history)
    useful: list[Commit] = list(final.live.values()) if final is not None else []
    kept = {id(one) for one in useful}
    within = [one for one in useful if begin <= one.at <= end]
    total = sum(one.useful for one in within)
    wasted = sum(
        one.useful for one in history.commits if id(one) not in kept and begin <= one.at <= end
    )
    bins = max(1, min(BINS, int(seconds / FINEST_S)))
    sums, _ = np.histogram(
        [one.at for one in within],
        bins=bins,
        range=(begin, begin + seconds),
        weights=[float(one.useful) for one in within],
    )
    rate, calm = total / seconds, world.calm_samples_per_s
    return Goodput(
        ratio=rate / calm if calm else None,
        samples_per_s=rate,
        calm_samples_per_s=calm,
        useful=total,
        wasted=wasted,
        began_at=begin,
        seconds=seconds,
        bin_s=seconds / bins,
        curve=[round(float(one) * bins / seconds, 2) for one in sums],
    )
