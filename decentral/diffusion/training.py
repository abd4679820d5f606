"""The inner steps of one round: what a lease is for.

state ─▶ Descent ── for each batch: x_t, loss, AdamW, EMA ─▶ state
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from decentral.data.order import sample_indices
from decentral.diffusion import flow
from decentral.diffusion.flat import Descent

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(indices [n], t [n], noise [n, dim]) → mean loss"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Which inner steps these are, and on which samples: every sample once per epoch, and the
    parts of one expert never the same."""

    first: int
    """Steps made before."""
    steps: int
    batch: int
    order: int
    """Seed of the samples' order."""
    part: int = 0
    parts: int = 1

    def indices(self, n: int) -> torch.Tensor:
        """[steps, batch], each below n."""
        places = np.arange(self.first * self.batch, (self.first + self.steps) * self.batch)
        ids = (places * self.parts + self.part).astype(np.uint64)
        return torch.tensor(sample_indices(ids, n, self.order)).view(self.steps, self.batch)


def train(
    descent: Descent,
    stretch: Stretch,
    loss: Loss,
    lr: Callable[[int], float],
    *,
    samples: int,
    dim: int,
    random: torch.Generator,
    beat: Callable[[], None],
) -> float:
    """The mean loss of these steps. `samples`: how many there are to draw from."""
    total = torch.zeros(())
    for step, indices in enumerate(stretch.indices(samples), start=stretch.first):
        t = flow.times(len(indices), random)
        noise = torch.randn(len(indices), dim, generator=random)
        found = loss(indices, t, noise)
        descent(found, lr(step))
        total += found.detach().cpu()
        beat()
    return float(total) / stretch.steps


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums have an order, and torch's depends on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def without_some_classes(
    classes: torch.Tensor, null: int, share: float, random: torch.Generator
) -> torch.Tensor:
    """Class dropout (Ho and Salimans 2022, arXiv 2207.12598): `share` of them become `null`."""
    dropped = torch.rand(classes.shape, generator=random) < share
    return classes.masked_fill(dropped, null)
