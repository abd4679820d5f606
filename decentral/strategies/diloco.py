"""DiLoCo (Douillard et al. 2023, arXiv 2311.08105), Algorithm 1.

    for outer step t = 1 … T:
        for each worker m, in parallel:
            θm ← θ(t−1)
            for H inner steps:  θm ← AdamW(θm, ∇L(x_m, θm))     # the run's own optimizer
            Δm ← θ(t−1) − θm                                    # the outer gradient
        Δ ← Σ_m w_m Δm                                          # the only communication
        θ(t) ← OuterOpt(θ(t−1), Δ)                              # Nesterov momentum

Inner optimizer state is neither reset nor averaged (section 2 there). The paper's defaults: H =
500, η = 0.7, μ = 0.9, equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decentral.strategies.outer import OuterOptimization


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCo(OuterOptimization):
    """Many inner steps, then one averaged outer step with momentum."""

    name: ClassVar[str] = "diloco"
