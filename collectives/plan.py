"""Plans: who sends which part of a buffer to whom, and in which order. Pure functions.

*chunk*    what one frame carries: the pipeline's unit. Only the engine knows chunks.
*segment*  a contiguous part of the buffer with one *owner*, the rank that completes its sum.
*step*     one rank sends a segment to a peer, or receives it from one: the plan's unit.
*plan*     for one rank, the list of its steps over all segments.

Two rules give all the order there is (native/collective/engine.h):

1. chunk c of a step waits for chunk c of every earlier receive step on the same segment;
2. steps between the same two peers happen in list order on both ends.

Planners (schedules/) are pure functions: members compute their plans apart, from the same
arguments. `validate` (validate.py) checks that the plans of all ranks fit together.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

ALIGNMENT = 256
"""Segments start at multiples of this many elements: int8 blocks then never straddle them."""


class Kind(enum.IntEnum):
    """What a step does; the numbers are those of native/collective/engine.h."""

    SEND_PARTIAL = 0
    """Send what has been summed so far: the own source, and whatever was received."""
    RECV_REDUCE = 1
    """Add a peer's partial sum to the own."""
    SEND_FINAL = 2
    """Send the owner's final encoding; who is not the owner forwards the bytes it received."""
    RECV_FINAL = 3
    """Take the final value."""

    @property
    def is_send(self) -> bool:
        return self in (Kind.SEND_PARTIAL, Kind.SEND_FINAL)


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements [offset, offset + count) of the buffer."""

    offset: int
    count: int
    owner: int
    """The rank that completes the sum, scales it, and encodes it once for everybody."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's part in one transfer of one segment."""

    kind: Kind
    peer: int
    """The rank at the other end."""
    segment: int
    """Index into the plan's segments."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one rank does. `segments` are the same for every rank, `steps` its own."""

    segments: tuple[Segment, ...]
    steps: tuple[Step, ...]

    def partners(self) -> list[int]:
        """The ranks that it exchanges data with."""
        return sorted({one.peer for one in self.steps})

    def plain(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """Segments and steps as the native engine takes them."""
        return (
            [(one.offset, one.count, one.owner) for one in self.segments],
            [(int(one.kind), one.peer, one.segment) for one in self.steps],
        )
