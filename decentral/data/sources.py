"""Which datasets can be leased, and how a loader gets the sample of a global id."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decentral.data.order import sample_indices
from decentral.data.streams import Replayable, StreamSamples, shard_count
from decentral.errors import ConfigError
from decentral.fingerprint import dataset_fact


class Dataset(Protocol):
    """A map-style dataset (torch's will do)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset that can be leased."""

    samples: Any
    """`samples[key]` is a sample."""
    keys: Callable[[NDArray[np.uint64], int], list[int]]
    """Of global sample ids, with the run's seed."""
    fact: str
    """For the fingerprint: peers with other data are refused when they join."""
    length: int | None
    """Samples of one epoch, where that is known."""


def source_of(dataset: Any) -> Source:
    """A ConfigError where it cannot be leased."""
    if isinstance(dataset, Replayable):
        return _stream(dataset)
    if _is_map_style(dataset):
        n = len(dataset)
        if not n:
            raise ConfigError("the dataset is empty", phase="data")
        return Source(
            samples=dataset,
            keys=lambda ids, seed: sample_indices(ids, n, seed),
            fact=dataset_fact(dataset),
            length=n,
        )
    if hasattr(dataset, "shard") and shard_count(dataset) > 0:
        return _stream(dataset)
    raise ConfigError(
        f"a {type(dataset).__name__} is no dataset that can be leased: its samples need ids that "
        "are the same on all peers. Implement __getitem__ and __len__ (map-style), "
        "iter_from(offset) (replayable), or num_shards and shard(num_shards, index) (shardable)",
        phase="data",
    )


def check_dataset(dataset: Any, batch_size: int) -> int | None:
    """Samples of one epoch, where known; a ConfigError where it cannot be leased."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, not {batch_size}", phase="data")
    return source_of(dataset).length


def _is_map_style(dataset: Any) -> bool:
    # Torch's base class gives iterable datasets a __getitem__ that only raises.
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(dataset, torch_data.IterableDataset):
        return False
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _stream(dataset: Any) -> Source:
    samples = StreamSamples(dataset)
    return Source(
        samples=samples,
        # A stream is read in its own order: going to and fro in it is what it is worst at.
        keys=lambda ids, seed: [int(id) for id in ids],
        fact=samples.fact,
        length=sum(samples.lengths) if samples.lengths is not None else None,
    )
