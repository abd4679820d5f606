"""The all-reduce in progress: waited for by the user's thread, called off by the mesh's."""

from __future__ import annotations

import threading
from collections.abc import Callable

from decentral.errors import AbortedError
from decentral.mesh_port import Work

_POLL_S = 0.2
"""A wait in native code is cut up, so that Ctrl-C is seen."""


class RunningReduce:
    """At most one attempt at a time. A call-off that comes first wins; a late one hits nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[int, int] | None = None  # guarded by _lock
        self._work: Work | None = None  # guarded by _lock
        self._called_off: dict[tuple[int, int], str] = {}  # guarded by _lock

    def run(self, round: int, attempt: int, start: Callable[[], Work]) -> None:
        """Start it and wait for it. Raises a CollectiveError if it did not happen."""
        with self._lock:
            says = self._called_off.get((round, attempt))
            if says is not None:
                raise AbortedError(says, phase="all-reduce")
            work = start()
            self._key, self._work = (round, attempt), work
        try:
            while not work.wait(_POLL_S):
                pass
        except BaseException:
            # Ctrl-C too: nobody may touch the buffers once this returns.
            work.abort("the trainer stopped waiting")
            raise
        finally:
            with self._lock:
                self._key = self._work = None

    def abort(self, round: int, attempt: int, says: str) -> None:
        """Called on the mesh's thread; idempotent."""
        with self._lock:
            if self._key == (round, attempt) and self._work is not None:
                self._work.abort(says)
            else:
                self._called_off[(round, attempt)] = says

    def abort_any(self, says: str) -> None:
        with self._lock:
            if self._work is not None:
                self._work.abort(says)

    def forget(self, up_to_round: int) -> None:
        """That round is committed: no attempt at it will start any more."""
        with self._lock:
            self._called_off = {
                key: says for key, says in self._called_off.items() if key[0] > up_to_round
            }
