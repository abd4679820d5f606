"""What a run is compared with: one peer alone, and data-parallel training, in this process.

steps n, peers K:    tokens            exchanged per peer
single               n · B · T         nothing
data-parallel        n · K · B · T     2 (K−1)/K · 4 bytes · parameters, every step
DiLoCo               n · K · B · T     the same, every H steps
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from decentral.data import sample_indices
from decentral.recipes import Recipe
from decentral.schedule import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The outcome of one baseline."""

    name: str
    steps: int
    loss: float
    """Validation loss, as the recipe evaluates."""
    tokens: int
    seconds: float
    bytes_per_peer: int
    """What each peer would send: analytic."""


ProgressCallback = Callable[[int, float], None]
"""(steps so far, training loss)."""


def ring_bytes(parameters: int, peers: int) -> int:
    """Bytes that each peer sends for one fp32 ring all-reduce: 2 (K−1)/K of the buffer."""
    return round(2 * (peers - 1) / peers * 4 * parameters)


def single(
    recipe: Recipe, steps: int, seed: int = 0, progress: ProgressCallback | None = None
) -> Baseline:
    """One peer alone: as many steps as each peer of a run makes."""
    return _train("single", recipe, steps, 1, seed, progress)


def data_parallel(
    recipe: Recipe, steps: int, peers: int, seed: int = 0, progress: ProgressCallback | None = None
) -> Baseline:
    """Gradients averaged at every step: the same as one batch of `peers` times the size."""
    return _train("data-parallel", recipe, steps, peers, seed, progress)


def _train(
    name: str,
    recipe: Recipe,
    steps: int,
    peers: int,
    seed: int,
    report: ProgressCallback | None,
) -> Baseline:
    task = recipe.build(seed)
    if task.torch_threads is not None:
        torch.set_num_threads(task.torch_threads)
    began = time.monotonic()
    batch_size = task.batch_size * peers
    tokens = 0
    peaks = [group["lr"] for group in task.optimizer.param_groups]
    task.model.train()
    for step in range(steps):
        if task.schedule is not None:
            clock = Progress(tokens=tokens, rounds=0.0, fraction=step / steps)
            for group, peak in zip(task.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * task.schedule(clock)
        ids = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)
        indices = sample_indices(ids, len(task.dataset), seed)
        batch = torch.utils.data.default_collate([task.dataset[i] for i in indices])
        loss = task.loss_fn(task.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if task.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), task.clip_norm)
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)
        tokens += task.tokens_of(batch)
        if report is not None:
            report(step + 1, float(loss.detach()))
    parameters = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    return Baseline(
        name=name,
        steps=steps,
        loss=task.evaluate(task.model),
        tokens=tokens,
        seconds=time.monotonic() - began,
        bytes_per_peer=steps * ring_bytes(parameters, peers),
    )
