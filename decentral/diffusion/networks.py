"""A residual MLP under adaptive layer norm: the latents' flow network, and every router.

    t, class ─▶ c ──────────┬───────────────┬──────▶ …        shift, scale, gate = W c
    x ─▶ h ─▶ h + gate · MLP(norm(h) (1 + scale) + shift) ─▶ … ─▶ out

Gates begin at zero, so that every block begins as the identity (adaLN-zero of DiT, Peebles and
Xie 2023, arXiv 2212.09748, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from decentral.errors import ConfigError

FREQUENCIES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    """Options of a `ResidualMLP`."""

    width: int = 256
    depth: int = 3
    condition: int = 112
    """Width of what time and class are embedded in."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.condition) < 1:
            raise ConfigError("an MLP's width, depth and condition are at least 1")


class ResidualMLP(nn.Module):
    def __init__(self, options: MLP, *, dim: int, classes: int, out: int) -> None:
        """`classes` 0: unconditional. Else class number `classes` is the null class."""
        super().__init__()
        self.condition = Condition(options.condition, classes)
        self.first = nn.Linear(dim, options.width)
        self.blocks = nn.ModuleList(
            _Block(options.width, options.condition) for _ in range(options.depth)
        )
        self.last = nn.Linear(options.width, out)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None
    ) -> torch.Tensor:
        """x [n, dim], t [n], classes [n] or None → [n, out]"""
        c = self.condition(t, classes)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, c)
        return self.last(h)  # type: ignore[no-any-return]


class Condition(nn.Module):
    """One vector for time and class; None as a class is the null class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        c = self.time(waves(t))
        if self.label is not None:
            if classes is None:
                classes = torch.full(t.shape, self.label.num_embeddings - 1, device=t.device)
            c = c + self.label(classes)
        return functional.silu(c)


class _Block(nn.Module):
    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 3 * width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        inner = modulate(functional.layer_norm(h, h.shape[-1:]), shift, scale)
        return h + gate * self.down(functional.silu(self.up(inner)))  # type: ignore[no-any-return]


def modulate(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return h * (1 + scale) + shift


def waves(t: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of 1000 t at geometric frequencies: [n] → [n, FREQUENCIES]"""
    half = FREQUENCIES // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / half))
    angles = 1000 * t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
