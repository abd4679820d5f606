"""Documents in a folder that `datasets` has written with save_to_disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from decentral.errors import ConfigError
from decentral.text.optional import need
from decentral.text.sources import Part, Piece, Where, cut_text, text_at

_ROWS = 1000
"""Read at a time while counting."""


class SavedDataset:
    """A row is a document, its text in `column`. Needs the package `datasets`."""

    def __init__(self, path: str | Path, column: str = "text") -> None:
        self.root, self.field = Path(path), column
        files = sorted(self.root.glob("*.arrow"))
        status = [(file.name, file.stat()) for file in files]
        self.parts = tuple(Part(name, one.st_size, one.st_mtime_ns) for name, one in status)
        if not self.parts:
            raise ConfigError(
                f"{path} has no *.arrow files: name the folder of one split, as save_to_disk wrote "
                "it",
                phase="text",
            )
        columns = self._dataset.column_names
        if column not in columns:
            raise ConfigError(
                f"{path} has no column {column!r}, but {', '.join(columns)}", phase="text"
            )

    @cached_property
    def _dataset(self) -> Any:
        package = need("datasets", f"the dataset {self.root}")
        try:
            return package.load_from_disk(str(self.root)).with_format(None)
        except Exception as error:
            raise ConfigError(
                f"{self.root} was not written by save_to_disk: {error}", phase="text"
            ) from error

    def pieces(self) -> Iterator[Piece]:
        for first in range(0, len(self._dataset), _ROWS):
            rows = self._dataset[first : first + _ROWS][self.field]
            for row, text in enumerate(rows, first):
                yield from cut_text(self._encoded(text, row), 0, row, 1)

    def read(self, where: Where) -> bytes:
        document = self._encoded(self._dataset[where.start][self.field], where.start)
        return text_at(where, document, str(self.root))

    def _encoded(self, text: Any, row: int) -> bytes:
        if not isinstance(text, str):
            raise ConfigError(f"{self.root}, row {row}: {self.field!r} is no string", phase="text")
        return text.encode("utf-8", "replace")
