"""`Work`: a collective operation that is running, or will as soon as its group knows its plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from decentral.errors import (
    AbortedError,
    CollectiveError,
    ConfigError,
    DecentralError,
    MismatchError,
    PeerFailedError,
    ProtocolError,
)
from decentral.types import peer_id

_ERRORS: dict[str, type[DecentralError]] = {
    "closed": PeerFailedError,
    "silent": PeerFailedError,
    "aborted": AbortedError,
    "mismatch": MismatchError,
    "protocol": ProtocolError,
    "config": ConfigError,
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What an operation cost this member."""

    bytes_sent: int
    """Payloads and headers, before encryption."""
    bytes_received: int
    seconds: float


class Work:
    """A running operation. Keeps its buffers alive; dropping it unfinished calls it off."""

    def __init__(self, finish: Callable[[], None] | None = None) -> None:
        self.schedule = ""
        """The schedule that was chosen; empty until it is."""
        self._finish = finish
        self._lock = threading.Lock()
        self._launched = threading.Event()
        self._op: Any = None  # guarded by _lock until launched
        self._error: DecentralError | None = None  # likewise
        self._called_off: str | None = None  # guarded by _lock
        self._companion: Callable[[], None] | None = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """True: the result is there. False: still running after `timeout_s`.

        Raises PeerFailedError (a member died or went silent), AbortedError, MismatchError, or
        another DecentralError, with `peer` and `phase`; `src` is then as it was, and no buffer is
        touched any more.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + max(0.0, timeout_s)
        if not self._launched.wait(timeout_s):
            return False
        if self._error is not None:
            raise self._error
        rest_s = -1.0 if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        if not self._op.wait(rest_s):
            return False
        if self._companion is not None:
            self._companion()
        if self._op.error is not None:
            raise typed_error(*self._op.error)
        with self._lock:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish()
        return True

    @property
    def done(self) -> bool:
        """Over, with success or not: no buffer is touched any more (but by `wait`, which turns
        what has arrived into the caller's dtype)."""
        return self._launched.is_set() and (self._error is not None or bool(self._op.done))

    def abort(self, reason: str) -> None:
        """Call it off on all members; returns when no buffer is touched any more. Idempotent."""
        with self._lock:
            if self._op is None and self._error is None:
                self._called_off = reason  # launch tells the others
                return
        if self._op is not None:
            self._op.abort(reason)

    @property
    def stats(self) -> Stats:
        """So far, or in all."""
        return Stats(*self._op.stats) if self._op is not None else Stats(0, 0, 0.0)

    # ---- for the group

    def launch(self, op: Any, schedule: str) -> None:
        """The native operation has started."""
        with self._lock:
            self._op, self.schedule = op, schedule
            called_off = self._called_off
        if called_off is not None:
            op.abort(called_off)
        self._launched.set()

    def accompany(self, join: Callable[[], None]) -> None:
        """Something else works on the buffers; `join` waits for its end, and is idempotent."""
        self._companion = join

    def launched_op(self) -> Any:
        """Waits for the launch; None if there will be none."""
        self._launched.wait()
        return self._op

    def fail(self, error: DecentralError) -> None:
        """It will never start."""
        with self._lock:
            self._error = error
        self._launched.set()


def typed_error(kind: str, phase: str, peer: bytes, text: str) -> DecentralError:
    """What native code says, as an exception."""
    return _ERRORS.get(kind, CollectiveError)(
        text, peer=peer_id(peer) if any(peer) else None, phase=phase or "all-reduce"
    )
