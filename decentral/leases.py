"""Which samples this peer may use, and which of them its uncommitted work has used.

    leased     [ consumed by commits | used | handed out | remaining ]
                                      └── contribute() names these

Ids are global and never repeat: id // len(dataset) is the epoch. A lease comes with a committed
entry, and only a committed contribution consumes it, so no sample counts twice (I7).
"""

from __future__ import annotations

from collections.abc import Iterable

from decentral.types import Range

Ranges = tuple[Range, ...]


def merge(ranges: Iterable[Range]) -> Ranges:
    """Sorted, disjoint, without empty ones."""
    merged: list[Range] = []
    for r in sorted(r for r in ranges if r.stop > r.start):
        if merged and r.start <= merged[-1].stop:
            merged[-1] = Range(merged[-1].start, max(merged[-1].stop, r.stop))
        else:
            merged.append(r)
    return tuple(merged)


def subtract(ranges: Iterable[Range], taken: Iterable[Range]) -> Ranges:
    """What is in `ranges` and not in `taken`."""
    left = merge(ranges)
    for t in merge(taken):
        pieces: list[Range] = []
        for r in left:
            pieces.append(Range(r.start, min(r.stop, max(r.start, t.start))))
            pieces.append(Range(max(r.start, min(r.stop, t.stop)), r.stop))
        left = merge(pieces)
    return left


def from_ids(ids: Iterable[int]) -> Ranges:
    return merge(Range(i, i + 1) for i in ids)


def total(ranges: Iterable[Range]) -> int:
    return sum(r.stop - r.start for r in ranges)


class LeaseBook:
    """Used from the user's thread only."""

    def __init__(self) -> None:
        self.granted: Ranges = ()
        self.used: Ranges = ()
        """In this peer's own weights, not yet counted by a commit."""
        self.handed_out: Ranges = ()
        """In a batch whose optimizer step has not happened yet."""
        self.generation = 0
        """Grows whenever samples that were to come may no longer be drawn."""

    @property
    def remaining(self) -> Ranges:
        return subtract(self.granted, (*self.used, *self.handed_out))

    @property
    def may_draw(self) -> bool:
        """Whether there is a sample for another step; data without ids always has one."""
        return not self.granted or bool(self.remaining)

    def grant(self, ranges: Ranges) -> None:
        """From a committed entry: all that this peer holds from here on."""
        ranges = merge(ranges)
        if ranges != self.granted:
            self.granted = ranges
            self.generation += 1

    def hand_out(self, ranges: Ranges) -> None:
        self.handed_out = merge((*self.handed_out, *ranges))

    def stepped(self) -> None:
        """An optimizer step has taken in whatever was handed out."""
        self.used = merge((*self.used, *self.handed_out))
        self.handed_out = ()

    def counted(self, ranges: Ranges) -> None:
        """A commit has consumed these."""
        self.used = subtract(self.used, ranges)

    def discard(self) -> None:
        """Own work is thrown away: its samples may be drawn again while they are leased here."""
        self.used = ()
        self.handed_out = ()
        self.generation += 1
