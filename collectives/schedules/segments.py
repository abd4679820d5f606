"""How a buffer is cut: whole blocks, in proportion to what each owner should carry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from decentral.collectives.plan import ALIGNMENT, Segment


def even_segments(members: int, count: int, alignment: int = ALIGNMENT) -> tuple[Segment, ...]:
    """One segment per rank, whole blocks of `alignment`, equal within one block.

    Small buffers leave some ranks with an empty segment: fewer, larger frames.
    """
    blocks = -(-count // alignment)
    cuts = [min(blocks * rank // members * alignment, count) for rank in range(members + 1)]
    return tuple(Segment(cuts[rank], cuts[rank + 1] - cuts[rank], rank) for rank in range(members))


def cut(count: int, shares: Sequence[float], alignment: int) -> list[int]:
    """Offsets [0, …, count]: part i has about shares[i] / Σ shares of the elements.

    Whole blocks of `alignment`, each cut within half a block of where it should be. Plain IEEE
    operations in a fixed order, so that all machines cut alike; not `sum`, which adds floats in
    another way from Python 3.12 on.
    """
    blocks = -(-count // alignment)
    sums = list(accumulate(shares))
    ends = [int(end / sums[-1] * blocks + 0.5) for end in sums]
    return [0, *(min(end * alignment, count) for end in ends[:-1]), count]


def split(start: int, end: int, parts: int, alignment: int) -> list[int]:
    """Offsets [start, …, end] of `parts` equal parts, whole blocks counted from `start`."""
    return [start + offset for offset in cut(end - start, [1.0] * parts, alignment)]


def is_used(segment: Segment, count: int) -> bool:
    """Nobody talks about an empty segment, unless there is nothing else to talk about.

    An operation on no elements still makes members compare what they think it is.
    """
    return segment.count > 0 or count == 0
