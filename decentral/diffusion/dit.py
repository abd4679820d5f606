"""A small diffusion transformer for pixels (Peebles and Xie 2023, arXiv 2212.09748).

    x [n, h·w] ─▶ patches [n, tokens, p²] ─▶ + where ─▶ depth × block(c) ─▶ norm, linear ─▶ patches

    block    h + gate₁ · attention(norm(h) ⊙ (1 + scale₁) + shift₁), the same again with an MLP

Gates and the last layer begin at zero (adaLN-zero): the network begins as u = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from decentral.diffusion.networks import Condition, modulate
from decentral.errors import ConfigError

MLP_RATIO = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DiT:
    """Options of a `Transformer`. These defaults have 13 M parameters at 28×28."""

    width: int = 320
    depth: int = 7
    heads: int = 5
    patch: int = 2
    """Pixels along an edge; it divides height and width."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.patch) < 1:
            raise ConfigError("a DiT's width, depth, heads and patch are at least 1")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"a DiT's width, {self.width}, is a multiple of 4 and of its heads")


class Transformer(nn.Module):
    where: torch.Tensor

    def __init__(self, options: DiT, *, shape: tuple[int, int], classes: int) -> None:
        """`shape`: height and width of the images. `classes` 0: unconditional."""
        super().__init__()
        patch, width = options.patch, options.width
        if shape[0] % patch or shape[1] % patch:
            raise ConfigError(f"patches of {patch} do not tile images of {shape[0]}×{shape[1]}")
        self._patch = patch
        self._grid = (shape[0] // patch, shape[1] // patch)
        self.condition = Condition(width, classes)
        self.first = nn.Linear(patch * patch, width)
        self.register_buffer("where", _positions(*self._grid, width), persistent=False)
        self.blocks = nn.ModuleList(_Block(width, options.heads) for _ in range(options.depth))
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.last = _zero(nn.Linear(width, patch * patch))

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None
    ) -> torch.Tensor:
        """x [n, h·w], t [n], classes [n] or None → [n, h·w]"""
        c = self.condition(t, classes)[:, None]
        h = self.first(self._cut(x)) + self.where
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return self._join(self.last(modulate(_norm(h), shift, scale)))

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        (rows, columns), p = self._grid, self._patch
        tiles = x.view(-1, rows, p, columns, p).transpose(2, 3)
        return tiles.reshape(-1, rows * columns, p * p)

    def _join(self, tokens: torch.Tensor) -> torch.Tensor:
        (rows, columns), p = self._grid, self._patch
        tiles = tokens.view(-1, rows, columns, p, p).transpose(2, 3)
        return tiles.reshape(-1, rows * p * columns * p)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.modulation = _zero(nn.Linear(width, 6 * width))
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width)

    def forward(self, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = h + gate1 * self._attention(modulate(_norm(h), shift1, scale1))
        inner = self.up(modulate(_norm(h), shift2, scale2))
        return h + gate2 * self.down(functional.gelu(inner, approximate="tanh"))  # type: ignore[no-any-return]

    def _attention(self, h: torch.Tensor) -> torch.Tensor:
        n, tokens, width = h.shape
        split = self.queries_keys_values(h).view(n, tokens, 3, self._heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.mixed(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


def _norm(h: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(h, h.shape[-1:])


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """Fixed sines and cosines of row and column, a half of the width each: [tokens, width]"""
    rates = 10_000 ** -(torch.arange(width // 4) / (width / 4))
    axes = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in axes]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)
