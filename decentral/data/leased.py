"""Batches from this peer's leases: different samples for every peer, each once per epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from decentral.data.sources import Source, check_dataset, source_of
from decentral.data.streams import StreamSamples
from decentral.errors import DecentralError
from decentral.leases import LeaseBook, Ranges, from_ids


class _LeaseSampler:
    """Index batches from the lease as it stands; notes which ids each batch holds."""

    def __init__(self, book: LeaseBook, source: Source, batch_size: int, seed: int) -> None:
        self._book, self._source = book, source
        self._batch_size, self._seed = batch_size, seed
        self.drawn: deque[Ranges] = deque()

    def __len__(self) -> int:
        samples = sum(len(r) for r in self._book.remaining)
        return -(-samples // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        ids = [i for r in self._book.remaining for i in range(r.start, r.stop)]
        for at in range(0, len(ids), self._batch_size):
            batch = ids[at : at + self._batch_size]
            self.drawn.append(from_ids(batch))
            yield self._source.keys(np.array(batch, dtype=np.uint64), self._seed)


class LeasedData:
    """What `run.data` returns: batches until the run ends for all. One pass only.

    `refill` is called when no sample is left: it contributes what there is, or waits for a lease;
    false means that the run is over.
    """

    def __init__(
        self,
        dataset: Any,
        book: LeaseBook,
        *,
        batch_size: int,
        seed: int,
        num_workers: int,
        refill: Callable[[], bool],
        finished: Callable[[], bool],
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        check_dataset(dataset, batch_size)
        self._book, self._refill, self._finished = book, refill, finished
        source = source_of(dataset)
        self._sampler = _LeaseSampler(book, source, batch_size, seed)
        self._loader: Iterable[Any] = (
            _InProcess(source.samples, self._sampler, collate)
            if collate is not None and not num_workers
            else _torch_loader(source.samples, self._sampler, num_workers, collate)
        )

    def __iter__(self) -> Iterator[Any]:
        while not self._finished():
            if not self._book.remaining:
                if not self._refill():
                    return
                continue
            # Workers read ahead within a lease, never across one: what they fetched of a lease
            # that is gone is dropped when the loader is iterated again.
            self._sampler.drawn.clear()
            generation = self._book.generation
            for batch in self._batches():
                self._book.hand_out(self._sampler.drawn.popleft())
                yield batch
                if self._finished() or self._book.generation != generation:
                    break

    def _batches(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except DecentralError as error:
            if "\n" not in error.says:
                raise
            # From a worker comes its whole traceback, as the text of the error: the sentence is
            # its last line, "decentral.errors.ConfigError: the stream ended … (phase: data)".
            sentence = error.says.strip().splitlines()[-1].partition(": ")[2]
            says = sentence.removesuffix(" (phase: data)")
            raise type(error)(says, phase="data") from error


class _InProcess:
    """What torch's loader does without workers; a peer without torch has this one only."""

    def __init__(
        self, samples: Any, sampler: _LeaseSampler, collate: Callable[[list[Any]], Any]
    ) -> None:
        self._samples, self._sampler, self._collate = samples, sampler, collate

    def __iter__(self) -> Iterator[Any]:
        for keys in self._sampler:
            yield self._collate([self._samples[key] for key in keys])


def _torch_loader(
    samples: Any,
    sampler: _LeaseSampler,
    num_workers: int,
    collate: Callable[[list[Any]], Any] | None,
) -> Iterable[Any]:
    # Torch is imported here, and not by `import decentral.data`.
    from torch.utils.data import DataLoader

    # Any: torch asks for subclasses where it needs no more than these methods.
    batches: Any = sampler
    loader: Any = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        worker_init_fn=_all_of_it if isinstance(samples, StreamSamples) else None,
    )
    return loader  # type: ignore[no-any-return]


def _all_of_it(worker: int) -> None:
    """In a worker process. Many iterable datasets give each of torch's workers another part of
    themselves; here ids say who reads what, so they must not know that they are in one."""
    from torch.utils.data._utils import worker as this_one

    this_one._worker_info = None
