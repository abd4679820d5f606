"""I4: file descriptors, threads and memory of each process reach a plateau.

rss │            ____╱‾‾‾‾  grows with members, caches, warm-up: a plateau, no leak
    │   ╱‾‾‾‾‾‾‾‾
    │  ╱                    a leak: rises over the whole time, still does in the second half,
    └──┴─warm-up──────────  and its lowest at the end is above its highest at the beginning
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.logs import Tail, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

WARM_UP_S = 30.0
LEAST_S = 60.0
"""A shorter stretch after the warm-up says nothing."""
LEAST_SAMPLES = 24
TREND_S = 20.0
"""Long enough for a part in what all processes do on average, which is told and not judged."""
WINDOWS = 24
"""The slope is that of medians of so many windows: bursts do not matter."""
STILL_GROWING = 1 / 3
"""Share of the whole slope that the second half must have, else it is a plateau."""
SLACK = {"fds": (8.0, 0.05), "threads": (2.0, 0.0), "rss_kib": (24 * 1024.0, 0.05)}
"""Growth over the whole time that is not looked at: absolute, and of the median."""
UNITS = {"fds": "file descriptors", "threads": "threads", "rss_kib": "KiB of memory"}


@dataclass(frozen=True, slots=True)
class Growth:
    peer: str
    pid: int
    what: str
    seconds: float
    first: float
    last: float
    """Medians of the first and the last quarter."""
    per_hour: float
    leak: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Leaks:
    def __init__(self, folder: Path, findings: Findings) -> None:
        self._tail = Tail(folder / "samples.jsonl")
        self._findings = findings
        self._samples: dict[tuple[str, int], list[tuple[float, float, float, float]]]
        self._samples = defaultdict(list)

    def read(self, at: float | None = None) -> None:
        while (line := self._tail.next()) is not None:
            one = parse(line)
            if one is not None:
                row = (one["at"], one["fds"], one["threads"], one["rss_kib"])
                self._samples[one["peer"], int(one["pid"])].append(row)

    def measure(self) -> list[Growth]:
        """Of every process that lived long enough."""
        found: list[Growth] = []
        for (peer, pid), rows in sorted(self._samples.items()):
            table = np.array(rows, dtype=np.float64)
            table = table[table[:, 0] >= table[0, 0] + WARM_UP_S]
            if len(table) < LEAST_SAMPLES or table[-1, 0] - table[0, 0] < LEAST_S:
                continue
            for column, what in enumerate(SLACK, start=1):
                found.append(_growth(peer, pid, what, table[:, 0], table[:, column]))
        for one in found:
            if one.leak:
                self._findings.add(
                    "I4", None,
                    f"{one.peer} (process {one.pid}) leaks {UNITS[one.what]}: {one.first:.0f} at "
                    f"first, {one.last:.0f} after {one.seconds:.0f} s, and still growing",
                    peer=one.peer,
                )  # fmt: skip
        return found

    def trends(self) -> dict[str, Any]:
        """What short lives can show: the median growth per hour over all processes after their
        warm-up, and the share of them that grew. Under churn few live long enough for more."""
        slopes: dict[str, list[float]] = {what: [] for what in SLACK}
        for rows in self._samples.values():
            table = np.array(rows, dtype=np.float64)
            table = table[table[:, 0] >= table[0, 0] + WARM_UP_S]
            if len(table) < 2 or table[-1, 0] - table[0, 0] < TREND_S:
                continue
            for column, what in enumerate(SLACK, start=1):
                slopes[what].append(3600 * theil_sen(table[:, 0], table[:, column]))
        return {
            what: {
                "processes": len(found),
                "per_hour": round(float(np.median(found)), 1) if found else None,
                "growing": round(float(np.mean(np.array(found) > 0)), 3) if found else None,
            }
            for what, found in slopes.items()
        }

    def summary(self, growths: list[Growth]) -> dict[str, Any]:
        """The worst of each kind; how many processes there were, and how many could be judged."""
        worst = {
            what: max(
                (one for one in growths if one.what == what),
                key=lambda one: one.last - one.first,
                default=None,
            )
            for what in SLACK
        }
        return {
            "processes": len(self._samples),
            "judged": len(growths) // len(SLACK),
            "found": [one.as_json() for one in growths if one.leak],
            "trends": self.trends(),
            "worst": {what: one.as_json() if one else None for what, one in worst.items()},
        }


def _growth(peer: str, pid: int, what: str, at: Values, values: Values) -> Growth:
    seconds = float(at[-1] - at[0])
    quarter = max(1, len(values) // 4)
    first, last = values[:quarter], values[-quarter:]
    slope = theil_sen(at, values)
    half = len(values) // 2
    late = theil_sen(at[half:], values[half:])
    absolute, relative = SLACK[what]
    leak = (
        slope * seconds > absolute + relative * float(np.median(values))
        and late >= STILL_GROWING * slope
        and float(np.percentile(last, 10)) > float(np.percentile(first, 90))
    )
    return Growth(
        peer, pid, what, round(seconds, 1), float(np.median(first)), float(np.median(last)),
        round(slope * 3600, 1), leak,
    )  # fmt: skip


def theil_sen(at: Values, values: Values) -> float:
    """Median of the slopes between medians of windows, per second."""
    parts = np.array_split(np.arange(len(at)), min(WINDOWS, len(at)))
    x = np.array([np.median(at[part]) for part in parts])
    y = np.array([np.median(values[part]) for part in parts])
    i, j = np.triu_indices(len(x), 1)
    apart = x[j] > x[i]
    slopes = (y[j] - y[i])[apart] / (x[j] - x[i])[apart]
    return float(np.median(slopes)) if len(slopes) else 0.0
