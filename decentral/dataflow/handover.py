"""An attempt to commit a round: who has the result hands it to those who will keep it, too.

    StartReduce(cell, round r, participants, who has work)
        all have it ──────────────────────▶ each answers with the root of its own
        some have not ── broadcast from the first who has ──▶ all answer with the root of what came

Nothing is applied before the commit. What came over the network is on disk before it is answered
for (`store.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays, Program
from decentral.errors import CollectiveError
from decentral.mesh_port import GroupFactory, MeshPort
from decentral.peer.protocol import StartReduce
from decentral.running_reduce import RunningReduce
from decentral.state import hash_state
from decentral.types import CommittedState, TensorSpec, View

_ALIGN = 64

OnEnd = Callable[[StartReduce, "NDArray[np.float32]", BaseException | None], None]


class Handover:
    """Of one cell. `abort` may come from another thread than the rest."""

    def __init__(
        self, cell: str, mesh: MeshPort, program: Program, make_group: GroupFactory, on_end: OnEnd
    ) -> None:
        """`on_end` hears, on another thread, when a broadcast is over; then call `over`."""
        self._cell, self._mesh, self._make_group, self._on_end = cell, mesh, make_group, on_end
        self._number = program.cells.index(cell)
        self._schema = program.schema(cell)
        self._running = RunningReduce()
        self._going = False

    def start(self, order: StartReduce, mine: CommittedState | None) -> CommittedState | None:
        """The result, if no bytes need to move for it: else `on_end` follows.

        Raises a CollectiveError if it cannot begin.
        """
        self.over("a newer attempt begins")
        sources = [one.peer for one in order.contributions if one.tokens]
        source = next((peer for peer in order.participants if peer in sources), None)
        if source is None:
            raise CollectiveError("nobody has the result of this round", phase="start")
        if source == self._mesh.me and mine is None:
            raise CollectiveError("the result is not here any more", phase="start")
        if set(sources) >= set(order.participants) and mine is not None:
            return mine
        view = View(lineage=order.view.lineage, epoch=order.view.epoch, members=order.participants)
        if source == self._mesh.me and mine is not None:
            data = pack(self._schema, mine.tensors)
        else:
            data = np.empty(size_of(self._schema), dtype=np.float32)
        self._running.start(
            order.round,
            order.attempt,
            lambda wanted: self._make_group(
                self._mesh.native, view, self._mesh.me, wanted
            ).broadcast(
                data,
                view.rank(source),
                round=order.round,
                attempt=order.attempt,
                tag=self._number,
            ),
            lambda error: self._on_end(order, data, error),
        )
        self._going = True
        return None

    def over(self, says: str = "") -> None:
        """What was going on has ended, or ends now (`says`: why)."""
        if self._going:
            self._running.end(says)
            self._going = False

    def abort(self, round: int, attempt: int, says: str) -> None:
        self._running.abort(round, attempt, says)

    def committed(self, round: int) -> None:
        self.over("the round is committed")
        self._running.forget(round)

    def unpack(self, data: NDArray[np.float32], round: int) -> CommittedState:
        return seal(unpack(self._schema, data), round)


def seal(tensors: Arrays, round: int) -> CommittedState:
    """Named and hashed; the arrays belong to it from here on."""
    for array in tensors.values():
        array.flags.writeable = False
    root, leaves = hash_state(tensors)
    return CommittedState(round=round, tensors=tensors, root=root, leaves=leaves)


def size_of(schema: tuple[TensorSpec, ...]) -> int:
    """fp32 words of a whole state, each tensor on a boundary of 64 bytes."""
    return sum(_padded_bytes(spec) for spec in schema) // 4


def pack(schema: tuple[TensorSpec, ...], tensors: Arrays) -> NDArray[np.float32]:
    """All tensors behind one another; broadcasts move fp32 words, and do not look at them."""
    data = np.zeros(size_of(schema), dtype=np.float32)
    for name, part in _parts(schema, data).items():
        part[...] = tensors[name]
    return data


def unpack(schema: tuple[TensorSpec, ...], data: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """The tensors in what `pack` has made (no copy)."""
    return _parts(schema, data)


def _parts(schema: tuple[TensorSpec, ...], data: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    raw, at, parts = data.view(np.uint8), 0, {}
    for spec in schema:
        size = _bytes(spec)
        parts[spec.name] = raw[at : at + size].view(spec.dtype).reshape(spec.shape)
        at += _padded_bytes(spec)
    return parts


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _padded_bytes(spec: TensorSpec) -> int:
    return -(-_bytes(spec) // _ALIGN) * _ALIGN
