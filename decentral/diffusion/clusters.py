"""Which expert an image belongs to: many fine centroids, grouped into K clusters of equal size.

    features ── k-means ─▶ fine centroids ── k-means with room for n / K each ─▶ K clusters

The fine ones follow the data; grouping them is a small problem, in which balance is easy to have.
The paper (section 3.3) does the same, with 1,024 fine centroids of DINOv2 features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from decentral.diffusion.seeds import numpy_random
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array

LLOYD_ROUNDS = 30
SLACK = 1.05
"""How much larger than n / K a cluster may get, while another has room."""


def cluster(
    features: Array,
    experts: int,
    *,
    fine: int,
    seed: int,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[Any]]:
    """From features [n, f]: centroids [fine, f] fp32, coarse [fine] uint8 (each centroid's
    cluster), assignment [n] uint8. A pure function of its arguments on equal hardware."""
    points = torch.from_numpy(features)
    centroids = k_means(points, fine, seed=seed, beat=beat)
    nearest = nearest_of(points, centroids)
    counts = torch.bincount(nearest, minlength=fine)
    coarse = group(centroids.numpy(), counts.numpy(), experts, seed=seed)
    return {
        "centroids": centroids.numpy(),
        "coarse": coarse,
        "assignment": coarse[nearest.numpy()],
    }


def read_features(path: Path) -> Array:
    """[n, f] fp32 of the training images, in their order: the one tensor of a safetensors file,
    such as a large encoder has written. A ConfigError where the file is not that."""
    try:
        with safe_open(path, framework="np") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    except Exception as error:  # safetensors has its own error types
        raise ConfigError(f"{path} cannot be read: {error}", phase="data") from error
    if len(tensors) != 1 or tensors[0].ndim != 2 or tensors[0].dtype != np.float32:
        raise ConfigError(f"{path} is not one fp32 tensor [images, features]", phase="data")
    return np.ascontiguousarray(tensors[0])


def assign(features: Array, centroids: Array, coarse: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The clusters of images that were not there when the clusters were made. [n]"""
    nearest = nearest_of(torch.from_numpy(features), torch.from_numpy(np.array(centroids)))
    return np.asarray(coarse[nearest.numpy()])


def manifest(assignment: NDArray[np.uint8], experts: int) -> list[dict[str, int | str]]:
    """Per cluster: how many images it has, and the SHA-256 of their indices (uint32)."""
    clusters = [np.flatnonzero(assignment == k).astype("<u4") for k in range(experts)]
    return [
        {"cluster": k, "images": len(one), "sha256": hashlib.sha256(one.tobytes()).hexdigest()}
        for k, one in enumerate(clusters)
    ]


def k_means(
    points: torch.Tensor, k: int, *, seed: int, beat: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007). [n, f] → [k, f]"""
    centres = _spread(points, torch.ones(len(points)), k, seed, beat)
    for _ in range(LLOYD_ROUNDS):
        beat()
        nearest = nearest_of(points, centres)
        counts = torch.bincount(nearest, minlength=k).float()
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def nearest_of(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centre of each point. [n]"""
    half_norms = centres.square().sum(1) / 2
    return torch.cat(
        [(half_norms - some @ centres.T).argmin(1) for some in torch.split(points, 8192)]
    )


def group(
    centroids: Array, counts: NDArray[np.int64], experts: int, *, seed: int
) -> NDArray[np.uint8]:
    """Clusters of the centroids [fine, f] with about equal sums of `counts`. [fine]"""
    points, weights = torch.from_numpy(centroids), torch.from_numpy(counts).float()
    centres = _spread(points, weights, experts, seed, lambda: None)
    coarse = np.zeros(len(centroids), dtype=np.uint8)
    for _ in range(LLOYD_ROUNDS):
        costs = torch.cdist(points, centres).square().numpy()
        chosen = _fill(costs, counts)
        if (chosen == coarse).all():
            break
        coarse = chosen
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(coarse).long(), experts)
        shares = one_hot.float() * weights[:, None]
        centres = shares.T @ points / shares.sum(0).clamp_min(1)[:, None]
    return coarse


def _fill(costs: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each row's cheapest column that has room; who would lose most by waiting chooses first."""
    rows, columns = costs.shape
    room = np.full(columns, SLACK * counts.sum() / columns)
    cheapest = np.sort(costs, axis=1)
    regret = counts * (cheapest[:, min(1, columns - 1)] - cheapest[:, 0])
    chosen = np.zeros(rows, dtype=np.uint8)
    for row in np.argsort(-regret, kind="stable"):
        fits = np.flatnonzero(room >= counts[row])
        pick = fits[costs[row, fits].argmin()] if len(fits) else room.argmax()
        room[pick] -= counts[row]
        chosen[row] = pick
    return chosen


def _spread(
    points: torch.Tensor, weights: torch.Tensor, k: int, seed: int, beat: Callable[[], None]
) -> torch.Tensor:
    """k-means++: each next centre is a point, by weight × squared distance to those before."""
    random = numpy_random("k-means++", seed, k)
    squares = torch.ones(len(points))
    centres: list[torch.Tensor] = []
    for _ in range(k):
        beat()
        mass = (weights * squares).double().cumsum(0)
        at = torch.searchsorted(mass, random.random() * float(mass[-1]), right=True)
        centres.append(points[min(int(at), len(points) - 1)])
        away = (points - centres[-1]).square().sum(1)
        squares = away if len(centres) == 1 else torch.minimum(squares, away)
    return torch.stack(centres)
