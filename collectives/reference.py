"""What the engine must compute, in numpy, bit for bit. Used by tests only.

Slow and obvious: no chunks, no threads, one segment after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from decentral.collectives.plan import Kind, Plan, Step
from decentral.collectives.reference_codecs import decode, encode

if TYPE_CHECKING:
    from decentral.types import Array

__all__ = ["decode", "encode", "execute", "weighted"]


def weighted(values: Array, weight: float) -> Array:
    """weight · values; a weight of zero is an absence, so that 0 · NaN poisons nobody."""
    if weight == 0:
        return np.zeros_like(values)
    return np.float32(weight) * values


def execute(
    plans: Sequence[Plan],
    sources: Sequence[Array],
    *,
    codec: str = "fp32",
    final_codec: str | None = None,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    scatter: bool = False,
) -> list[Array]:
    """What every rank's `dst` holds after the plans (which `validate` accepts) have run.

    `final_codec`: what finals travel as (default: `codec`). `scatter`: it is a reduce-scatter,
    whose sums go nowhere and are not encoded; only owners' own segments of the result count.
    """
    ranks, final = range(len(plans)), final_codec or codec
    ends = [[0] * len(plan.segments) for plan in plans]  # contributions still to come
    for rank, plan in enumerate(plans):
        for step in plan.steps:
            ends[rank][step.segment] += step.kind is Kind.RECV_REDUCE
    own = [1.0] * len(plans) if weights is None else weights
    results = [weighted(source, own[rank]) for rank, source in enumerate(sources)]
    encoded: list[dict[int, bytes]] = [{} for _ in ranks]  # final encodings, by segment
    wires: dict[tuple[int, int], deque[bytes]] = {(a, b): deque() for a in ranks for b in ranks}
    left = [deque(plan.steps) for plan in plans]

    def part(rank: int, segment: int) -> Array:
        where = plans[rank].segments[segment]
        return results[rank][where.offset : where.offset + where.count]

    def complete(rank: int, segment: int) -> None:
        """The owner scales, encodes once, and decodes its own encoding."""
        values = part(rank, segment)
        scaled = values if scale == 1 else weighted(values, scale)
        if scatter:
            values[:] = scaled
            return
        encoded[rank][segment] = encode(final, scaled)
        values[:] = decode(final, encoded[rank][segment], values.size)

    def run(rank: int, step: Step) -> None:
        values = part(rank, step.segment)
        if step.kind is Kind.SEND_PARTIAL:
            wires[rank, step.peer].append(encode(codec, values))
        elif step.kind is Kind.SEND_FINAL:
            wires[rank, step.peer].append(encoded[rank][step.segment])
        else:
            data = wires[step.peer, rank].popleft()
            if step.kind is Kind.RECV_FINAL:
                encoded[rank][step.segment] = data
                values[:] = decode(final, data, values.size)
                return
            received = decode(codec, data, values.size)
            absent = own[rank] == 0 and not reduced[rank][step.segment]
            values[:] = received if absent else received + values
            reduced[rank][step.segment] = True
            ends[rank][step.segment] -= 1
            if ends[rank][step.segment] == 0 and owns(rank, step.segment):
                complete(rank, step.segment)

    def owns(rank: int, segment: int) -> bool:
        return plans[rank].segments[segment].owner == rank

    reduced = [[False] * len(plan.segments) for plan in plans]
    for rank in ranks:
        for index in range(len(plans[rank].segments)):
            if owns(rank, index) and ends[rank][index] == 0:
                complete(rank, index)
    while any(left):
        before = sum(map(len, left))
        for rank in ranks:
            while left[rank]:
                step = left[rank][0]
                receives = step.kind in (Kind.RECV_REDUCE, Kind.RECV_FINAL)
                if receives and not wires[step.peer, rank]:
                    break
                run(rank, left[rank].popleft())
        if sum(map(len, left)) == before:
            raise ValueError("these plans wait for each other in list order")
    return results
