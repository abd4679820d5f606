"""A small decoder-only transformer: pre-norm, rotary-free, tied embedding.

ids [B, T] ─▶ wte + wpe ─▶ ( x + attention(norm x);  x + mlp(norm x) ) × L ─▶ norm ─▶ wteᵀ
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """117,056 parameters by default."""

    vocabulary: int = 256
    context: int = 32
    width: int = 64
    heads: int = 4
    layers: int = 2


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, width] to the same, each position seeing itself and what is before it."""
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: torch.Tensor = self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return result


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        mixed: torch.Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + mixed


class GPT(nn.Module):
    """Logits [B, T, vocabulary] for ids [B, T], T at most `config.context`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # The two projections that write into the residual stream start smaller, so that
                # its variance does not grow with depth (GPT-2). Their 0.02 is for 768 channels:
                # here it costs 0.2 nats at 1,500 steps.
                residual = name.endswith(("out.weight", "down.weight"))
                std = 0.08 / (2 * config.layers) ** 0.5 if residual else 0.08
                nn.init.normal_(parameter, std=std)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits
