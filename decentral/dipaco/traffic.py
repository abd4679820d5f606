"""Bytes that the peer of one path sends per phase, from the cells' schemas.

Every module's round is computed by two peers, each for itself. Where they stand decides:

    the module's own two paths'   each sends its Δ to the other, and has θ at once       1 Δ
    two other peers               each path sends Δ twice, and θ comes back              2 Δ + θ

Against DiLoCo's ring all-reduce of the same model: 2 (n − 1)/n · S per peer. A path's state goes
to its second holder besides: replica bytes, counted apart. DiLoCo has none, because all its state
but the inner moments is everywhere; what it does not replicate it loses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from decentral.dipaco.program import DiPaCo
from decentral.types import TensorSpec

_BYTES = {"float32": 4, "uint8": 1}
HOLDERS = 2
"""Peers that compute a module's round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes per phase and path."""

    delta: int
    """Its Δ for all its modules, once."""
    module: int
    """θ of all its modules."""
    replica: int
    """All of its state."""

    @property
    def beside_its_modules(self) -> int:
        """Sent if its modules are computed by the peers of their own two paths."""
        return self.delta * (HOLDERS - 1)

    @property
    def far_from_its_modules(self) -> int:
        """Moved if others compute all of them: Δ to both, θ from one."""
        return self.delta * HOLDERS + self.module


def traffic(program: DiPaCo) -> Traffic:
    cell, path = next(iter(program.paths.items()))
    modules = (program.schema(module.cell) for module in path.modules)
    state = program.schema(cell)
    return Traffic(
        delta=size_of(spec for spec in state if spec.name.startswith("delta/")),
        module=sum(size_of(spec for spec in schema if spec.name == "theta") for schema in modules),
        replica=size_of(state),
    )


def ring(parameters: int, peers: int) -> int:
    """Bytes that each of `peers` sends in an fp32 ring all-reduce of so many values."""
    return round(2 * (peers - 1) / peers * 4 * parameters)


def size_of(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * _BYTES[spec.dtype] for spec in specs)
