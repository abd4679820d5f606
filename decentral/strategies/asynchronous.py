"""DiLoCo with its communication fully hidden: one round late.

    phase r:   H inner steps from start(r)           Δm^r = start(r) − θm
               meanwhile Δ^(r−1) is reduced: θ(r) ← OuterOpt(θ(r−1), mean Δ^(r−1))

    delayed    start(r+1) = θ(r)                          nothing of Δm^r yet
    rebased    start(r+1) = θ(r) − Δm^r                   all of it, as trained
    eager      start(r+1) = θ(r) − (η/M) (Δm^r + μ b_m)   this peer's share of what is to come,
               b_m ← μ b_m + Δm^r                         M members
    ahead      start(r+1) = θ(r) − η (Δ̃ + μ b_m)          own work taken for everybody's, less what
               Δ̃ = Δm^r − λ (start(r) − θ(r))              it did about this peer's own start
               b_m ← μ b_m + Δ̃

*Delayed* is PCCL's "async DiLoCo". *Eager* is "Eager Updates for Overlapped Communication" (Kale
et al. 2025, arXiv 2502.12996, Algorithm 2). Written there, every peer's θ and momentum differ; this
is the equivalent form with one committed θ and b, and the estimate in each peer's own start.

*Ahead* is from no paper that we know: the mean of all starts is then where DiLoCo would start, and
only the peers' differences are a round late. But a phase trains part of a start's distance from θ
away, and would do so again to a start that has none: without λ the differences keep each other
alive (`undone`).

Delayed and eager cannot have the outer momentum that suits DiLoCo, because Δ arrives one round
late: at toy scale they diverge with .7/.9 (another implementation: 3.08 and 2.73 nats per byte,
one peer alone 1.90). Measured by `decentral bench strategies`, 4 peers, H = 15, one seed:

    steps   one alone   DiLoCo .7/.6   ahead .7/.6   λ = 0   λ = .5   λ = .8   eager .5/.3   rebased
    600     2.110       1.981          2.056         2.128   2.056    4.464    2.164         2.163
    1,500   1.813       1.669          1.739                                    1.826          1.876

Two things from CO2 (Sun et al. 2024, arXiv 2401.16265, section 3) hold stale momentum back:
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
        where it does not. c is between 0 and 1, depending on the direction; by default both ends
        decay equally fast. For .7/.6 that is λ = .35."""
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
