"""What the native codecs and the engine must compute, in numpy, bit for bit. Used by tests only.

Slow and obvious: no chunks, no threads, one segment after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decentral.collectives.plan import Kind, Plan, Step

if TYPE_CHECKING:
    from decentral.types import Array

INT8_BLOCK = 256
_TINY = np.float32(127) * np.finfo(np.float32).tiny
"""Blocks with a smaller absmax travel as zeros."""


def encode(codec: str, values: Array) -> bytes:
    """Wire bytes of fp32 values (native/collective/codec.h)."""
    if codec == "fp32":
        return values.astype("<f4").tobytes()
    if codec == "bf16":
        return _to_bf16(values).astype("<u2").tobytes()
    if codec == "int8":
        return b"".join(
            _encode_block(values[start : start + INT8_BLOCK])
            for start in range(0, values.size, INT8_BLOCK)
        )
    raise ValueError(f"no codec {codec!r}")


def decode(codec: str, data: bytes, count: int) -> Array:
    """`count` fp32 values from wire bytes."""
    if codec == "fp32":
        return np.frombuffer(data, "<f4", count).astype(np.float32)
    if codec == "bf16":
        return (np.frombuffer(data, "<u2", count).astype(np.uint32) << 16).view(np.float32)
    if codec == "int8":
        out = np.empty(count, np.float32)
        for start in range(0, count, INT8_BLOCK):
            size = min(INT8_BLOCK, count - start)
            at = start // INT8_BLOCK * (INT8_BLOCK + 4)
            (scale,) = np.frombuffer(data, "<f4", 1, at)
            quantized = np.frombuffer(data, np.int8, size, at + 4)
            with np.errstate(over="ignore"):  # like bf16, the very largest become infinite
                out[start : start + size] = quantized.astype(np.float32) * scale
        return out
    raise ValueError(f"no codec {codec!r}")


def _to_bf16(values: Array) -> NDArray[np.uint32]:
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint32)


def _encode_block(block: Array) -> bytes:
    absmax = np.max(np.abs(block))
    if not np.isfinite(absmax) or absmax < _TINY:
        scale = np.float32(0) if np.isfinite(absmax) else np.float32(np.nan)
        return np.array([scale], "<f4").tobytes() + bytes(block.size)
    scale, inverse = absmax / np.float32(127), np.float32(127) / absmax
    quantized = np.rint(block * inverse).astype(np.int8)  # rint rounds halves to even
    return bytes(np.array([scale], "<f4").tobytes() + quantized.tobytes())


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
