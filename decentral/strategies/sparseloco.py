"""SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706, Algorithm 1; Covenant-72B).

    e ← β e + Δm                       error feedback takes the outer momentum's place
    send Q(top-k of e), per chunk      64 of 4096 values, 12-bit index, 2 bits of value
    e ← e − what was sent
    θ ← θ − α · mean of what all sent, each clipped to the median norm

Everybody gathers everybody's values and adds them up in one order. The clip is the receivers': e
loses what was sent, unclipped. Defaults of the paper: β = .95, H = 30, α = 1.

They are for thousands of rounds. A value waits for some sixty rounds until its turn comes, and most
values are sent by one peer at a time, which the mean divides by all M; so a run of a hundred rounds
wants α near 2 M, and a β that forgets what is old. A toy of 117k parameters, M = 4, 600 steps, one
seed (nats per byte; one peer alone: 2.110):

    H    α, β:  1, 1    1, .95   1, .9    2, .8    4, .5    8, .3
    15          2.459   2.286             2.213    2.172
    5           2.172            2.258    2.162    2.126    2.040

After 1,500 steps 8, .3 is at 1.738 with H = 5 and at 1.824 with H = 15 (one peer alone: 1.813).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from decentral.errors import ConfigError
from decentral.strategies.outer import OuterOptimization


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLoCo(OuterOptimization):
    """About 1/140 of the bytes of fp32."""

    name: ClassVar[str] = "sparseloco"

    sync_every: int = 30
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    codec: str = "topk"
    error_feedback: float | None = 0.95
    weights: str = "equal"
    clip_to_median: bool = True
    """Whether a contribution whose norm is above the median is scaled down to it."""

    def __post_init__(self) -> None:
        OuterOptimization.__post_init__(self)
        if self.codec != "topk":
            raise ConfigError("SparseLoCo sends top-k: for another codec, use DiLoCo")

    def reduce_options(self) -> Mapping[str, Any]:
        return {"clip_to_median": True} if self.clip_to_median else {}
