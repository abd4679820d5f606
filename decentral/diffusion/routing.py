"""Which experts a sample asks, and with what weights.

    full        all, by p(k | x_t, t): the exact flow of the mixture
    top-1       the likeliest only (the paper's cheapest; unconditional it is unsafe)
    top-2       the two likeliest, renormalized (what Paris, arXiv 2510.03434, finds best)
    threshold   all that are at least a tenth as likely as the likeliest
    sticky      one, drawn at t = 1 and kept

*Sticky* is exact: a mixture is sampled by drawing k from p(k), then x from component k, and at
t = 1 nothing but the class is known, so that p(k | class) can be counted. It needs no router and
one expert per sample. *Top-1* without classes sends every sample to the largest cluster at first,
where x_t says nothing yet, and other clusters are hardly ever reached.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from decentral.diffusion.seeds import numpy_random
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

WAYS = ("full", "top-1", "top-2", "threshold", "sticky")
NEAR = 0.1
"""What *threshold* asks for, as a share of the largest probability."""


def caution(way: str, *, conditional: bool) -> str:
    """What a person should know before sampling so; "" where there is nothing."""
    if way == "top-1" and not conditional:
        return (
            "top-1 routing without classes collapses: near t = 1 every sample goes to the largest "
            "cluster's expert; sticky costs the same and samples the mixture exactly"
        )
    return ""


def weights(p: Array, way: str) -> Array:
    """Of each expert in the velocity, from probabilities p [n, experts]; rows add up to 1."""
    if way == "full":
        kept = p
    elif way in ("top-1", "top-2"):
        last = np.sort(p, axis=1)[:, -min(int(way[-1]), p.shape[1])]
        kept = np.where(p >= last[:, None], p, 0)
    elif way == "threshold":
        kept = np.where(p >= NEAR * p.max(axis=1, keepdims=True), p, 0)
    else:
        raise ConfigError(f"samples are routed by {', '.join(WAYS)}, not {way!r}")
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), dtype=np.float32)


def without(p: Array, dead: Collection[int]) -> Array:
    """p [n, experts] over those that live: renormalized, or even where only the dead had a share.
    A ConfigError where nobody lives."""
    living = np.array([k not in dead for k in range(p.shape[1])])
    if not living.any():
        raise ConfigError("no expert is left to sample from", phase="sampling")
    kept = p * living
    total = kept.sum(axis=1, keepdims=True)
    return np.asarray(
        np.where(total > 0, kept / np.where(total > 0, total, 1), living / living.sum()),
        dtype=np.float32,
    )


def drawn(p: Array, seed: int) -> NDArray[np.intp]:
    """One expert per row of p [n, experts], with that probability: [n]"""
    random = numpy_random("sticky", seed).random(len(p))
    edges = p.astype(np.float64).cumsum(axis=1)
    chosen: NDArray[np.intp] = (random[:, None] * edges[:, -1:] >= edges).sum(axis=1)
    return chosen


def counted(
    assignment: NDArray[np.uint8], labels: NDArray[np.uint8] | None, experts: int, classes: int
) -> Array:
    """p(k | class) of the training images: [classes, experts]; [1, experts] without labels."""
    rows = labels if labels is not None else np.zeros(len(assignment), dtype=np.uint8)
    counts = np.zeros((classes if labels is not None else 1, experts))
    np.add.at(counts, (rows, assignment), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True).clip(1), dtype=np.float32)
