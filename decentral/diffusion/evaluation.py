"""Validation: the loss that the ensemble's velocity has on images that nobody trained on.

Every way of routing is scored on the same noise and times; *oracle* asks the expert of the image's
own cluster, which no sampler can know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from decentral.diffusion import flow, routing
from decentral.diffusion.ensemble import Ensemble

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

TIMES = 4
"""Noisy versions of each image, at times in all quarters of [0, 1)."""


def validation_losses(
    ensemble: Ensemble,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    ways: Sequence[str] = ("full", "top-1", "top-2", "threshold", "oracle"),
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Mean |u − (ε − x_0)|² over images [n, h, w], dimensions and times, per way."""
    if ensemble.program.config.experts == 1:
        ways = ("full",)
    x0 = np.tile(ensemble.space.encode(images), (TIMES, 1))
    classes = None
    if ensemble.program.config.conditional:
        classes = np.tile(labels.astype(np.int64), TIMES)
    t, noise, x = flow.draw(x0, "validation", seed)
    p = ensemble.route(x, t, classes)
    weights = {way: routing.weights(p, way) for way in ways if way != "oracle"}
    if "oracle" in ways:
        own = np.tile(ensemble.clusters_of(images), TIMES)
        weights["oracle"] = np.eye(p.shape[1], dtype=np.float32)[own]
    mixed: dict[str, Array] = {way: np.zeros_like(x0) for way in ways}
    for k in range(p.shape[1]):
        velocity = ensemble.velocity(k, x, t, classes)
        for way in ways:
            mixed[way] += weights[way][:, k : k + 1] * velocity
    target = noise - x0
    return {way: float(np.square(u - target).mean(dtype=np.float64)) for way, u in mixed.items()}
