"""Parts of committed states: tensors of a cell whose names begin in some way.

    part (cell, round, root, prefix) ── held here? ── fetched before? ── Mesh.read ─▶ tensors
                                          the worker's     Cache            verified against root

Parts are known by their state's root, a hash of every byte, so a part that was fetched is right for
ever; and the bytes of one root and prefix are fetched once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from decentral.dataflow.program import Arrays
from decentral.errors import StateError
from decentral.peer.views_log import LogState
from decentral.serving.cache import Cache
from decentral.types import CommittedState

LIMIT_BYTES = 1 << 30
READ_S = 20.0
"""So long somebody is looked for who holds what is the newest round …"""
LATE_S = 1.0
"""… and so long for one that the log here does not have (yet)."""
LOOK_S = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One committed round of a cell."""

    cell: str
    round: int
    root: bytes

    @classmethod
    def newest(cls, log: LogState, cell: str) -> Version:
        scope = log.scope(cell)
        return cls(cell, scope.round, scope.root)


@dataclass(frozen=True, slots=True)
class Part:
    version: Version
    prefix: str


class Reader(Protocol):
    """What is needed of a mesh (`decentral.mesh_port.MeshPort`)."""

    def read(
        self, tag: str, round: int, root: bytes, prefix: str = "", *, timeout_s: float = ...
    ) -> Future[dict[str, Any]]: ...

    def log(self) -> LogState | None: ...


class Parts:
    """A peer's, or that of somebody who only came to look. Thread-safe; `get` waits."""

    def __init__(
        self,
        mesh: Reader,
        held: Mapping[str, CommittedState] | None = None,
        *,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        """`held`, by cell: states that are here (`Worker.held`); looked at anew each time."""
        self._mesh = mesh
        self._held = held if held is not None else {}
        self._cache: Cache[tuple[bytes, str], Arrays] = Cache(limit_bytes, _bytes_of)
        self._lock = threading.Lock()
        self.fetched_bytes = 0
        """Of tensors that came over the network."""
        self.fetching_s = 0.0
        """How long that took, each fetch for itself."""

    def here(self, part: Part) -> bool:
        """Whether it can be had without the network."""
        return self._in_hand(part) is not None or (part.version.root, part.prefix) in self._cache

    def get(self, part: Part) -> Arrays:
        """By name; nobody may write to them. A StateError where it is not to be had any more."""
        found = self._in_hand(part)
        if found is not None:
            return found
        return self._cache.get((part.version.root, part.prefix), lambda: self._fetch(part))

    def gather(self, parts: Sequence[Part]) -> list[Arrays]:
        """All at once, in their order."""
        if all(self.here(part) for part in parts):
            return [self.get(part) for part in parts]
        with ThreadPoolExecutor(len(parts), "decentral parts") as pool:
            return list(pool.map(self.get, parts))

    def _in_hand(self, part: Part) -> Arrays | None:
        state = self._held.get(part.version.cell)
        if state is None or state.root != part.version.root:
            return None
        return {name: one for name, one in state.tensors.items() if name.startswith(part.prefix)}

    def _fetch(self, part: Part) -> Arrays:
        version, began = part.version, time.monotonic()
        if self._ahead_s(version) == 0:
            raise _gone(version)
        read = self._mesh.read(
            version.cell, version.round, version.root, part.prefix, timeout_s=READ_S
        )
        tensors = self._wait(read, version)
        with self._lock:
            self.fetched_bytes += _bytes_of(tensors)
            self.fetching_s += time.monotonic() - began
        return tensors

    def _wait(self, read: Future[dict[str, Any]], version: Version) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            try:
                return read.result(LOOK_S)
            except TimeoutError:
                if time.monotonic() > began + self._ahead_s(version):
                    read.cancel()
                    raise _gone(version) from None

    def _ahead_s(self, version: Version) -> float:
        """How long it is worth waiting for: newest rounds are all that a run keeps."""
        log = self._mesh.log()
        if log is None:
            return LATE_S
        scope = log.scope(version.cell)
        if scope.root == version.root:
            return READ_S
        return LATE_S if scope.round <= version.round else 0.0


def _gone(version: Version) -> StateError:
    says = f"round {version.round} of {version.cell} is not the newest one, and not here"
    return StateError(says, phase="read")


def _bytes_of(tensors: Arrays) -> int:
    return sum(one.nbytes for one in tensors.values())
