"""Cells on this peer's disk: every round that it answers for is there before it says so.

    cells/path-0/round-00000012/   as any checkpoint (`decentral.checkpoint`): wholly there or not
    cells/path-0/round-00000013/

A round is written before its outcome is voted on. So what is committed is on the disks of all who
keep it, and a run whose peers have all gone comes back where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from decentral import checkpoint
from decentral.dataflow.program import Program
from decentral.errors import CorruptCheckpointError
from decentral.types import CommittedState

KEEP = 2
"""The newest committed round, and the one that may follow it."""


class Store:
    """Without a `home` it keeps nothing."""

    def __init__(self, home: Path | None, program: Program, run: Callable[[], bytes]) -> None:
        self._home, self._program, self._run = home, program, run
        self._lock = threading.Lock()
        """A round may come from elsewhere while the same one is finished here."""

    def save(self, cell: str, state: CommittedState, lineage: str = "") -> None:
        """Raises a DiskError."""
        folder = self._folder(cell)
        if folder is None:
            return
        with self._lock:
            checkpoint.save(state, folder, run=self._run(), lineage=lineage, keep=KEEP)

    def load(self, cell: str, round: int, root: bytes) -> CommittedState | None:
        """That very round, if it is here and whole."""
        folder = self._folder(cell)
        if folder is None or not folder.is_dir():
            return None
        try:
            return checkpoint.load_round(folder, round, root, self._program.schema(cell))
        except CorruptCheckpointError:
            return None

    def kept(self, cell: str) -> tuple[int, ...]:
        """Rounds that the disk can give back."""
        folder = self._folder(cell)
        return checkpoint.kept(folder) if folder is not None and folder.is_dir() else ()

    def _folder(self, cell: str) -> Path | None:
        return self._home / "cells" / cell.replace("/", "-") if self._home is not None else None
