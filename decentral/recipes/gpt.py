"""A byte-level GPT of 117k parameters on the standard library's source: the demo's main job."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from decentral.recipes import Recipe, Task
from decentral.recipes.corpus import Corpus, standard_library
from decentral.recipes.gpt_model import GPT, GPTConfig
from decentral.schedule import cosine
from decentral.strategies.diloco import DiLoCo

BATCH_SIZE = 16
LEARNING_RATE = 3e-3
ROUNDS = 100
SYNC_EVERY = 15
VALIDATION_WINDOWS = 2048


def recipe() -> Recipe:
    return Recipe(name="gpt", version="1", build=build)


@dataclass(frozen=True, slots=True)
class Windows:
    """Sample i is bytes [i·T, i·T + T]: T inputs, and the same moved by one as targets."""

    text: NDArray[np.uint8]
    context: int
    digest: str

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> torch.Tensor:
        """int64 [T + 1]."""
        at = index * self.context
        return torch.from_numpy(self.text[at : at + self.context + 1].astype(np.int64))


def loss_fn(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats per byte of a batch [B, T + 1]."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def validation_batches(corpus: Corpus, context: int) -> list[torch.Tensor]:
    """A fixed slice: evenly spaced windows over all validation text."""
    windows = Windows(corpus.validation, context, "")
    count = min(VALIDATION_WINDOWS, len(windows))
    indices = np.linspace(0, len(windows) - 1, count).astype(int)
    return list(torch.split(torch.stack([windows[int(i)] for i in indices]), 256))


def evaluate(model: torch.nn.Module, batches: list[torch.Tensor]) -> float:
    """Mean nats per byte."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        losses = [(float(loss_fn(model, batch)), len(batch)) for batch in batches]
    model.train(was_training)
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def build(seed: int) -> Task:
    corpus = standard_library()
    config = GPTConfig()
    torch.manual_seed(seed)
    model = GPT(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    batches = validation_batches(corpus, config.context)
    return Task(
        model=model,
        optimizer=optimizer,
        # The outer momentum that suits a hundred rounds of a toy (see DiLoCo.outer_momentum).
        strategy=DiLoCo(sync_every=SYNC_EVERY, outer_lr=0.7, outer_momentum=0.6),
        dataset=Windows(corpus.train, config.context, corpus.digest),
        batch_size=BATCH_SIZE,
        loss_fn=loss_fn,
        tokens_of=lambda batch: batch.shape[0] * (batch.shape[1] - 1),
        evaluate=lambda model: evaluate(model, batches),
        rounds=ROUNDS,
        schedule=cosine(warmup=0.02),
        clip_norm=1.0,
        torch_threads=1,
    )
