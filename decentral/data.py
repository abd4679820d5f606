"""Batches from this peer's leases: different samples for every peer, each once per epoch.

    global id ──▶ epoch = id // n,  index = permutation(seed, epoch)[id % n] ──▶ dataset[index]

The permutation is computed id by id (a Feistel network over [0, n), walking cycles back into the
range), so that no peer ever holds a list of n indices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError
from decentral.leases import LeaseBook, Ranges, from_ids

_ROUNDS = 4


class Dataset(Protocol):
    """A map-style dataset (torch's will do)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def _mix(x: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """A 64-bit finalizer (splitmix64's constants): every input bit reaches every output bit."""
    x = x + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: NDArray[np.uint64], n: int, key: int) -> NDArray[np.uint64]:
    """A bijection of [0, n), chosen by `key`, at `positions`."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = positions.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        x = out[outside]
        left, right = x >> half, x & mask
        for i in range(_ROUNDS):
            subkey = (key + (i + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (_mix(right, subkey) & mask)
        out[outside] = (left << half) | right
        # The network permutes [0, 2^2·half): outside [0, n), go round the cycle once more.
        outside = out >= np.uint64(n)
    return out


def sample_indices(ids: NDArray[np.uint64], n: int, seed: int) -> list[int]:
    """Dataset indices of global sample ids: another permutation in every epoch."""
    epochs = ids // np.uint64(n)
    out = np.empty(len(ids), dtype=np.uint64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = int(_mix(np.array([epoch], dtype=np.uint64), seed & 0xFFFFFFFFFFFFFFFF)[0])
        out[here] = permute(ids[here] % np.uint64(n), n, key)
    return [int(index) for index in out]


class _LeaseSampler:
    """Index batches from the lease as it stands; notes which ids each batch holds."""

    def __init__(self, book: LeaseBook, n: int, batch_size: int, seed: int) -> None:
        self._book, self._n, self._batch_size, self._seed = book, n, batch_size, seed
        self.drawn: deque[Ranges] = deque()

    def __len__(self) -> int:
        samples = sum(len(r) for r in self._book.remaining)
        return -(-samples // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        ids = [i for r in self._book.remaining for i in range(r.start, r.stop)]
        for at in range(0, len(ids), self._batch_size):
            batch = ids[at : at + self._batch_size]
            self.drawn.append(from_ids(batch))
            yield sample_indices(np.array(batch, dtype=np.uint64), self._n, self._seed)


class LeasedData:
    """What `run.data` returns: batches until the run ends for all. One pass only.

    `refill` is called when no sample is left: it contributes what there is, or waits for a lease;
    false means that the run is over.
    """

    def __init__(
        self,
        dataset: Dataset,
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
        self._sampler = _LeaseSampler(book, len(dataset), batch_size, seed)
        self._loader: Iterable[Any] = (
            _InProcess(dataset, self._sampler, collate)
            if collate is not None and not num_workers
            else _torch_loader(dataset, self._sampler, num_workers, collate)
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
            for batch in self._loader:
                self._book.hand_out(self._sampler.drawn.popleft())
                yield batch
                if self._finished() or self._book.generation != generation:
                    break


class _InProcess:
    """What torch's loader does without workers; a peer without torch has this one only."""

    def __init__(
        self, dataset: Dataset, sampler: _LeaseSampler, collate: Callable[[list[Any]], Any]
    ) -> None:
        self._dataset, self._sampler, self._collate = dataset, sampler, collate

    def __iter__(self) -> Iterator[Any]:
        for indices in self._sampler:
            yield self._collate([self._dataset[index] for index in indices])


def _torch_loader(
    dataset: Dataset,
    sampler: _LeaseSampler,
    num_workers: int,
    collate: Callable[[list[Any]], Any] | None,
) -> Iterable[Any]:
    # Torch is imported here, and not by `import decentral.data`.
    from torch.utils.data import DataLoader

    # Any: torch asks for subclasses where it needs no more than these methods.
    samples: Any = dataset
    batches: Any = sampler
    loader: Any = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
    )
    return loader  # type: ignore[no-any-return]


def check_dataset(dataset: Any, batch_size: int) -> int:
    """Its length; a ConfigError where it cannot be leased."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, not {batch_size}")
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigError(
            "run.data wants a map-style dataset (__len__ and __getitem__): samples without ids "
            "cannot be leased"
        )
    if not len(dataset):
        raise ConfigError("the dataset is empty")
    return len(dataset)
