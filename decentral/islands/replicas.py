"""DDP: all ranks hold the whole model, rank 0 is the peer, and the others follow it.

    rank 0   lease ─ indices ─┬─ forward, backward ─ step ─ outer round ─┬─ indices …
    rank 1                    └─ forward, backward ─ step ───────────────┘
                       news: indices, the schedule's clock, whether parameters have changed

DDP makes equal gradients of the ranks' batches, so equal steps keep the replicas equal; what the
outer rounds change on rank 0 is sent to the others before the next batch. To the run such an island
is one peer with a larger batch: it trains with islands of any size, and with single GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgpack
import torch
import torch.distributed as dist

from decentral.data import Dataset, check_dataset
from decentral.errors import ConfigError, DecentralError
from decentral.inner_step import InnerStep
from decentral.islands.talk import Talk
from decentral.islands.watch import Watch
from decentral.lifetime import in_full, why_it_ended
from decentral.model_tensors import ModelTensors
from decentral.run import Run
from decentral.schedule import Progress

if TYPE_CHECKING:
    from decentral.types import Array


class LeaderTensors(ModelTensors):
    """Rank 0's model; it notes when parameters change otherwise than by an inner step."""

    changes = 0

    def write(self, flat: Array) -> None:
        self.changes += 1
        super().write(flat)

    def restore(self, saved: list[torch.Tensor]) -> None:
        self.changes += 1
        super().restore(saved)


class LeaderStep(InnerStep):
    """Rank 0's inner steps; it notes when the optimizer has to start afresh."""

    forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1
        super().forget()


class ReplicatedRun:
    """A run as a script sees it on each rank of a DDP island. Made by `decentral.island`.

    `data`, `step`, `save` and `close` are called by all ranks; what else there is to do with a run
    (`run`, with `each_round`, `outer`, `stop` and the rest) is rank 0's.
    """

    def __init__(
        self,
        talk: Talk,
        watch: Watch,
        model: torch.nn.Module,
        step: InnerStep,
        run: Run | None,
        tensors: LeaderTensors | None,
        join_word: str,
    ) -> None:
        """`model`: under its DDP wrapper; `run` and `tensors`: rank 0's."""
        self.run = run
        """Rank 0's; None on the other ranks."""
        self.join_word = join_word
        self.finished: str | None = None
        self.round, self.tokens, self.state_hash = 0, 0, ""
        """As of the last batch: committed rounds, their tokens, and the root of the state."""
        self.progress = Progress(tokens=0, rounds=0.0, fraction=None)
        self._talk, self._watch, self._model = talk, watch, model
        self._step, self._tensors = step, tensors
        self._changes, self._forgotten = -1, 0

    # ------------------------------------------------------------------ training

    def data(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Iterator[Any]:
        """This rank's share of what rank 0 has leased; `batch_size` is a rank's."""
        check_dataset(dataset, batch_size)
        if num_workers:
            raise ConfigError("a DDP island loads its samples in the training process: num_workers")
        from torch.utils.data import default_collate

        return self._batches(dataset, batch_size, collate or default_collate)

    def _batches(
        self, dataset: Dataset, batch_size: int, collate: Callable[[list[Any]], Any]
    ) -> Iterator[Any]:
        source = self._leased(dataset, batch_size) if self.run is not None else None
        while True:
            indices = self._next(next(source, None) if source is not None else None)
            if indices is None:
                return
            # A lease may end in fewer samples than there are ranks; DDP wants all of them.
            mine = indices[self._talk.rank :: self._talk.size] or indices[:1]
            yield collate([dataset[index] for index in mine])

    def step(self, loss: torch.Tensor | float, tokens: int | None = None) -> None:
        """After `loss.backward()`. `tokens` are the whole island's for this batch, of which rank
        0's word counts (default: its samples)."""
        if self.run is not None:
            self.run.step(loss, tokens)
        elif self.finished is None:
            self._step(loss, tokens or 1, self.progress)

    def save(self, path: str | Path) -> Path:
        """Export the committed parameters and buffers (fp32): rank 0 writes, all wait for it."""
        saved = str(self.run.save(path)).encode() if self.run is not None else None
        return Path(self._talk.share(saved).decode())

    # ------------------------------------------------------------------ its end

    def close(self, reason: str = "done") -> None:
        """Leave the run. Idempotent."""
        self._watch.close()
        if self.run is not None:
            self.run.close(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cause: DecentralError | None = None
        if error is not None:
            if self.run is not None:
                self.run.leave_in_peace()
            cause = self._watch.explain(error)
            self._watch.close(in_full(cause or error))
        self.close(why_it_ended(cause or error))
        if cause is not None and cause is not error:
            raise cause from error

    # ------------------------------------------------------------------ inside

    def _leased(self, dataset: Dataset, batch_size: int) -> Iterator[list[int]]:
        assert self.run is not None
        return iter(self.run.data(_Indices(dataset), batch_size * self._talk.size, collate=list))

    def _next(self, indices: list[int] | None) -> list[int] | None:
        """Rank 0's indices for all; with them comes what else the others have to know."""
        news = msgpack.unpackb(self._talk.share(self._news(indices) if self.run else None))
        indices, self.finished, changes, forgotten, clock, seen = news
        self.progress = Progress(tokens=clock[0], rounds=clock[1], fraction=clock[2])
        self.round, self.tokens, self.state_hash = seen
        if forgotten != self._forgotten and self.run is None:
            self._step.forget()
        if changes != self._changes:
            with torch.no_grad():
                for tensor in (*self._model.parameters(), *self._model.buffers()):
                    dist.broadcast(tensor, 0)
        self._changes, self._forgotten = changes, forgotten
        return None if indices is None else [int(index) for index in indices]

    def _news(self, indices: list[int] | None) -> bytes:
        assert self.run is not None and self._tensors is not None
        assert isinstance(self._step, LeaderStep)
        run, clock = self.run, self.run.progress
        over = None if indices is not None else (run.finished or "done")
        return bytes(
            msgpack.packb(
                (
                    indices,
                    over,
                    self._tensors.changes,
                    self._step.forgotten,
                    (clock.tokens, clock.rounds, clock.fraction),
                    (run.round, run.tokens, run.state_hash),
                )
            )
        )


class _Indices:
    """A dataset of its own indices: rank 0 leases them for all ranks."""

    def __init__(self, dataset: Dataset) -> None:
        self._length = len(dataset)
        self.digest: Any = getattr(dataset, "digest", "")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index
