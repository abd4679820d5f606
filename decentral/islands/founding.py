"""How the initial state of every shard gets into a new run.

    rank 0 founds the run:   its own shard, and a copy of each other one   (one after the other)
    rank r joins it:         fetches its shard from rank 0, as any newcomer would

The copies are rank 0's for the first moments only: it gives them away and forgets them. Until then
it holds the whole model in fp32 in host memory, and as much again for the outer momentum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from decentral.compute import Tensors
from decentral.islands.talk import Talk
from decentral.state import Layout, aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class GivenTensors:
    """Another rank's shard: values and a layout, with no model behind them."""

    lossy = False

    def __init__(self, layout: Layout, flat: Array) -> None:
        self.layout, self._flat = layout, flat

    def read(self, flat: Array) -> None:
        flat[:] = self._flat[: len(flat)]

    def write(self, flat: Array) -> None:
        self._flat[: len(flat)] = flat

    def as_read(self) -> Array:
        return self._flat

    def save(self) -> Any:
        return self._flat.copy()

    def restore(self, saved: Any) -> None:
        self._flat[:] = saved


def gather_shards(talk: Talk, own: Tensors) -> dict[int, Tensors]:
    """On rank 0, the other ranks' shards by rank; elsewhere nothing. Called by all ranks."""
    gathered: dict[int, Tensors] = {}
    for rank in range(1, talk.size):
        packed = talk.share(pack_layout(own.layout) if rank == talk.rank else None, rank)
        if talk.rank == rank:
            talk.send(own.as_read(), 0)
        elif talk.rank == 0:
            layout = unpack_layout(packed)
            flat = aligned_zeros(layout.total)
            talk.receive(flat, rank)
            gathered[rank] = GivenTensors(layout, flat)
    return gathered


def pack_layout(layout: Layout) -> bytes:
    rows = [(slot.name, slot.kind, slot.shape) for slot in layout.slots]
    return bytes(msgpack.packb(rows))


def unpack_layout(packed: bytes) -> Layout:
    rows = msgpack.unpackb(packed)
    return Layout.of((str(name), str(kind), tuple(shape)) for name, kind, shape in rows)
