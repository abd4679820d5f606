"""The all-reduce in progress: started by one thread, waited for by one of its own, called off by
any.

    exchange's thread   start ─────────────────────────▶ goes on with other tags' orders
    a thread of its own   └─ wait ──▶ on_end(error or None)
    mesh's thread              abort: returns when no buffer is touched any more
    user's thread              settle: the same, and waits for the end
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from decentral.errors import AbortedError
from decentral.mesh_port import Work

OnEnd = Callable[[BaseException | None], None]


class RunningReduce:
    """At most one attempt at a time. A call-off that comes first wins; a late one hits nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[int, int] | None = None  # guarded by _lock
        self._work: Work | None = None  # guarded by _lock
        self._called_off: dict[tuple[int, int], str] = {}  # guarded by _lock
        self._over: threading.Event | None = None  # guarded by _lock

    def start(self, round: int, attempt: int, start: Callable[[], Work], on_end: OnEnd) -> None:
        """Start it. `on_end` is called once, on another thread, when it is over; then call `end`.

        Raises an AbortedError if it was called off already, and whatever `start` raises.
        """
        assert self._over is None, "one attempt after the other"
        over = threading.Event()
        with self._lock:
            says = self._called_off.get((round, attempt))
            if says is not None:
                raise AbortedError(says, phase="all-reduce")
            work = start()
            self._key, self._work, self._over = (round, attempt), work, over
        waiter = threading.Thread(
            target=self._wait, args=(work, over, on_end), name="decentral reduce", daemon=True
        )
        try:
            waiter.start()
        except BaseException:  # a signal, while the thread begins
            work.abort("the trainer has stopped")
            over.set()
            raise

    def _wait(self, work: Work, over: threading.Event, on_end: OnEnd) -> None:
        error: BaseException | None = None
        try:
            while not work.wait(None):
                pass
        except BaseException as failed:
            error = failed
        with self._lock:
            self._key = self._work = None
        over.set()
        on_end(error)

    def end(self, says: str = "") -> None:
        """It is over (with `says`: call it off first): no buffer is touched when this returns."""
        self.settle(says)
        with self._lock:
            self._over = None

    def settle(self, says: str = "") -> None:
        """Like `end`, for a thread that did not start it."""
        if says:
            self.abort_any(says)
        with self._lock:
            over = self._over
        if over is not None:
            over.wait()

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
