"""The mean of a few repetitions and its 95 % interval, by Student's t.

    mean ± t(0.975, n − 1) · s / √n

Differences are taken seed by seed first: what a seed does to every row alike cancels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""Of 1, 2, … degrees of freedom."""
_Z = 1.959964


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to three digits or better."""
    if freedom < 1:
        raise ValueError("a spread takes two values")
    if freedom <= len(_T):
        return _T[freedom - 1]
    # The first terms of its expansion around the normal distribution's (Cornish and Fisher).
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + first / freedom + second / freedom**2


@dataclass(frozen=True, slots=True)
class Interval:
    """`half` is the 95 % interval's half width; None for a single value."""

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        count = len(values)
        if count < 2:
            return cls(values[0], None, count)
        half = t_975(count - 1) * statistics.stdev(values) / math.sqrt(count)
        return cls(statistics.fmean(values), half, count)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.half is not None else "")


def paired(values: dict[int, float], reference: dict[int, float]) -> Interval | None:
    """Of value − reference over the seeds that both have; None without one."""
    seeds = sorted(values.keys() & reference.keys())
    return Interval.of([values[seed] - reference[seed] for seed in seeds]) if seeds else None
