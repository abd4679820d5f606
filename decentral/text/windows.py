"""Packed windows of tokens: a map-style dataset whose samples are the same on every peer.

tokens    d o c u m e n t ␄ a n o t h e r ␄ a n d ␄ …       documents, ended by a separator
window 0  └───────┘
window 1          └───────┘                                 T inputs, and each one's successor:
window 2                  └───────┘                         neighbours share a token
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError
from decentral.text.index import Sources
from decentral.text.sources import Source, changed
from decentral.text.tokenizers import Tokenizer, load_tokenizer

MAX_PIECES = 30_000_000
"""About a gigabyte of index: for 100 GB of long documents, or less of short ones."""
_KEPT = 32
"""Tokenized pieces that each process remembers."""


class TextWindows:
    """Sample i is tokens [i·T, i·T + T] of all documents: int64 [T + 1], T being `context`.

    The text is read, and tokenized, when a sample is taken: in the workers of `run.data(…,
    num_workers=N)`. The index is made at once, here: for plain files and bytes it takes no reading
    at all; otherwise all the text is tokenized once to count tokens, and `cache` (a folder) keeps
    the counts for the next start.

    At the end of all text less than a window may be left; it is not used.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        *,
        context: int,
        tokenizer: Tokenizer | str = "bytes",
        cache: str | Path | None = None,
        max_pieces: int = MAX_PIECES,
    ) -> None:
        if context < 1:
            raise ConfigError(f"context is at least 1 token, not {context}", phase="text")
        several = sources if isinstance(sources, Sequence) else [sources]
        self._tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._sources = Sources(several)
        self.context = context
        self._index = self._sources.kept_index(
            self._tokenizer, max_pieces, Path(cache) if cache is not None else None
        )
        self._recent: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.digest = f"{self._sources.digest(self._tokenizer)} in windows of {context}"
        """In the fingerprint: peers whose files or tokenizer differ are refused when they join."""
        if not len(self):
            raise ConfigError(
                f"{self.tokens} tokens of text are too few for a window of {context} + 1",
                phase="text",
            )

    @property
    def tokens(self) -> int:
        """Of all text, with separators."""
        return self._index.tokens

    @property
    def vocabulary(self) -> int:
        """All ids are below it."""
        return self._tokenizer.vocabulary

    def __len__(self) -> int:
        return (self.tokens - 1) // self.context

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        at = index * self.context
        window = np.empty(self.context + 1, dtype=np.int64)
        piece = self._index.piece_of(at)
        skip = at - int(self._index.offsets[piece])
        filled = 0
        while filled < len(window):
            tokens = self._tokens_of(piece)[skip : skip + len(window) - filled]
            window[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            piece, skip = piece + 1, 0
        return window

    def _tokens_of(self, piece: int) -> NDArray[np.int64]:
        tokens = self._recent.get(piece)
        if tokens is None:
            tokens = self._recent[piece] = self._tokenized(piece)
            if len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        self._recent.move_to_end(piece)
        return tokens

    def _tokenized(self, piece: int) -> NDArray[np.int64]:
        index = self._index
        tokens = self._tokenizer.encode(self._sources.read(index.where(piece)))
        if index.ends[piece]:
            tokens = np.append(tokens, self._tokenizer.separator)
        if len(tokens) != index.offsets[piece + 1] - index.offsets[piece]:
            raise changed("the text")
        return tokens
