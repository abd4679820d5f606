"""Balanced k-means: clusters of equal size, by one price per cluster.

    xᵢ goes to argmaxₖ  sₖ(xᵢ) + bₖ      sₖ(x) = 2 cₖ·x − |cₖ|²     (the nearest centroid, if b = 0)

bₖ falls until cluster k gets its share of the samples: the auction's view of optimal transport
(Bertsekas 1988), one price after the other. As s + b is linear in x, so is the router that k-means
ends with. Sums are fp64 in the order of samples, products are made by one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from decentral.types import Array

STARTS, ITERATIONS = 2, 20
SAMPLES = 4096
"""k-means looks at so many samples, the first ones; then all of them set the prices."""
SWEEPS, QUICK_SWEEPS = 30, 4
"""Times that each price is set anew, at the end and within an iteration of k-means."""


def balanced_kmeans(
    x: Array,
    k: int,
    seed: int,
    *,
    balanced: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> tuple[Array, Array]:
    """(weights float32 [k, d], bias float32 [k]) of the linear router, for samples x [n, d].

    The best of a few k-means++ starts by total squared distance."""
    few = x[:SAMPLES]
    found = [_kmeans(few, k, seed, start, balanced, beat) for start in range(STARTS)]
    _, centroids, bias = min(found, key=lambda one: one[0])
    if balanced:
        bias = prices(_scores(x, centroids), bias, beat=beat)
    return 2 * centroids, bias - (centroids * centroids).sum(1)


def _kmeans(
    x: Array, k: int, seed: int, start: int, balanced: bool, beat: Callable[[], None]
) -> tuple[float, Array, Array]:
    """(cost, centroids [k, d], prices [k]) from one start."""
    random = np.random.Generator(np.random.Philox(key=[seed, start]))
    centroids, bias = _plus_plus(x, k, random), np.zeros(k, np.float32)
    labels = np.full(len(x), -1)
    for _ in range(ITERATIONS):
        beat()
        scores = _scores(x, centroids)
        if balanced:
            bias = prices(scores, bias, QUICK_SWEEPS)
        before, labels = labels, (scores + bias).argmax(1)
        if np.array_equal(before, labels):
            break
        centroids = _means(x, labels, centroids)
    chosen = _scores(x, centroids)[np.arange(len(x)), labels]
    return -float(chosen.sum(dtype=np.float64)), centroids, bias


def prices(
    scores: Array,
    start: Array | None = None,
    sweeps: int = SWEEPS,
    beat: Callable[[], None] = lambda: None,
) -> Array:
    """float32 [k] to add to scores [n, k] so that each column is the largest of about n/k rows."""
    n, k = scores.shape
    bias = np.zeros(k, np.float32) if start is None else start.copy()
    if k == 1:
        return bias
    share = max(1, n // k)
    for _ in range(sweeps):
        beat()
        for column in range(k):
            others = np.delete(scores, column, 1) + np.delete(bias, column)
            # A row is won by any price above what its best other column offers more.
            wanted = np.partition(others.max(1) - scores[:, column], [share - 1, share])
            bias[column] = wanted[share - 1 : share + 1].mean()
        counts = np.bincount((scores + bias).argmax(1), minlength=k)
        if counts.max() - counts.min() <= share // 100:
            break
    centred: Array = bias - bias.mean()
    return centred


def product(x: Array, x_t: Array) -> Array:
    """x @ x_t by torch, whose number of threads the program sets."""
    made: Array = (torch.from_numpy(x) @ torch.from_numpy(x_t)).numpy()
    return made


def _scores(x: Array, centroids: Array) -> Array:
    made: Array = 2 * product(x, np.ascontiguousarray(centroids.T)) - (centroids**2).sum(1)
    return made


def _plus_plus(x: Array, k: int, random: np.random.Generator) -> Array:
    """Centroids far from each other: each is a sample, drawn by its squared distance."""
    chosen = [x[int(random.random() * len(x))]]
    norms = (x * x).sum(1)
    nearest = np.full(len(x), np.inf)
    while len(chosen) < k:
        last = chosen[-1]
        away = norms - 2 * product(x, last[:, None])[:, 0] + (last * last).sum()
        nearest = np.minimum(nearest, np.maximum(away.astype(np.float64), 0))
        ends = np.cumsum(nearest)
        chosen.append(x[min(int(np.searchsorted(ends, random.random() * ends[-1])), len(x) - 1)])
    return np.stack(chosen)


def _means(x: Array, labels: NDArray[np.int64], before: Array) -> Array:
    """An empty cluster stays where it is."""
    centroids = before.copy()
    for k in range(len(before)):
        mine = x[labels == k]
        if len(mine):
            centroids[k] = mine.mean(0, dtype=np.float64)
    return centroids
