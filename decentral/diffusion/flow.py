"""Flow matching along straight paths (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023).

    x_t = (1 − t) x_0 + t ε          t = 0: an image   t = 1: noise
    u(x_t, t) ≈ E[ε − x_0 | x_t]     what a network learns, by its mean squared error

A sample is made by going from noise at t = 1 down to t = 0 along −u.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from decentral.diffusion.seeds import numpy_random, torch_random

if TYPE_CHECKING:
    from decentral.types import Array

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(x [n, dim], t [n], classes [n] or None) → [n, dim or experts]"""


def times(n: int, random: torch.Generator) -> torch.Tensor:
    """[n], uniform in [0, 1), one in each n-th of it: the loss varies less from batch to batch
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.1)."""
    return (torch.rand(1, generator=random) + torch.arange(n) / n) % 1


def noisy(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_t: what a network sees at time t [n] of images x0 [n, dim]."""
    t = t[:, None]
    return (1 - t) * x0 + t * noise


def draw(x0: Array, *seed: str | int) -> tuple[Array, Array, Array]:
    """For evaluation, the same whenever the seed is: t [n], ε and x_t [n, dim]."""
    t: Array = times(len(x0), torch_random(*seed)).numpy()
    noise = numpy_random(*seed).standard_normal(x0.shape, dtype=np.float32)
    x = noisy(*(torch.from_numpy(one) for one in (x0, t, noise))).numpy()
    return t, noise, x


def loss(
    network: Network,
    x0: torch.Tensor,
    classes: torch.Tensor | None,
    t: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Mean over batch and dimensions of |u − (ε − x_0)|²."""
    velocity = network(noisy(x0, t, noise), t, classes)
    return (velocity - (noise - x0)).square().mean()


def router_loss(
    network: Network,
    x0: torch.Tensor,
    classes: torch.Tensor | None,
    clusters: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy, in nats, of each image's cluster [n] given its noisy version."""
    logits = network(noisy(x0, t, noise), t, classes)
    return torch.nn.functional.cross_entropy(logits, clusters)
