"""From text to token ids: bytes as they are, or a tokenizer that is installed.

"bytes"              256 bytes and a separator; needs nothing
"path/to/it.json"    a file of the package `tokenizers`
"tiktoken:gpt2"      an encoding of the package `tiktoken`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError
from decentral.text.optional import need

SEPARATOR = "<|endoftext|>"


class Tokenizer(Protocol):
    """Used in the process that reads samples, and in others after a fork."""

    name: str
    """Differs wherever ids differ: peers compare it when one joins."""
    vocabulary: int
    """All ids are below it."""
    separator: int
    """The id that ends a document."""
    bytewise: bool
    """One token per byte, so that nothing needs to be read to count tokens."""

    def encode(self, text: bytes, /) -> NDArray[np.int64]:
        """Ids of UTF-8 text, without separators; always the same for the same text."""
        ...


class Bytes:
    """Id = byte; 256 ends a document."""

    name = "bytes"
    vocabulary = 257
    separator = 256
    bytewise = True

    def encode(self, text: bytes) -> NDArray[np.int64]:
        return np.frombuffer(text, dtype=np.uint8).astype(np.int64)


class TokenizerFile:
    """A JSON file that the package `tokenizers` reads."""

    bytewise = False

    def __init__(self, path: Path, separator: str = SEPARATOR) -> None:
        package = need("tokenizers", f"the tokenizer {path}")
        try:
            content = path.read_bytes()
            self._tokenizer: Any = package.Tokenizer.from_str(content.decode())
        # The package raises bare exceptions.
        except Exception as error:
            raise ConfigError(f"{path} is no tokenizer: {error}", phase="text") from error
        # Windows are cut here; a file may ask to be cut and filled up as well.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if separator not in ids:
            raise ConfigError(
                f"{path} has no token {separator!r}: name the one that separates documents, "
                "load_tokenizer(…, separator=…)",
                phase="text",
            )
        self.separator = int(ids[separator])
        self.vocabulary = max(ids.values()) + 1
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.name = f"tokenizers {digest} {separator}"

    def encode(self, text: bytes) -> NDArray[np.int64]:
        words = text.decode("utf-8", "replace")
        ids = self._tokenizer.encode(words, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64)


class Tiktoken:
    """An encoding of the package `tiktoken`, which may fetch it from the network once."""

    bytewise = False

    def __init__(self, encoding: str) -> None:
        package = need("tiktoken", f"the encoding {encoding!r}")
        try:
            self._encoding: Any = package.get_encoding(encoding)
        # ValueError for a name that it does not know; what it raises offline is its own business.
        except Exception as error:
            raise ConfigError(
                f"the encoding {encoding!r} cannot be loaded: {error}", phase="text"
            ) from error
        self.separator = int(self._encoding.eot_token)
        self.vocabulary = int(self._encoding.n_vocab)
        self.name = f"tiktoken {encoding}"

    def encode(self, text: bytes) -> NDArray[np.int64]:
        words = text.decode("utf-8", "replace")
        return np.array(self._encoding.encode_ordinary(words), dtype=np.int64)


def load_tokenizer(name: str, separator: str = SEPARATOR) -> Tokenizer:
    """See above for names. `separator`: the token of a JSON file that ends a document."""
    if name == "bytes":
        return Bytes()
    kind, colon, rest = name.partition(":")
    if colon and kind == "tiktoken":
        return Tiktoken(rest)
    if name.endswith(".json"):
        return TokenizerFile(Path(name), separator)
    raise ConfigError(
        f"there is no tokenizer {name!r}: it is 'bytes', a .json file, or 'tiktoken:ENCODING'",
        phase="text",
    )
