"""Samples of iterable datasets by global id.

Lengths known (a replayable stream with `length`, shards with `shard_lengths`): the shards follow
one another, so that whoever comes late opens the one it needs and none before it.

    id          0 ─────────── 5 ──── 7 ─────────────── 13 ────────── 18 …
    shard       │      0      │  1   │        2        │      0      │      next epoch

Lengths unknown: the shards take turns, and a shard that ends begins again, for itself alone. Where
it ends is the same for everybody because the data are, so nobody has to tell anybody.

    id          0  1  2  3  4  5  6  7  8 …
    shard       0  1  2  0  1  2  0  1  2       id % n
    position    0  0  0  1  1  1  2  2  2       id // n, counted on over all passes of the shard
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from decentral.errors import ConfigError

TURNS = 16
"""Shards that take turns where no lengths are known; a process keeps as many iterators open."""
_OPEN = 4
"""Iterators that a process keeps open where the shards follow one another."""
_RECENT = 256
"""Samples of a plain shard that a process remembers: it cannot go back otherwise, and workers
fetch a few batches that are dropped and asked for again."""
_END: Any = object()


@runtime_checkable
class Replayable(Protocol):
    """A stream that can be read from any of its samples on.

    Two optional attributes: `length` (an int: samples of one epoch; without it the stream begins
    again where it ends) and `digest` (a string that differs where the data do). Both are compared
    when a peer joins.
    """

    def iter_from(self, offset: int, /) -> Iterator[Any]:
        """Sample `offset`, and those after it to the end of the stream (none from there on).

        Always the same samples, on every peer. It is called for every jump from one lease to
        another, so it seeks rather than reads its way there.
        """
        ...


class Shardable(Protocol):
    """A stream in parts, as a streaming dataset of `datasets` is.

    Two optional attributes: `shard_lengths` (the samples of every shard; see `Shards`) and `digest`
    (a string). Both are compared when a peer joins.
    """

    @property
    def num_shards(self) -> int: ...

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """Part `index` of `num_shards` (never more than there are).

        Replayable, or an iterable that begins anew, with the same samples, whenever it is
        iterated.
        """
        ...


class Shards:
    """A shardable dataset and how many samples each of its shards has."""

    def __init__(self, dataset: Any, lengths: Sequence[int]) -> None:
        self.num_shards = shard_count(dataset)
        self.shard_lengths = tuple(int(length) for length in lengths)
        self.digest = str(getattr(dataset, "digest", ""))
        self._dataset = dataset
        _check_lengths(self.shard_lengths, self.num_shards)

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        shard: Iterable[Any] = self._dataset.shard(num_shards=num_shards, index=index)
        return shard

    @classmethod
    def counted(cls, dataset: Any) -> Shards:
        """Reads all shards once, from beginning to end, to count their samples."""
        n = shard_count(dataset)
        shards = (dataset.shard(num_shards=n, index=i) for i in range(n))
        return cls(dataset, [sum(1 for _ in _open(shard, 0)) for shard in shards])


def shard_count(dataset: Any) -> int:
    """Older versions of `datasets` say n_shards."""
    count = getattr(dataset, "num_shards", None) or getattr(dataset, "n_shards", None)
    return int(count or 0)


def _check_lengths(lengths: Sequence[int], shards: int) -> None:
    if len(lengths) != shards:
        raise ConfigError(
            f"the dataset has {shards} shards, and shard_lengths has {len(lengths)} numbers",
            phase="data",
        )
    if min(lengths, default=0) < 0 or not sum(lengths):
        raise ConfigError(
            f"the lengths of shards are no counts of samples: {lengths[:8]}", phase="data"
        )


def _open(stream: Any, offset: int) -> Iterator[Any]:
    """A plain iterable has no other offset than 0."""
    iterator: Iterator[Any] = iter(
        stream.iter_from(offset) if isinstance(stream, Replayable) else stream
    )
    if iterator is stream:
        raise ConfigError(
            "a stream that is its own iterator can be read only once, so no other peer can take "
            "over its samples: return a new iterator from __iter__, or implement iter_from(offset)",
            phase="data",
        )
    return iterator


class Cursor:
    """One stream, read at any position; cheaply at the one after the last.

    A plain iterable goes forward by reading, and back by beginning again.
    """

    def __init__(self, stream: Any, name: str, length: int | None = None) -> None:
        """`length`: samples of one pass; None: found out at its end."""
        self._stream, self._name, self._length = stream, name, length
        self._seeks = isinstance(stream, Replayable)
        self._iterator: Iterator[Any] | None = None
        self._began = self._at = 0
        """Where the iterator was opened, and the offset of the sample that it gives next."""
        self._read_up_to = 0
        """No sample before this offset is missing from the stream."""
        self._recent: deque[Any] = deque(maxlen=0 if self._seeks else _RECENT)

    def read(self, position: int) -> Any:
        """The sample at `position`, counted on over passes: with 5 samples, 7 is offset 2."""
        sample = _END
        while sample is _END:  # once more where this read has found the length
            offset = position if self._length is None else position % self._length
            sample = self._read(offset)
        return sample

    def _read(self, offset: int) -> Any:
        behind = self._at - offset
        if 0 < behind <= len(self._recent):
            return self._recent[-behind]
        iterator = self._reach(offset)
        while True:
            sample = next(iterator, _END)
            if sample is _END:
                self._ended()
                return _END
            self._at += 1
            self._recent.append(sample)
            if self._at > offset:
                break
        self._read_up_to = max(self._read_up_to, self._at)
        if self._at == self._length:
            if next(iterator, _END) is not _END:
                raise ConfigError(
                    f"{self._name} goes on after the {self._length} samples that it should have",
                    phase="data",
                )
            self._iterator = None
        return sample

    def _reach(self, offset: int) -> Iterator[Any]:
        """An iterator that gives the sample at `offset` next, or by and by."""
        if self._iterator is not None and (
            self._at == offset or (self._at < offset and not self._seeks)
        ):
            return self._iterator
        self._recent.clear()
        self._began = self._at = offset if self._seeks else 0
        self._iterator = _open(self._stream, offset)
        return self._iterator

    def _ended(self) -> None:
        self._iterator = None
        if self._length is not None:
            raise ConfigError(
                f"{self._name} ended after {self._at} samples; it should have {self._length}",
                phase="data",
            )
        if self._at == self._began:
            # Opened at the end or after it: where that is, only reading up to it can tell.
            self._at = self._read_up_to
            self._at += sum(1 for _ in _open(self._stream, self._at))
        if not self._at:
            raise ConfigError(f"{self._name} has no samples", phase="data")
        self._length = self._at


class StreamSamples:
    """An iterable dataset as a map from global ids to samples, which any loader can use.

    Each process that reads (a worker, or the peer itself) has cursors of its own.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._cursors: OrderedDict[int, Cursor] = OrderedDict()
        self.lengths = self._declared()
        if isinstance(dataset, Replayable):
            self._shards = 1
        elif self.lengths is not None:
            self._shards = len(self.lengths)
        else:
            self._shards = min(TURNS, shard_count(dataset))
        self._ends = list(accumulate(self.lengths)) if self.lengths is not None else []

    def _declared(self) -> tuple[int, ...] | None:
        if isinstance(self._dataset, Replayable):
            length = getattr(self._dataset, "length", None)
            if length is None:
                return None
            if not isinstance(length, int) or length < 1:
                raise ConfigError(
                    f"the length of a stream is a number of samples, or None, not {length!r}",
                    phase="data",
                )
            return (length,)
        lengths = getattr(self._dataset, "shard_lengths", None)
        if lengths is None:
            return None
        _check_lengths(lengths, shard_count(self._dataset))
        return tuple(int(length) for length in lengths)

    @property
    def fact(self) -> str:
        """What peers must have in common."""
        if self.lengths is None:
            says = f"stream of unknown length in {self._shards} shards"
        else:
            which = hashlib.sha256(repr(self.lengths).encode()).hexdigest()[:8]
            says = f"stream of {self._ends[-1]} samples in {self._shards} shards ({which})"
        return f"{says} {getattr(self._dataset, 'digest', '')}".strip()

    def place(self, id: int) -> tuple[int, int]:
        """(shard, position in it)."""
        if self.lengths is None:
            return id % self._shards, id // self._shards
        at = id % self._ends[-1]
        shard = bisect_right(self._ends, at)
        return shard, at - (self._ends[shard] - self.lengths[shard])

    def __getitem__(self, id: int) -> Any:
        shard, position = self.place(id)
        return self._cursor(shard).read(position)

    def _cursor(self, shard: int) -> Cursor:
        cursor = self._cursors.get(shard)
        if cursor is None:
            name, stream = "the stream", self._dataset
            if not isinstance(stream, Replayable):
                name = f"shard {shard} of {self._shards}"
                stream = stream.shard(num_shards=self._shards, index=shard)
            length = self.lengths[shard] if self.lengths is not None else None
            cursor = self._cursors[shard] = Cursor(stream, name, length)
        self._cursors.move_to_end(shard)
        if self.lengths is not None and len(self._cursors) > _OPEN:
            self._cursors.popitem(last=False)
        return cursor
