"""How far samples are from images, in the feature space of some network.

    FID          Fréchet distance of two Gaussians     Heusel et al. 2017, arXiv 1706.08500
    KID          squared MMD, cubic kernel, unbiased   Bińkowski et al. 2018, arXiv 1801.01401
    precision    share of samples near an image        Kynkäänniemi et al. 2019, arXiv 1904.06991
    recall       share of images near a sample

The features here are those of a small classifier (`classifier.py`), not Inception's: figures are
comparable with each other only. All take features [n, f] of images and of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from decentral.diffusion.seeds import numpy_random

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

KID_SUBSETS, KID_SIZE = 20, 1000
NEIGHBOURS = 3
RECALL_SIZE = 5000


def fid(images: Array, samples: Array) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)"""
    (mean1, cov1), (mean2, cov2) = _moments(images), _moments(samples)
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def _moments(features: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = features.astype(np.float64)
    return wide.mean(axis=0), np.cov(wide, rowvar=False)


def kid(images: Array, samples: Array) -> float:
    """Mean over subsets, with the kernel (a·b / f + 1)³, of features in units of the images'
    spread."""
    random = numpy_random("kid")
    images, samples = images / images.std(), samples / images.std()
    size = min(KID_SIZE, len(images), len(samples))
    found = []
    for _ in range(KID_SUBSETS):
        a = images[random.choice(len(images), size, replace=False)].astype(np.float64)
        b = samples[random.choice(len(samples), size, replace=False)].astype(np.float64)
        found.append(_within(a) + _within(b) - 2 * _kernel(a, b).mean())
    return float(np.mean(found))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product = a @ b.T / a.shape[1] + 1
    return np.asarray(product * product * product)  # numpy's ** is ten times as slow


def _within(a: NDArray[np.float64]) -> float:
    """Mean of the kernel over pairs of different rows."""
    kernel = _kernel(a, a)
    return float((kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)))


def precision_recall(images: Array, samples: Array) -> tuple[float, float]:
    """Near: within the distance that the other one has to its third nearest neighbour."""
    a, b = torch.from_numpy(images[:RECALL_SIZE]), torch.from_numpy(samples[:RECALL_SIZE])
    return _covered(a, b), _covered(b, a)


def _covered(centres: torch.Tensor, points: torch.Tensor) -> float:
    nearest = torch.cdist(centres, centres).kthvalue(NEIGHBOURS + 1, dim=1).values
    return float((torch.cdist(points, centres) <= nearest).any(dim=1).float().mean())
