"""Data-parallel training in DiLoCo's terms: parameters are averaged after every inner step.

    θm ← InnerOpt(θ, ∇L(x_m, θ));  θ ← Σ_m w_m θm        H = 1, η = 1, μ = 0

With plain SGD inside this *is* data-parallel training: averaging parameters and averaging gradients
are the same. With AdamW each peer's moments see its own gradients, not their average, which costs
little and needs nothing but what DiLoCo sends. The baseline, and right for peers in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decentral.errors import ConfigError
from decentral.strategies.outer import OuterOptimization


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallel(OuterOptimization):
    """Averages after every step."""

    name: ClassVar[str] = "data-parallel"

    sync_every: int = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0

    def __post_init__(self) -> None:
        OuterOptimization.__post_init__(self)
        fixed = {"sync_every": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ConfigError(f"DataParallel has {name}={value}: for another, use DiLoCo")
