"""Plans: who sends which part of a buffer to whom, and in which order. Pure functions.

*chunk*    what one frame carries: the pipeline's unit. Only the engine knows chunks.
*segment*  a contiguous part of the buffer with one *owner*, the rank that completes its sum.
*step*     one rank sends a segment to a peer, or receives it from one: the plan's unit.
*plan*     for one rank, the list of its steps over all segments.

Two rules give all the order there is (native/collective/engine.h):

1. chunk c of a step waits for chunk c of every earlier receive step on the same segment;
2. steps between the same two peers happen in list order on both ends.

A planner returns one plan per rank; `validate` checks that a set of them fits together. Every
planner must be a pure function of its arguments: members compute their plans apart.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
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


def even_segments(members: int, count: int) -> tuple[Segment, ...]:
    """One segment per rank, whole blocks of `ALIGNMENT`, equal within one block.

    Small buffers leave some ranks with an empty segment: fewer, larger frames.
    """
    blocks = -(-count // ALIGNMENT)
    cuts = [min(blocks * rank // members * ALIGNMENT, count) for rank in range(members + 1)]
    return tuple(Segment(cuts[rank], cuts[rank + 1] - cuts[rank], rank) for rank in range(members))


def ring(members: int, rank: int, count: int) -> Plan:
    """The pipelined ring: everybody sends 2 (n - 1) / n of the buffer, to one neighbour only.

    Rank r owns segment r. Its sum is collected on a walk around the ring that starts at its
    successor and ends at r (reduce-scatter); the final value then makes the same walk
    (all-gather). Four ranks, where segment 3 goes:

        reduce-scatter      0 ──x0──▶ 1 ──x0+x1──▶ 2 ──x0+x1+x2──▶ 3   completes, scales, encodes
        all-gather          3 ──sum──▶ 0 ──sum──▶ 1 ──sum──▶ 2

    All segments walk at the same time, each one rank apart, so every link is busy all the time.
    """
    _check(members, rank, count)
    after, before = (rank + 1) % members, (rank - 1) % members
    steps: list[Step] = []
    for turn in range(members - 1):
        steps.append(Step(Kind.SEND_PARTIAL, after, (rank - 1 - turn) % members))
        steps.append(Step(Kind.RECV_REDUCE, before, (rank - 2 - turn) % members))
    for turn in range(members - 1):
        steps.append(Step(Kind.SEND_FINAL, after, (rank - turn) % members))
        steps.append(Step(Kind.RECV_FINAL, before, (rank - 1 - turn) % members))
    return Plan(even_segments(members, count), tuple(steps))


def _check(members: int, rank: int, count: int) -> None:
    if members < 1 or not 0 <= rank < members or count < 0:
        raise ValueError(f"no plan for rank {rank} of {members} members and {count} elements")


class PlanError(ValueError):
    """Plans that would hang, or would not leave every rank with every sum."""


def validate(plans: Sequence[Plan]) -> None:
    """Execute one plan per rank in the abstract; raises PlanError if they do not fit together.

    Checks that segments tile the buffer and agree, that every step meets its other half in the
    same order on both ends, that nothing waits in a circle, that every contribution is counted
    exactly once, and that every rank ends with every segment final. Steps are taken whole: a set
    that passes cannot hang chunk by chunk either, with whatever bound on chunks in flight.
    """
    _check_segments(plans)
    ranks = range(len(plans))
    # What travels between two ranks, in order: (segment, final?, ranks summed so far).
    wires: dict[tuple[int, int], deque[tuple[int, bool, frozenset[int]]]] = {
        (a, b): deque() for a in ranks for b in ranks
    }
    sums = [[frozenset({rank}) for _ in plan.segments] for rank, plan in enumerate(plans)]
    final = [[False] * len(plan.segments) for plan in plans]
    left = [list(plan.steps) for plan in plans]
    moved = True
    while moved:
        moved = False
        for rank in ranks:
            ready = _first_ready(left[rank], {p for p in ranks if wires[p, rank]})
            while ready is not None:
                step = left[rank].pop(ready)
                _execute(rank, step, plans[rank], wires, sums[rank], final[rank])
                moved = True
                ready = _first_ready(left[rank], {p for p in ranks if wires[p, rank]})
    for rank in ranks:
        if left[rank]:
            raise PlanError(f"rank {rank} waits for ever in {left[rank][0]}")
    for (a, b), wire in wires.items():
        if wire:
            raise PlanError(f"rank {b} never receives segment {wire[0][0]} from rank {a}")
    everybody = frozenset(ranks)
    for rank, plan in enumerate(plans):
        for index, segment in enumerate(plan.segments):
            if segment.owner == rank and sums[rank][index] != everybody:
                missing = sorted(everybody - sums[rank][index])
                raise PlanError(f"the sum of segment {index} lacks ranks {missing}")
            if segment.owner != rank and not final[rank][index]:
                raise PlanError(f"rank {rank} never gets the final value of segment {index}")


def _check_segments(plans: Sequence[Plan]) -> None:
    if not plans:
        raise PlanError("no plans")
    end = 0
    for segment in plans[0].segments:
        if segment.offset != end or segment.count < 0 or not 0 <= segment.owner < len(plans):
            raise PlanError(f"{segment} does not continue the tiling at {end}")
        end += segment.count
    for rank, plan in enumerate(plans):
        if plan.segments != plans[0].segments:
            raise PlanError(f"rank {rank} has other segments than rank 0")
        for step in plan.steps:
            if not 0 <= step.peer < len(plans) or step.peer == rank:
                raise PlanError(f"rank {rank} names no other rank in {step}")
            if not 0 <= step.segment < len(plan.segments):
                raise PlanError(f"rank {rank} names no segment in {step}")


def _first_ready(steps: list[Step], arrived_from: set[int]) -> int | None:
    """The first step that both rules allow: index into `steps`, or None."""
    receiving: set[int] = set()  # segments with an earlier receive that is still open
    sending_to: set[int] = set()
    receiving_from: set[int] = set()
    for index, step in enumerate(steps):
        is_send = step.kind in (Kind.SEND_PARTIAL, Kind.SEND_FINAL)
        open_lanes = sending_to if is_send else receiving_from
        if (
            step.segment not in receiving
            and step.peer not in open_lanes
            and (is_send or step.peer in arrived_from)
        ):
            return index
        open_lanes.add(step.peer)
        if not is_send:
            receiving.add(step.segment)
    return None


def _execute(
    rank: int,
    step: Step,
    plan: Plan,
    wires: dict[tuple[int, int], deque[tuple[int, bool, frozenset[int]]]],
    sums: list[frozenset[int]],
    final: list[bool],
) -> None:
    owner = plan.segments[step.segment].owner == rank
    if step.kind is Kind.SEND_PARTIAL:
        if owner or final[step.segment] or not sums[step.segment]:
            raise PlanError(f"rank {rank} has no partial sum of its own to give in {step}")
        wires[rank, step.peer].append((step.segment, False, sums[step.segment]))
        sums[step.segment] = frozenset()  # given away: it may be counted nowhere else
    elif step.kind is Kind.SEND_FINAL:
        if owner and len(sums[step.segment]) != len({a for a, _ in wires}):
            raise PlanError(f"rank {rank} sends an unfinished sum in {step}")
        if not owner and not final[step.segment]:
            raise PlanError(f"rank {rank} forwards what it has not received in {step}")
        wires[rank, step.peer].append((step.segment, True, frozenset()))
    else:
        segment, is_final, ranks = wires[step.peer, rank].popleft()
        if segment != step.segment or is_final != (step.kind is Kind.RECV_FINAL):
            raise PlanError(f"rank {rank} expects {step}, rank {step.peer} sends something else")
        if is_final:
            if owner or final[segment]:
                raise PlanError(f"rank {rank} receives the final value twice in {step}")
            if sums[segment]:
                raise PlanError(f"the contribution of rank {rank} to segment {segment} is lost")
            final[segment] = True
        else:
            if not sums[segment] or sums[segment] & ranks:
                raise PlanError(f"a contribution counts twice, or comes too late, in {step}")
            sums[segment] |= ranks
