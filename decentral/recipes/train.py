"""The plain training loop of the command line, for any recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from decentral.errors import ConfigError
from decentral.mesh_port import Holding
from decentral.model_tensors import ModelTensors
from decentral.options import RunOptions
from decentral.recipes import Recipe, Task
from decentral.run import Run
from decentral.strategies.named import parse


def run_options(
    recipe: Recipe,
    task: Task,
    *,
    home: Path | str | None = None,
    rounds: int | None = None,
    seed: int = 0,
    witness: int = 0,
) -> RunOptions:
    """What a run of this recipe is made with."""
    return RunOptions(
        schedule=task.schedule,
        accumulate=task.accumulate,
        clip_norm=task.clip_norm,
        rounds=rounds or task.rounds,
        home=home,
        seed=seed,
        recipe=recipe.name,
        recipe_version=recipe.version,
        witness=witness,
    )


def adjusted(task: Task, *, strategy: str | None = None, lr: float | None = None) -> Task:
    """The task with another strategy, in one word (`decentral.strategies.named`), or with another
    peak learning rate (of its first parameter group; the others keep their ratio to it)."""
    if strategy is not None:
        task = replace(task, strategy=parse(strategy))
    if lr is not None:
        if not lr > 0:
            raise ConfigError(f"lr is positive, not {lr}")
        groups = task.optimizer.param_groups
        factor = lr / groups[0]["lr"]
        for group in groups:
            group["lr"] *= factor
    return task


def holdings(task: Task) -> dict[str, Holding]:
    """What an observer needs to know of a model whose committed state it wants to fetch."""
    return {"": Holding(schema=ModelTensors(task.model).layout.schema())}


def train(task: Task, run: Run, *, evaluate_every: int = 10, members: int = 1) -> None:
    """Until the run ends. Every `evaluate_every` rounds, and at the last one, the `round` event
    has a `val_loss`: of the committed parameters, so equal on all peers. The first step waits for
    so many `members`."""
    if task.torch_threads is not None:
        torch.set_num_threads(task.torch_threads)

    def evaluate(run: Run) -> Mapping[str, Any]:
        if run.round % evaluate_every and run.finished is None:
            return {}
        return {"val_loss": round(task.evaluate(task.model), 4)}

    run.each_round(evaluate)
    task.model.train()
    batches = run.data(task.dataset, task.batch_size, num_workers=task.num_workers)
    run.wait_for_members(members)
    for batch in batches:
        loss = task.loss_fn(task.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        run.step(loss, tokens=task.tokens_of(batch))
