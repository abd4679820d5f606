"""What benchmarks reduce: standard normal values whose exact mean every rank can work out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from decentral.types import Array

BLOCK = 1_000_003
"""Values repeat after so many: a prime, so that no chunk that lands in a wrong place fits there."""


def values(rank: int, count: int) -> Array:
    """`count` fp32 values of a rank: the same in every process."""
    return np.resize(_block(rank, count), count)


def max_abs_error(result: Array, ranks: Sequence[int]) -> float:
    """How far `result` is from the exact mean of these ranks' values, at worst."""
    exact = np.mean([_block(rank, result.size).astype(np.float64) for rank in ranks], axis=0)
    worst = 0.0
    for start in range(0, result.size, exact.size):
        part = result[start : start + exact.size]
        worst = max(worst, float(np.max(np.abs(part - exact[: part.size]), initial=0.0)))
    return worst


def _block(rank: int, count: int) -> Array:
    return np.random.default_rng(rank).standard_normal(min(BLOCK, max(1, count)), dtype=np.float32)
