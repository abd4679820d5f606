"""Whether the router means what it says: temperature scaling (Guo et al. 2017, arXiv 1706.04599).

p = softmax(logits / T)      T: one number that makes held-out images' clusters likeliest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from decentral.diffusion import flow
from decentral.diffusion.ensemble import Ensemble

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

BINS = 15
LOWEST, HIGHEST = 0.25, 4.0
"""Temperatures that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Of one router on held-out images at all times. Before and after the temperature."""

    temperature: float
    nats: tuple[float, float]
    """Cross-entropy."""
    error: tuple[float, float]
    """Expected calibration error: mean |confidence − accuracy| over `BINS` bins."""
    accuracy: float


def calibrate(
    ensemble: Ensemble, images: NDArray[np.uint8], labels: NDArray[np.uint8], *, seed: int = 0
) -> Calibration:
    """From images [n, h, w] that neither router nor experts have seen."""
    x0 = ensemble.space.encode(images)
    classes = labels.astype(np.int64) if ensemble.program.config.conditional else None
    t, _, x = flow.draw(x0, "calibration", seed)
    logits = ensemble.logits(x, t, classes)
    own = ensemble.clusters_of(images)
    temperature = _best(logits, own)
    return Calibration(
        temperature=temperature,
        nats=(_nats(logits, own, 1.0), _nats(logits, own, temperature)),
        error=(_error(logits, own, 1.0), _error(logits, own, temperature)),
        accuracy=float((logits.argmax(axis=1) == own).mean()),
    )


def _best(logits: Array, own: NDArray[np.uint8]) -> float:
    """Golden-section search over log T, in which the cross-entropy has one minimum."""
    low, high = np.log(LOWEST), np.log(HIGHEST)
    shrink = (5**0.5 - 1) / 2
    while high - low > 1e-3:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if _nats(logits, own, float(np.exp(left))) < _nats(logits, own, float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def _log_p(logits: Array, temperature: float) -> NDArray[np.float64]:
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def _nats(logits: Array, own: NDArray[np.uint8], temperature: float) -> float:
    return -float(_log_p(logits, temperature)[np.arange(len(own)), own].mean())


def _error(logits: Array, own: NDArray[np.uint8], temperature: float) -> float:
    p = np.exp(_log_p(logits, temperature))
    confidence, right = p.max(axis=1), p.argmax(axis=1) == own
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(own))
