"""Where every token of a source is: pieces, and how many tokens come before each.

    piece        0          1         2            (of a document)     3 …
    tokens       5000       4100      300 and the separator            …
    offsets   0       5000       9100             9401                 …

Counting tokens takes one pass over the text (none where a token is a byte and the text is in plain
files). The pass can be kept on disk; it is made again when a file or the tokenizer has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from decentral.errors import ConfigError, DiskError
from decentral.text.sources import Source, Where
from decentral.text.tokenizers import Tokenizer

BYTES_PER_PIECE = 33
_VERSION = "1"
"""Of how text is cut and packed: another one gives other windows."""


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """A row per piece. `parts` are numbered over all sources."""

    parts: NDArray[np.uint32]
    starts: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    skips: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    ends: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """[pieces + 1]"""

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    def where(self, piece: int) -> Where:
        columns = (self.parts, self.starts, self.sizes, self.skips, self.lengths)
        return Where(*(int(column[piece]) for column in columns))

    def piece_of(self, token: int) -> int:
        return int(np.searchsorted(self.offsets, token, side="right")) - 1


class Sources:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._stops = list(accumulate(len(source.parts) for source in self._sources))

    def digest(self, tokenizer: Tokenizer, *, local: bool = False) -> str:
        """Of names, sizes and the tokenizer; `local`: and of where files are on this machine, and
        when they were modified."""
        known = hashlib.sha256(f"{_VERSION}\n{tokenizer.name}\n".encode())
        for source in self._sources:
            root = str(source.root.resolve()) if local else ""
            known.update(repr((type(source).__name__, source.field, root)).encode())
            for part in source.parts:
                # `repr` puts quotes around names: no two lists of files look the same.
                known.update(repr((part.name, part.size, local and part.modified_ns)).encode())
        return known.hexdigest()[:16]

    def read(self, where: Where) -> bytes:
        which = bisect_right(self._stops, where.part)
        source = self._sources[which]
        first = self._stops[which] - len(source.parts)
        return source.read(where._replace(part=where.part - first))

    def index(self, tokenizer: Tokenizer, max_pieces: int) -> Index:
        """One pass. A ConfigError before it would hold more than `max_pieces`."""
        parts, starts, sizes = array("I"), array("Q"), array("I")
        skips, lengths = array("I"), array("I")
        ends, offsets = array("B"), array("q", [0])
        total, first = 0, 0
        for source in self._sources:
            for where, ends_here, text in source.pieces():
                if len(parts) >= max_pieces:
                    raise ConfigError(
                        f"the text has more than {max_pieces} pieces, whose index would take over "
                        f"{max_pieces * BYTES_PER_PIECE >> 20} MiB of memory: raise max_pieces, "
                        "or train on less of it",
                        phase="text",
                    )
                if text is None and tokenizer.bytewise:
                    count = where.length
                else:
                    count = len(tokenizer.encode(source.read(where) if text is None else text))
                total += count + ends_here
                parts.append(first + where.part)
                starts.append(where.start)
                sizes.append(where.size)
                skips.append(where.skip)
                lengths.append(where.length)
                ends.append(ends_here)
                offsets.append(total)
            first += len(source.parts)
        return Index(
            np.frombuffer(parts, np.uint32),
            np.frombuffer(starts, np.uint64),
            np.frombuffer(sizes, np.uint32),
            np.frombuffer(skips, np.uint32),
            np.frombuffer(lengths, np.uint32),
            np.frombuffer(ends, np.uint8),
            np.frombuffer(offsets, np.int64),
        )

    def kept_index(self, tokenizer: Tokenizer, max_pieces: int, folder: Path | None) -> Index:
        """The same, from `folder` where an earlier process has left it there."""
        if folder is None:
            return self.index(tokenizer, max_pieces)
        key = self.digest(tokenizer, local=True)
        path = folder / f"text-{key}.safetensors"
        index = _load(path)
        if index is None:
            index = self.index(tokenizer, max_pieces)
            _save(index, path)
        return index


def _save(index: Index, path: Path) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: getattr(index, name) for name in Index.__slots__}, fresh)
        fresh.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        says = f"the index of the text cannot be kept in {path.parent}: {error}"
        raise DiskError(says, phase="text") from error


def _load(path: Path) -> Index | None:
    """None where it is not there, or not whole: then it is made again."""
    if not path.exists():
        return None
    try:
        index = Index(**load_file(path))
    except (OSError, SafetensorError, TypeError):
        return None
    pieces = len(index.parts)
    columns = (index.starts, index.sizes, index.skips, index.lengths, index.ends)
    whole = len(index.offsets) == pieces + 1 and all(len(one) == pieces for one in columns)
    return index if whole else None
