"""Learning-rate schedules on the run's own clock, which every peer shares.

A peer that joins late, or comes back, is at the run's place in the schedule and not at its own:
the clock is the committed tokens plus this peer's uncommitted ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from decentral.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the run is, as this peer sees it."""

    tokens: int
    """Committed by all, plus this peer's own uncommitted ones."""
    rounds: float
    """Committed rounds, plus this peer's share of the running one."""
    fraction: float | None
    """Of the run's target, in [0, 1]; None for an open-ended run."""


Schedule: TypeAlias = Callable[[Progress], float]
"""A multiplier for each parameter group's own learning rate."""


def constant(_progress: Progress) -> float:
    return 1.0


def cosine(*, warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear warm-up over the first `warmup` of the run, then half a cosine down to `floor`.

    Both are fractions: of the run's target, and of the peak learning rate.
    """
    if not 0 <= warmup < 1 or not 0 <= floor <= 1:
        raise ConfigError(f"cosine wants warmup in [0, 1) and floor in [0, 1]: {warmup}, {floor}")

    def multiplier(progress: Progress) -> float:
        if progress.fraction is None:
            raise ConfigError(
                "a cosine schedule needs the run to have an end: give rounds or target_tokens",
                phase="schedule",
            )
        if progress.fraction < warmup:
            # Never zero: the first step of a run should already teach something.
            return max(progress.fraction, 0.01 * warmup) / warmup
        along = (progress.fraction - warmup) / (1 - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))

    return multiplier
