"""Where documents are: files of text, lines of JSON.

A document is found in *pieces* of its text, which are read and tokenized one at a time:

    document   ├── 4 KiB ──┼── 4 KiB ──┼─ 1 KiB ─┤     cut after a line, or at least a character
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from decentral.errors import ConfigError

PIECE = 4096
"""Bytes of text that are tokenized at a time. A window that needs a few of them costs all of them,
and no token reaches from one piece into the next."""
_MARGIN = 1024
"""Bytes before the end of a piece that are searched for the end of a line."""
MAX_LINE = 64 * 1024 * 1024
"""Bytes of a line of JSON."""


class Part(NamedTuple):
    """A file, or what stands for one."""

    name: str
    """Relative to the source: two peers keep the same data in different folders."""
    size: int
    modified_ns: int


class Where(NamedTuple):
    """Of a piece of text."""

    part: int
    start: int
    size: int
    """What these two count is the source's own: bytes of a file, rows."""
    skip: int
    length: int
    """Bytes of the text that is found there."""


class Piece(NamedTuple):
    where: Where
    ends: bool
    """Whether a document ends with it."""
    text: bytes | None
    """Where it had to be read anyway."""


class Source(Protocol):
    """Documents in a fixed order. Opens files when it reads, so that workers may share it."""

    parts: tuple[Part, ...]
    root: Path
    """Where the parts are on this machine."""
    field: str
    """Which text of them is meant, where they hold several; peers must agree on it."""

    def pieces(self) -> Iterator[Piece]: ...

    def read(self, where: Where, /) -> bytes:
        """UTF-8 text."""
        ...


def changed(name: str) -> ConfigError:
    return ConfigError(f"{name} has changed since it was indexed", phase="text")


@dataclass(frozen=True, slots=True)
class _Files:
    root: Path
    paths: tuple[Path, ...]
    parts: tuple[Part, ...]

    def open(self, part: int) -> BinaryIO:
        try:
            return self.paths[part].open("rb")
        except OSError as error:
            raise ConfigError(
                f"{self.parts[part].name} cannot be read: {error}", phase="text"
            ) from error

    def bytes_at(self, part: int, start: int, size: int) -> bytes:
        with self.open(part) as file:
            file.seek(start)
            found = file.read(size)
        if len(found) != size:
            raise changed(self.parts[part].name)
        return found


def _files(path: str | Path, pattern: str) -> _Files:
    """The file at `path`, or those in the folder, sorted by name."""
    path = Path(path)
    root = path if path.is_dir() else path.parent
    found = [one for one in path.glob(pattern) if one.is_file()] if path.is_dir() else [path]
    named = sorted((one.relative_to(root).as_posix(), one) for one in found)
    try:
        parts = []
        for name, one in named:
            status = one.stat()
            parts.append(Part(name, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise ConfigError(f"there is no text at {path}: {error}", phase="text") from error
    if not any(part.size for part in parts):
        raise ConfigError(f"there is no text in {path} (files {pattern})", phase="text")
    return _Files(root, tuple(one for _, one in named), tuple(parts))


class Folder:
    """Text files (UTF-8), one document each: a file, or those of a folder that fit `pattern`."""

    def __init__(self, path: str | Path, pattern: str = "**/*.txt") -> None:
        self._files = _files(path, pattern)
        self.parts, self.root, self.field = self._files.parts, self._files.root, ""

    def pieces(self) -> Iterator[Piece]:
        for number, part in enumerate(self.parts):
            if 0 < part.size <= PIECE:
                yield Piece(Where(number, 0, part.size, 0, part.size), True, None)
            elif part.size:
                with self._files.open(number) as file:
                    yield from _cut(file, number, part)

    def read(self, where: Where) -> bytes:
        return self._files.bytes_at(where.part, where.start, where.size)


def _cut(file: BinaryIO, number: int, part: Part) -> Iterator[Piece]:
    """The pieces of a file, of which no more is read than the places to cut at."""
    start = 0
    while part.size - start > PIECE:
        file.seek(start + PIECE - _MARGIN)
        tail = file.read(_MARGIN)
        if len(tail) != _MARGIN:
            raise changed(part.name)
        size = PIECE - _MARGIN + _good_cut(tail)
        yield Piece(Where(number, start, size, 0, size), False, None)
        start += size
    size = part.size - start
    yield Piece(Where(number, start, size, 0, size), True, None)


def cut_text(text: bytes, part: int, start: int, size: int) -> Iterator[Piece]:
    """The pieces of a document that is in memory."""
    skip = 0
    while skip < len(text):
        length = len(text) - skip
        if length > PIECE:
            length = PIECE - _MARGIN + _good_cut(text[skip + PIECE - _MARGIN : skip + PIECE])
        upto = skip + length
        yield Piece(Where(part, start, size, skip, length), upto == len(text), text[skip:upto])
        skip = upto


def text_at(where: Where, document: bytes, name: str) -> bytes:
    text = document[where.skip : where.skip + where.length]
    if len(text) != where.length:
        raise changed(name)
    return text


def _good_cut(tail: bytes) -> int:
    """After the last line, or before the last space, or at least not inside a character."""
    if newline := tail.rfind(b"\n") + 1:
        return newline
    if (space := tail.rfind(b" ")) > 0:
        return space
    cut = len(tail)
    # 10xxxxxx goes on with a character; one has four bytes at most.
    while cut > len(tail) - 4 and tail[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1


class JsonLines:
    """Lines of JSON, one document each, its text in `field`: a file, or those of a folder."""

    def __init__(self, path: str | Path, field: str = "text", pattern: str = "**/*.jsonl") -> None:
        self._files = _files(path, pattern)
        self.parts, self.root, self.field = self._files.parts, self._files.root, field

    def pieces(self) -> Iterator[Piece]:
        for number, part in enumerate(self.parts):
            with self._files.open(number) as file:
                start = 0
                while line := file.readline(MAX_LINE + 1):
                    if len(line) > MAX_LINE:
                        where = f"{part.name}, byte {start}"
                        raise ConfigError(
                            f"{where}: a line is longer than {MAX_LINE} bytes", phase="text"
                        )
                    if line.strip():
                        text = self._text(line, number, start)
                        yield from cut_text(text, number, start, len(line))
                    start += len(line)

    def read(self, where: Where) -> bytes:
        line = self._files.bytes_at(where.part, where.start, where.size)
        document = self._text(line, where.part, where.start)
        return text_at(where, document, self.parts[where.part].name)

    def _text(self, line: bytes, part: int, start: int) -> bytes:
        where = f"{self.parts[part].name}, byte {start}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: no JSON: {error}", phase="text") from error
        text = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"{where}: no string {self.field!r} in this line", phase="text")
        return text.encode("utf-8", "replace")  # JSON may hold halves of characters
