"""A recipe for tests: a model of a few thousand parameters whose steps take a set time.

Its rounds are short and the machine stays quiet, so that a test measures the mesh.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

import decentral
from decentral import strategies
from decentral.recipes import Recipe, Task
from decentral.strategies import Strategy

STEP_S = float(os.environ.get("TINY_STEP_S", "0.05"))
STEPS = int(os.environ.get("TINY_STEPS", "10"))
WIDTH = int(os.environ.get("TINY_WIDTH", "0"))
"""Above 0: a layer of WIDTH² parameters in between, for a state that takes time to fetch."""


@dataclass(frozen=True)
class Line:
    """Samples of y = 3x − 1, with noise; sample i is the same on every peer."""

    digest: str = "y = 3x - 1"

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.randn(2, generator=torch.Generator().manual_seed(index))
        x = noise[:1]
        return torch.cat([x, 3 * x - 1 + 0.1 * noise[1:]])


def loss_fn(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    time.sleep(STEP_S)
    return ((model(batch[:, :1]) - batch[:, 1:]) ** 2).mean()


def strategy() -> Strategy:
    if "TINY_STRATEGY" in os.environ:
        made: Strategy = eval(os.environ["TINY_STRATEGY"], vars(strategies))
        return made
    return decentral.DiLoCo(
        sync_every=STEPS,
        outer_momentum=0.6,
        codec=os.environ.get("TINY_CODEC", "fp32"),
        min_contributors=int(os.environ.get("TINY_K", "0")),
        grace_s=float(os.environ.get("TINY_GRACE_S", "0")),
    )


def recipe() -> Recipe:
    return Recipe(name="tiny", version="1", build=build)


def build(seed: int) -> Task:
    torch.manual_seed(seed)
    inner = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()] if WIDTH else []
    width = WIDTH or 64
    model = torch.nn.Sequential(
        torch.nn.Linear(1, width), torch.nn.Tanh(), *inner, torch.nn.Linear(width, 1)
    )
    points = torch.stack([Line()[i] for i in range(64)])
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        strategy=strategy(),
        dataset=Line(),
        batch_size=4,
        loss_fn=loss_fn,
        tokens_of=len,
        evaluate=lambda model: float(((model(points[:, :1]) - points[:, 1:]) ** 2).mean().detach()),
        rounds=int(os.environ.get("TINY_ROUNDS", "100000")),
        num_workers=int(os.environ.get("TINY_NUM_WORKERS", "0")),
        torch_threads=1,
    )
