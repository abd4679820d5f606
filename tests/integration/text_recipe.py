"""A recipe for tests: next byte of a text whose windows are numbers, for a log to name them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import decentral
from decentral.recipes import Recipe, Task
from decentral.text import Folder, TextWindows

CONTEXT = int(os.environ["TEXT_CONTEXT"])
STEPS, BATCH_SIZE = 5, 2
STEP_S = 0.05


def recipe() -> Recipe:
    return Recipe(name="text", version="1", build=build)


def loss_fn(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats per byte; each window is written down before it is trained on."""
    with Path(os.environ["TEXT_LOG"]).open("a") as log:
        log.write("".join(bytes(row[:CONTEXT].tolist()).decode() + "\n" for row in batch))
    time.sleep(STEP_S)
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def build(seed: int) -> Task:
    dataset = TextWindows(Folder(os.environ["TEXT_FOLDER"]), context=CONTEXT)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Embedding(dataset.vocabulary, 8), torch.nn.Linear(8, dataset.vocabulary)
    )
    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        strategy=decentral.DiLoCo(sync_every=STEPS, outer_momentum=0.6),
        dataset=dataset,
        batch_size=BATCH_SIZE,
        loss_fn=loss_fn,
        tokens_of=lambda batch: batch.shape[0] * CONTEXT,
        evaluate=lambda model: 0.0,
        rounds=100_000,
        num_workers=1,
        torch_threads=1,
    )
