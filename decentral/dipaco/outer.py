"""What a module's cell holds, what paths give it, and its outer step.

    path/0  delta/0/fp32 Δ₀, delta/0/weight n₀ ─┐   mean = Σ wₚ Δₚ / Σ wₚ   over ITS paths only
    path/1  delta/0/fp32 Δ₁, delta/0/weight n₁ ─┴─▶ θ, b ← Nesterov(√(number of its paths) · mean)

DiPaCo, Douillard et al. 2024 (arXiv 2403.10616), section 2.6 and algorithm 1. Weights are
normalized over the paths through the module: over all paths of the run, each step would be too
short.
All arithmetic is native, in the order of the paths, so that every machine gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays
from decentral.errors import ConfigError
from decentral.state import aligned_zeros
from decentral.strategies.outer import one_of, within
from decentral.types import TensorSpec

if TYPE_CHECKING:
    from decentral.types import Array

CODECS = ("fp32", "bf16", "fp16", "int8", "int4", "fp4")
"""Those that need no memory of what they left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """The outer optimization of all modules."""

    lr: float = 0.7
    """η, before the factor √(paths through the module)."""
    momentum: float = 0.9
    """μ."""
    sqrt_paths: bool = True
    """False: η as it is, for every module."""
    codec: str = "fp32"
    """How an outer gradient travels: one of `CODECS`."""

    def __post_init__(self) -> None:
        within("the outer lr", self.lr, 0, 10, open_below=True)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"the outer momentum is in [0, 1), not {self.momentum!r}")
        one_of("the outer gradient's codec", self.codec, CODECS)

    # ------------------------------------------------------------------ what a path gives

    def prefix(self, level: int) -> str:
        """Of the tensors that a module of this level fetches from a path."""
        return f"delta/{level}/"

    def pack(self, level: int, delta: Array, weight: float) -> dict[str, NDArray[Any]]:
        """Δ = θ(before) − θ(after), encoded, and how much it counts."""
        from decentral import _native

        if self.codec == "fp32":
            encoded: NDArray[Any] = delta
        else:
            encoded = np.empty(_native.encoded_size(self.codec, delta.size), np.uint8)
            _native.encode_into(self.codec, delta, encoded)
        prefix = self.prefix(level)
        return {
            prefix + self.codec: encoded,
            prefix + "weight": np.array([weight], np.float32),
        }

    def packed_schema(self, level: int, size: int) -> tuple[TensorSpec, ...]:
        """Of what `pack` gives for `size` values."""
        from decentral import _native

        if self.codec == "fp32":
            dtype, count = "float32", size
        else:
            dtype, count = "uint8", _native.encoded_size(self.codec, size)
        prefix = self.prefix(level)
        return (
            TensorSpec(name=prefix + self.codec, dtype=dtype, shape=(count,)),
            TensorSpec(name=prefix + "weight", dtype="float32", shape=(1,)),
        )

    # ------------------------------------------------------------------ what a module does

    def found(self, theta: Array) -> dict[str, NDArray[Any]]:
        """A module before its first outer step."""
        return {"theta": theta, "momentum": np.zeros_like(theta)}

    def step(self, before: Arrays, level: int, given: Sequence[Arrays]) -> Mapping[str, Array]:
        """The module's next round from what its paths gave, in the order of the paths."""
        from decentral import _native

        theta, momentum = aligned_zeros(before["theta"].size), aligned_zeros(before["theta"].size)
        _native.outer_nesterov(
            before["theta"],
            before["momentum"],
            self.scaled_mean(level, given, theta.size),
            self.lr,
            self.momentum,
            theta,
            momentum,
        )
        return {"theta": theta, "momentum": momentum}

    def scaled_mean(self, level: int, given: Sequence[Arrays], size: int) -> Array:
        """√n · Σ wₚ Δₚ / Σ wₚ over the n paths given; zeros where nobody had a sample."""
        from decentral import _native

        prefix = self.prefix(level)
        weights = [float(one[prefix + "weight"][0]) for one in given]
        scale = math.sqrt(len(given)) if self.sqrt_paths else 1.0
        total = aligned_zeros(size)
        for weight, one in zip(weights, given, strict=True):
            if weight > 0:
                delta, before, total = aligned_zeros(size), total, aligned_zeros(size)
                _native.decode(self.codec, one[prefix + self.codec].view(np.uint8), delta)
                share = scale * weight / sum(weights)
                _native.decode_add("fp32", before.view(np.uint8), delta, share, total)
        return total
