"""Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512), Algorithm 2.

    for fragment p, every H steps, at an offset of its own:
        Δm,p ← θp − θm,p ;  start the reduce of Δp                 # one fragment at a time
        … τ inner steps …
        θp ← OuterOpt(θp, Δp)                                      # section 3.2: overlapped
        θm,p ← α θm,p + (1 − α) θp                                 # equation 3: mixing

Peak bandwidth falls by the number of fragments, and the wire is 4 bits (E3M0 there and here,
section 3.3; sums are fp32). The next Δm,p starts from the committed θp, never from a mixed value,
as in the paper. With τ = 0 nothing is mixed: θm,p ← θp. Evaluate the committed parameters
(`run.outer()`), as the paper does. At toy scale (docs/benchmarks.md; H = 16, P = 2) it ends 0.020
nats per byte above DiLoCo with τ = 0, and 0.054 with τ = 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decentral.errors import ConfigError
from decentral.strategies.outer import OuterOptimization, whole, within

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingDiLoCo(OuterOptimization):
    """Fragments in turn, their outcomes mixed in some steps later."""

    name: ClassVar[str] = "streaming-diloco"

    codec: str = "fp4"
    fragments: int = 3
    """P: parts of the model, of about equal size and made of whole layers, with rounds of their
    own. `rounds` of the run are those of each fragment."""
    overlap_steps: int = 1
    """τ: inner steps between a fragment's offer and the use of its outcome; 0 waits for it. The
    paper finds no loss below 5 (at H = 100); choose what a round takes on your links."""
    mixing: float = 0.5
    """α: how much of its own θm,p a peer keeps."""

    def __post_init__(self) -> None:
        OuterOptimization.__post_init__(self)
        whole("fragments", self.fragments, 1)
        whole("overlap_steps", self.overlap_steps, 0)
        within("mixing", self.mixing, 0, 1)
        if self.fragments > self.sync_every:
            raise ConfigError(
                f"{self.fragments} fragments cannot take turns in sync_every={self.sync_every}"
            )
        if self.overlap_steps >= self.sync_every:
            raise ConfigError("overlap_steps is less than sync_every: AsyncDiLoCo overlaps all")

    @property
    def overlap(self) -> int | None:
        return self.overlap_steps

    def blend(self, theta: Array, local: Array, snapshot: Array) -> Array:
        """Equation 3. Waiting for the outcome leaves nothing to mix."""
        if not self.overlap_steps:
            return theta
        local *= self.mixing
        local += (1 - self.mixing) * theta
        return local
