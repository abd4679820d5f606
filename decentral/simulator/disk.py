"""A disk that keeps only what was synced.

write ──▶ written ── fsync returns ──▶ synced
             │                           │
process dies │ survives (page cache)     │ survives
power fails  │ may be lost               │ survives
"""

from __future__ import annotations

from random import Random

KEPT = 3


class Disk:
    """The durable record of one peer, replaced as a whole (written aside, then renamed)."""

    def __init__(self) -> None:
        self.synced: bytes | None = None
        self.written: bytes | None = None
        self.checkpoints: dict[str, dict[int, bytes]] = {}
        """Per tag, round and root of the newest few checkpoints, all durable."""

    def write(self, record: bytes) -> None:
        self.written = record

    def sync(self) -> None:
        self.synced = self.written

    def read(self) -> bytes | None:
        return self.written

    def process_died(self) -> None:
        """The operating system lives on and writes out what it was given."""
        self.synced = self.written

    def power_failed(self, rng: Random) -> None:
        """What was not synced is on the platter, or it is not."""
        if self.written is not self.synced and rng.random() < 0.5:
            self.synced = self.written
        self.written = self.synced

    def keep_checkpoint(self, tag: str, number: int, root: bytes) -> tuple[int, ...]:
        """Add one, drop the oldest; which rounds are there now."""
        kept = self.checkpoints.setdefault(tag, {})
        kept[number] = root
        for old in sorted(kept)[:-KEPT]:
            del kept[old]
        return tuple(sorted(kept))

    def wipe(self) -> None:
        self.synced = self.written = None
        self.checkpoints = {}
