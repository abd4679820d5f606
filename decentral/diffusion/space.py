"""What the flow lives in: whitened principal components of the images, or the pixels.

    images [n, h, w] uint8  ── encode ─▶  x [n, dim] fp32, about unit variance  ── decode ─▶  images

An MLP that is narrower than its input cannot pass noise through, so small ones need latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from decentral.types import Array

_MIN_SCALE = 1e-3
"""Of a component that hardly varies, in pixels' units of [−1, 1]."""


class Space(Protocol):
    def encode(self, images: NDArray[np.uint8]) -> Array:
        """[n, h, w] → [n, dim]"""

    def decode(self, x: Array) -> NDArray[np.uint8]:
        """[n, dim] → [n, h, w]"""


class Pixels:
    """−1 is black, 1 is white."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape

    def encode(self, images: NDArray[np.uint8]) -> Array:
        return _signed(images)

    def decode(self, x: Array) -> NDArray[np.uint8]:
        return _bytes(x).reshape(-1, *self._shape)


class Principal:
    """x = basis · (pixels − mean) / scale. The tensors are those that `fit` has made."""

    def __init__(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[Any]]) -> None:
        self._shape = shape
        self._mean = tensors["space/mean"]
        self._basis = np.array(tensors["space/basis"])  # torch wants it writable
        self._scale = tensors["space/scale"]

    def encode(self, images: NDArray[np.uint8]) -> Array:
        out = np.empty((len(images), len(self._basis)), dtype=np.float32)
        for start in range(0, len(images), 4096):  # not all images as floats at once
            some = _signed(images[start : start + 4096]) - self._mean
            out[start : start + 4096] = _product(some, self._basis.T) / self._scale
        return out

    def decode(self, x: Array) -> NDArray[np.uint8]:
        pixels = _product(x * self._scale, self._basis) + self._mean
        return _bytes(pixels).reshape(-1, *self._shape)


def fit(
    images: NDArray[np.uint8], dim: int, *, beat: Callable[[], None] = lambda: None
) -> dict[str, Array]:
    """The first `dim` principal components of images [n, h, w].

    space/mean [pixels], space/basis [dim, pixels] with orthonormal rows, space/scale [dim]: the
    standard deviation of each component. In fp64; signs are such that each row's largest entry is
    positive.
    """
    pixels = torch.from_numpy(_signed(images))
    mean = pixels.mean(0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for some in torch.split(pixels, 8192):
        centred = some.double() - mean
        covariance += centred.T @ centred
        beat()
    variances, vectors = torch.linalg.eigh(covariance / len(images))
    basis = vectors.T.flip(0)[:dim]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = basis * largest.sign()
    scale = variances.flip(0)[:dim].clamp_min(0).sqrt().clamp_min(_MIN_SCALE)
    named = {"space/mean": mean, "space/basis": basis, "space/scale": scale}
    return {name: tensor.float().contiguous().numpy() for name, tensor in named.items()}


def principal_features(
    images: NDArray[np.uint8], shape: tuple[int, int], fitted: Mapping[str, NDArray[Any]]
) -> Array:
    """Components that are not whitened, for clustering: distances are those between pixels."""
    return np.asarray(Principal(shape, fitted).encode(images) * fitted["space/scale"])


def _product(one: Array, other: Array) -> Array:
    """By torch, whose threads `one_thread` limits: NumPy's BLAS has threads of its own, and on some
    processors other bits with each number of them."""
    found: Array = (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()
    return found


def _signed(images: NDArray[np.uint8]) -> Array:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(127.5) - np.float32(1)


def _bytes(pixels: Array) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)
    return levels
