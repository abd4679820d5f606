"""Bytes that the peer of one path moves per phase, from the cells' schemas.

    it fetches   θ of each of its modules (each module is computed by two peers, who fetch the Δ)
    it sends     Δ of each module to those two
    replica      its whole state, to the path's second holder: counted apart

Against DiLoCo's ring all-reduce of the same model, 2 (n − 1)/n · S sent (and received) per peer.
What a peer holds itself it need not fetch: the numbers here are the most that it can take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from decentral.dipaco.program import DiPaCo
from decentral.types import TensorSpec

_BYTES = {"float32": 4, "uint8": 1}
HOLDERS = 2
"""Peers that compute a module's round, each for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes per phase and path."""

    module: int
    """θ of all its modules: what it fetches before a phase."""
    delta: int
    """Its Δ for all its modules, once."""
    replica: int
    """All of its state."""

    @property
    def exchanged(self) -> int:
        """Δ out and θ in, each once: what an ideal exchange moves."""
        return self.module + self.delta


def traffic(program: DiPaCo) -> Traffic:
    cell, path = next(iter(program.paths.items()))
    modules = (program.schema(module.cell) for module in path.modules)
    state = program.schema(cell)
    return Traffic(
        module=sum(size_of(spec for spec in schema if spec.name == "theta") for schema in modules),
        delta=size_of(spec for spec in state if spec.name.startswith("delta/")),
        replica=size_of(state),
    )


def ring(parameters: int, peers: int) -> int:
    """Bytes that each of `peers` sends in an fp32 ring all-reduce of so many values."""
    return round(2 * (peers - 1) / peers * 4 * parameters)


def size_of(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * _BYTES[spec.dtype] for spec in specs)
