"""Who keeps a cell, and asking one of them after the other.

leases of the view ─▶ worker, replica, …   linked ones first, those that failed lately last
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import Protocol

from decentral.dataflow.leases import Assignment
from decentral.dataflow.program import Program
from decentral.dataflow.worker import COPIES
from decentral.errors import CallError
from decentral.mesh_port import MeshPort
from decentral.types import PeerId

AVOID_S = 10.0
"""Who did not answer is asked again after so long, or where nobody else is left."""
CONNECT_S = 5.0
"""Who is not even linked has so long for all of it: most likely it is gone."""
_SILENT = ("connect", "link", "timeout")
"""Phases of a CallError that say that the peer is gone, rather than that it cannot."""


class Asked(Protocol):
    """Somebody who keeps a cell, or all of them."""

    def ask(self, cell: str, method: str, body: bytes, timeout_s: float) -> bytes: ...


class Keepers:
    """As one who is linked to them sees them. Thread-safe; `ask` waits."""

    def __init__(self, mesh: MeshPort, program: Program, *, copies: int = COPIES) -> None:
        self._mesh = mesh
        self._assignment = Assignment(program, copies)
        self._lock = threading.Lock()
        self._silent_until: dict[PeerId, float] = {}

    def of(self, cell: str) -> list[PeerId]:
        """In the order in which they are worth asking; none before the log is known."""
        log = self._mesh.log()
        if log is None:
            return []
        now = time.monotonic()
        with self._lock:
            keepers = self._assignment.leases(log.view.members)[cell]
            silent = {peer for peer, until in self._silent_until.items() if until > now}
        others = (peer for peer in keepers if peer != self._mesh.me)
        return sorted(others, key=lambda peer: (peer in silent, not self._mesh.linked(peer)))

    def ask(self, cell: str, method: str, body: bytes, timeout_s: float) -> bytes:
        """The first answer. The last CallError where nobody gives one."""
        failed = CallError(f"nobody keeps {cell}", phase="connect")
        for peer in self.of(cell):
            try:
                most_s = timeout_s if self._mesh.linked(peer) else min(timeout_s, CONNECT_S)
                return self._mesh.call(peer, method, body, most_s).result()
            except CallError as error:
                failed = error
                if error.phase in _SILENT:
                    with self._lock:
                        self._silent_until[peer] = time.monotonic() + AVOID_S
            except CancelledError:
                raise CallError("the mesh is closed", peer=peer, phase="cancelled") from None
        raise failed
