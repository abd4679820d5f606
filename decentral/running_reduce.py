"""The all-reduce in progress: started by one thread, waited for by one of its own, called off by
any.

    exchange's thread   start ─────────────────────────▶ goes on with other tags' orders
    a thread of its own   └─ begin, which may wait for links ─ wait ──▶ on_end(error or None)
    mesh's thread              abort: returns when no buffer is touched any more
    user's thread              settle: the same, and waits for the end

The links that the beginning waits for are made by the mesh's thread, so that one must never wait
for the beginning.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from decentral.errors import AbortedError
from decentral.mesh_port import Wanted, Work

Begin = Callable[[Wanted], Work]
OnEnd = Callable[[BaseException | None], None]


class RunningReduce:
    """At most one attempt at a time. A call-off that comes first wins; a late one hits nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[int, int] | None = None  # guarded by _lock
        self._work: Work | None = None  # guarded by _lock; None while it begins
        self._stopped = ""  # guarded by _lock; why the running one is called off
        self._called_off: dict[tuple[int, int], str] = {}  # guarded by _lock
        self._over: threading.Event | None = None  # guarded by _lock

    def start(self, round: int, attempt: int, begin: Begin, on_end: OnEnd) -> None:
        """Start it. `on_end` is called once, on another thread, when it is over, also if `begin`
        raised something; then call `end`.

        Raises an AbortedError if it was called off already.
        """
        assert self._over is None, "one attempt after the other"
        over, key = threading.Event(), (round, attempt)
        with self._lock:
            says = self._called_off.get(key)
            if says is not None:
                raise AbortedError(says, phase="all-reduce")
            self._key, self._over, self._stopped = key, over, ""
        runner = threading.Thread(
            target=self._run, args=(begin, over, on_end), name="decentral reduce", daemon=True
        )
        try:
            runner.start()
        except BaseException:  # a signal, while the thread begins
            self.abort_any("the trainer has stopped")
            over.set()
            raise

    def _run(self, begin: Begin, over: threading.Event, on_end: OnEnd) -> None:
        error: BaseException | None = None
        try:
            work = begin(lambda: not self._stopped)
            with self._lock:
                self._work = work
                if self._stopped:
                    work.abort(self._stopped)
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
            if self._key == (round, attempt):
                self._stop(says)
            else:
                self._called_off[(round, attempt)] = says

    def abort_any(self, says: str) -> None:
        with self._lock:
            self._stop(says)

    def _stop(self, says: str) -> None:
        """Under the lock."""
        self._stopped = self._stopped or says
        if self._work is not None:
            self._work.abort(says)

    def forget(self, up_to_round: int) -> None:
        """That round is committed: no attempt at it will start any more."""
        with self._lock:
            self._called_off = {
                key: says for key, says in self._called_off.items() if key[0] > up_to_round
            }
