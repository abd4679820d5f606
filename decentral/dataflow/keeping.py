"""The cells that are here: taken, found, held, let go.

    take ─▶ find: arrived over the network? round 0? on this disk? ─▶ hold (others may fetch it)
             └─ none of it: the mesh fetches ─▶ arrived ─▶ …
    drop ◀── all who are to keep it hold a newer round

What has arrived is on disk before anybody is told (`store.py`).
"""

from __future__ import annotations

import time
from pathlib import Path

from decentral.dataflow.handover import seal
from decentral.dataflow.program import Program, check
from decentral.dataflow.store import Store
from decentral.errors import DivergenceError
from decentral.mesh_port import MeshPort
from decentral.peer.views_log import LogState
from decentral.types import CommittedState

MISSING_S = 30.0


class Keeping:
    """One peer's. `held` may be read by any thread; the rest is the driver's."""

    def __init__(self, mesh: MeshPort, program: Program, home: Path | None) -> None:
        self._mesh, self._program = mesh, program
        self.store = Store(home, program, lambda: mesh.run_id)
        self.cells: set[str] = set()
        """Those that this peer takes part in."""
        self.held: dict[str, CommittedState] = {}
        """By cell, the committed round that is here. Replaced, never changed."""
        self._arrived: dict[str, dict[bytes, CommittedState]] = {}
        """By cell and root: what is here, and on disk, and may be committed."""
        self._searched: dict[str, bytes] = {}
        """By cell: the root that the disk has been searched for."""
        self._lacking: dict[str, float] = {}
        """By cell that should be here and is not: since when."""

    def take(self, cell: str) -> None:
        if cell not in self.cells:
            self.cells.add(cell)
            self._mesh.take_part(cell, True)

    def drop(self, cell: str) -> None:
        self.cells.discard(cell)
        self.held.pop(cell, None)
        self._mesh.take_part(cell, False)

    def lacks(self, log: LogState, cell: str) -> bool:
        held = self.held.get(cell)
        return held is None or held.root != log.scope(cell).root

    def find(self, log: LogState) -> list[str]:
        """Get hold of what is committed, where it is here; the cells that are still missing, and
        have been for `MISSING_S`."""
        now = time.monotonic()
        lacking = [cell for cell in self.cells if self.lacks(log, cell)]
        self._lacking = {cell: self._lacking.get(cell, now) for cell in lacking}
        long = []
        for cell in lacking:
            found = self._found(log, cell)
            if found is not None:
                self._hold(cell, found)
            elif self._lacking[cell] + MISSING_S <= now:
                self._lacking[cell] = now
                long.append(cell)
        return long

    def _found(self, log: LogState, cell: str) -> CommittedState | None:
        scope = log.scope(cell)
        found = self._arrived.get(cell, {}).get(scope.root)
        if found is not None:
            return found
        if scope.round == 0:
            found = self.initial(cell)
            if found.root != scope.root:
                raise DivergenceError(
                    f"cell {cell} begins with other values here than in the run: another version "
                    f"of torch or numpy, or other data",
                    phase="join",
                )
            return found
        if self._searched.get(cell) == scope.root:
            return None
        self._searched[cell] = scope.root
        return self.store.load(cell, scope.round, scope.root)

    def initial(self, cell: str) -> CommittedState:
        """Round 0."""
        tensors = self._program.initial(cell)
        check(self._program, cell, tensors)
        return seal({name: one.copy() for name, one in tensors.items()}, 0)

    def arrived(self, cell: str, state: CommittedState) -> None:
        """A round that may be committed is here, and on disk."""
        self._arrived.setdefault(cell, {})[state.root] = state

    def committed(self, cell: str, root: bytes) -> bool:
        """That round is committed: whether it is here, and held now."""
        state = self._arrived.get(cell, {}).get(root)
        if state is not None:
            self._hold(cell, state)
        return state is not None

    def _hold(self, cell: str, state: CommittedState) -> None:
        self.held[cell] = state
        self._arrived.pop(cell, None)
        self._mesh.hold(state, tag=cell)
        if state.round:
            self._mesh.checkpointed(state.round, self.store.kept(cell), tag=cell)

    def joined(self, log: LogState) -> None:
        """A member now, or again: what is here and still counts is kept for the others."""
        for cell in self._program.cells:
            scope = log.scope(cell)
            here = scope.root in self._arrived.get(cell, {})
            if here or (scope.round > 0 and scope.round in self.store.kept(cell)):
                self.take(cell)

    def evicted(self) -> None:
        """Outside, nothing is kept up to date: the way back in would be as long as what this peer
        holds. What turns out to count still is found again."""
        for cell, state in self.held.items():
            self._arrived.setdefault(cell, {})[state.root] = state
        for cell in list(self.cells):
            self.drop(cell)
        self._searched.clear()
