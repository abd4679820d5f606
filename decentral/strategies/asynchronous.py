"""DiLoCo with its communication fully hidden: one round late.

    phase r:   H inner steps from start(r)           Δm^r = start(r) − θm
               meanwhile Δ^(r−1) is reduced: θ(r) ← OuterOpt(θ(r−1), mean Δ^(r−1))

    delayed    start(r+1) = θ(r)                          nothing of Δm^r yet
    rebased    start(r+1) = θ(r) − Δm^r                   all of it, as trained
    eager      start(r+1) = θ(r) − (η/M) (Δm^r + μ b_m)   this peer's share of what is to come,
               b_m ← μ b_m + Δm^r                         M members
    ahead      start(r+1) = θ(r) − η (Δm^r + μ b_m)       own work taken for everybody's

*Delayed* is PCCL's "async DiLoCo". *Eager* is "Eager Updates for Overlapped Communication" (Kale
et al. 2025, arXiv 2502.12996, Algorithm 2). Written there, every peer's θ and momentum differ; this
is the equivalent form with one committed θ and b, and the estimate in each peer's own start.

An outer momentum that suits DiLoCo diverges here, because Δ arrives one round late: at toy scale
delayed with .7/.9 ends at 3.08 nats per byte, where one peer alone has 1.90. The defaults below do
not. Two things from CO2 (Sun et al. 2024, arXiv 2401.16265, section 3) hold stale momentum back:
`staleness_penalty` and `momentum_clip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from decentral.errors import ConfigError
from decentral.state import HeldState, Layout
from decentral.strategies.outer import OuterOptimization, one_of, within

if TYPE_CHECKING:
    from decentral.types import Array

VARIANTS = ("eager", "delayed", "rebased", "ahead")


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncDiLoCo(OuterOptimization):
    """A round is reduced while the next one is trained."""

    name: ClassVar[str] = "async-diloco"

    outer_lr: float = 0.7
    outer_momentum: float = 0.6
    variant: str = "ahead"
    """"eager", "delayed", "rebased" or "ahead", as above."""
    staleness_penalty: float = 1.0
    """Δ is divided by this (CO2's staleness gap, as a constant); 1: as it is."""
    correction: float | None = None
    """λ of *ahead*, in [0, 1]: which part of a start's distance from θ a phase is taken to undo.
    None: as below."""
    momentum_clip: float | None = None
    """Bound on the magnitude of each element of the outer momentum; None: none."""

    def __post_init__(self) -> None:
        OuterOptimization.__post_init__(self)
        one_of("variant", self.variant, VARIANTS)
        within("staleness_penalty", self.staleness_penalty, 1, 100)
        if self.correction is not None:
            within("correction", self.correction, 0, 1)
        if self.momentum_clip is not None and not self.momentum_clip > 0:
            raise ConfigError(f"momentum_clip is positive, not {self.momentum_clip!r}")
        grows = self.undone * self.outer_lr / self.staleness_penalty / (1 - self.outer_momentum)
        if self.variant == "ahead" and grows >= 1:
            raise ConfigError(
                f"variant ahead diverges with outer_lr={self.outer_lr}, outer_momentum="
                f"{self.outer_momentum} and correction {self.undone:.2f}: the correction times "
                f"outer_lr / (1 - outer_momentum) is {grows:.2f} and must be below 1"
            )

    @property
    def overlap(self) -> int | None:
        return self.sync_every

    @property
    def undone(self) -> float:
        """λ. A phase undoes a part c of a start's distance d from θ, so what the next start is off
        by is −G (c − λ) d: G = η (1 + 2μ) / (1 + μ) where that alternates (c > λ), and η / (1 − μ)
        where it does not. c is between 0 and 1, depending on the direction; this λ makes the
        slower of the two extremes decay fastest."""
        if self.correction is not None:
            return self.correction
        alternating = (1 + 2 * self.outer_momentum) / (1 + self.outer_momentum)
        steady = 1 / (1 - self.outer_momentum)
        return alternating / (alternating + steady)

    def outer_step(
        self, layout: Layout, held: HeldState, delta: Array, theta: Array, momentum: Array
    ) -> None:
        """CO2: Δ ÷ staleness; the momentum that the next step starts from is clipped."""
        if self.staleness_penalty != 1:
            delta = delta.copy()
            delta[: layout.trainable] /= np.float32(self.staleness_penalty)
        OuterOptimization.outer_step(self, layout, held, delta, theta, momentum)
        if self.momentum_clip is not None:
            bound = np.float32(self.momentum_clip)
            np.clip(momentum, -bound, bound, out=momentum)

    def restart(
        self, theta: Array, own: Array, progress: Array, members: int, memory: dict[str, Array]
    ) -> Array:
        if self.variant == "delayed":
            return theta.copy()
        if self.variant == "rebased":
            return theta - own
        ahead = self.variant == "ahead"
        momentum = memory.setdefault("momentum", np.zeros_like(own))
        if ahead and "start" in memory:
            # This peer began elsewhere than at θ, and what it did about that is no news of θ.
            aside = memory["start"] - theta
            aside *= np.float32(self.undone)
            own, progress = own - aside, progress - aside
        momentum *= np.float32(self.outer_momentum)
        momentum += progress
        step = momentum.copy()
        step *= np.float32(self.outer_momentum)
        step += own
        step *= np.float32(self.outer_lr / self.staleness_penalty / (1 if ahead else members))
        start: Array = theta - step
        if ahead:
            memory["start"] = start
        return start
