"""The inner optimization: AdamW steps of one path on its shard, and what a path says of documents.

All is a pure function of its arguments: parameters, moments, documents, seed, step numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from decentral.data.order import sample_indices
from decentral.dipaco.documents import Tokens
from decentral.dipaco.flat import FlatModel
from decentral.errors import ConfigError, ContributionError
from decentral.schedule import Progress, cosine
from decentral.strategies.outer import whole, within

if TYPE_CHECKING:
    from decentral.types import Array

_JUDGED = 32
"""Documents per forward pass where nothing is trained: short enough for a beat a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """The inner optimization of every path, and of the pretraining."""

    steps: int = 100
    """H: steps per phase."""
    batch_size: int = 16
    """Documents per step."""
    lr: float = 1e-3
    """Its peak; a cosine over the run's steps, pretraining included, with a linear warm-up."""
    warmup: float = 0.03
    """Of the run's steps."""
    floor: float = 0.1
    """Of the peak, at the end."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """Of all parameters alike."""
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        whole("inner steps", self.steps, 1)
        whole("batch_size", self.batch_size, 1)
        within("the inner lr", self.lr, 0, 10, open_below=True)
        within("weight_decay", self.weight_decay, 0, 10)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are in [0, 1), not {self.betas}")
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm is above 0, not {self.clip_norm!r}")
        cosine(warmup=self.warmup, floor=self.floor)

    def lr_at(self, step: int, of: int) -> float:
        """The learning rate of step `step` (from 0) of a run of `of`."""
        schedule = cosine(warmup=self.warmup, floor=self.floor)
        return self.lr * schedule(Progress(tokens=0, rounds=0.0, fraction=step / of))


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's, as flat as the parameters (float32 [split.size])."""

    exp_avg: Array
    exp_avg_sq: Array


def train(
    model: FlatModel,
    moments: Moments,
    documents: Tokens,
    inner: Inner,
    *,
    first: int,
    steps: int,
    of: int,
    seed: int,
    beat: Callable[[], None],
) -> tuple[Moments, float]:
    """Steps first … first + steps − 1 of `of`, on batches of `documents`; `model` is changed.

    Which documents a step takes follows from its number: each once, in another order per epoch of
    the shard. Returns the moments afterwards and the mean loss in nats per token."""
    flat = model.flat
    optimizer = torch.optim.AdamW(
        [flat], lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay, foreach=False
    )
    optimizer.state[flat] = {
        "step": torch.tensor(float(first)),
        "exp_avg": torch.from_numpy(moments.exp_avg.copy()),
        "exp_avg_sq": torch.from_numpy(moments.exp_avg_sq.copy()),
    }
    model.model.train()
    total = 0.0
    for step in range(first, first + steps):
        beat()
        ids = np.arange(step * inner.batch_size, (step + 1) * inner.batch_size, dtype=np.uint64)
        batch = documents[sample_indices(ids, len(documents), seed)]
        model.gradient.zero_()
        losses = token_losses(model.model, batch)
        loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([flat], inner.clip_norm)
        optimizer.param_groups[0]["lr"] = inner.lr_at(step, of)
        optimizer.step()
        total += float(loss.detach())
    if not np.isfinite(model.theta).all():
        raise ContributionError(
            f"parameters are not finite after step {first + steps}: a lower inner lr helps",
            phase="inner",
        )
    state = optimizer.state[flat]
    after = Moments(state["exp_avg"].numpy(), state["exp_avg_sq"].numpy())
    return after, total / max(1, steps)


def token_losses(model: nn.Module, ids: Tokens) -> torch.Tensor:
    """Nats of each token but the first, given those before: [n, T − 1] for integer ids [n, T]."""
    batch = torch.from_numpy(ids.astype(np.int64))
    logits = model(batch[:, :-1])
    flat = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return flat.view(len(batch), -1)


def judge(
    model: nn.Module, ids: Tokens, prefix: int, beat: Callable[[], None] = lambda: None
) -> Array:
    """Nats of every token after the prefix: float32 [n, T − prefix]."""
    model.eval()
    out = np.empty((len(ids), ids.shape[1] - prefix), np.float32)
    with torch.no_grad():
        for start in range(0, len(ids), _JUDGED):
            beat()
            part = ids[start : start + _JUDGED]
            out[start : start + len(part)] = token_losses(model, part)[:, prefix - 1 :].numpy()
    return out


def derived(seed: int, *words: object) -> int:
    """A seed of 63 bits for one purpose: the same on every machine."""
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own random numbers (initial parameters, dropout) from `seed`; then as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
