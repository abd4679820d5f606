"""Decoupled DiLoCo (arXiv 2604.21428): learners on their own clocks, without a synchronizer.

    learner m, always:       inner steps; fragment p is offered every H steps, or what it has made
    fragment p, whenever K offers are there, and the grace window is over:
        Δp ← Σ_m w_m Δm,p,     w = tokens × tokens per step     # the contributors reduce
        θp ← OuterOpt(θp, Δp)
    learner m, at its next step:   θm,p ← θp + (θm,p − its snapshot)

The paper has a central synchronizer that merges and hands out fragments. Here the coordinator only
freezes the list of contributors; they reduce among themselves, and members that were not ready
fetch the outcome beside their training. Whoever is late is counted in a later round, with less
weight the staler its work is.

The momentum is *delayed* (Async Local-SGD, Liu et al. 2024, arXiv 2401.09135, Algorithm 3): with
quorums, several small merges do what one round of DiLoCo does, so it is taken in every
`momentum_every` merges. There a buffer collects Δ between; decaying b at the window's first merge
and adding Δ/N at each leads to the same b at its end, so b itself is that buffer.

`dynamic_steps` (DyLU, the same paper, section 4.2, in local form): a slow learner offers after as
many steps as fit between two commits, so that it is hardly ever stale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from decentral.errors import ConfigError
from decentral.state import HeldState, Layout
from decentral.strategies.outer import OuterOptimization, average_buffers, whole
from decentral.types import Contribution

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoupledDiLoCo(OuterOptimization):
    """Nobody waits for anybody; a slow peer contributes what it can."""

    name: ClassVar[str] = "decoupled-diloco"

    outer_momentum: float = 0.6
    fragments: int = 1
    """P: parts of the model that merge on their own."""
    min_contributors: int = 1
    """K: the quorum of a merge."""
    grace_s: float = 0.5
    """How long a merge that has its quorum waits for more, in seconds."""
    dynamic_steps: bool = True
    """A slow peer offers after as many steps as fit between two commits (at most `sync_every`)."""
    momentum_every: int = 1
    """N: merges per step of the outer momentum (1: Nesterov at each)."""

    def __post_init__(self) -> None:
        OuterOptimization.__post_init__(self)
        whole("fragments", self.fragments, 1)
        whole("momentum_every", self.momentum_every, 1)
        if not self.min_contributors:
            raise ConfigError("DecoupledDiLoCo wants min_contributors (K) of at least 1")
        if self.fragments > self.sync_every:
            raise ConfigError(
                f"{self.fragments} fragments cannot take turns in sync_every={self.sync_every}"
            )

    @property
    def overlap(self) -> int | None:
        return None

    def weight_of(self, contribution: Contribution) -> float:
        """tokens × tokens per step, less what staleness takes off."""
        weight = 1.0
        if self.weights == "tokens":
            per_step = contribution.tokens / max(1, contribution.steps)
            weight = contribution.tokens * per_step
        return weight / math.pow(1 + contribution.staleness, self.staleness_power)

    def outer_step(
        self, layout: Layout, held: HeldState, delta: Array, theta: Array, momentum: Array
    ) -> None:
        if self.momentum_every == 1:
            OuterOptimization.outer_step(self, layout, held, delta, theta, momentum)
            return
        from decentral import _native

        merge = held.round % self.momentum_every
        trainable = slice(0, layout.trainable)
        share = delta[trainable] / np.float32(self.momentum_every)
        momentum[:] = held.momentum
        if merge == 0:
            momentum *= np.float32(self.outer_momentum)
        momentum += share
        step = share
        if merge == self.momentum_every - 1:
            step = share + np.float32(self.outer_momentum) * momentum
        _native.outer_sgd(held.theta[trainable], step, self.outer_lr, theta[trainable])
        average_buffers(layout, held, delta, theta)
