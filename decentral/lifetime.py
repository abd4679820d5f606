"""How a run ends with its process: at the end of a `with`, by an exception, Ctrl-C or SIGTERM."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable
from types import FrameType

from decentral.errors import DecentralError


class Lifetime:
    """Calls `close(reason)` when the process ends without having done so itself.

    SIGTERM raises SystemExit in the main thread, so that it unwinds like any exception; a handler
    that the script has set itself is left alone.
    """

    def __init__(self, close: Callable[[str], None]) -> None:
        self._close = close
        self._ended = False
        self._took_sigterm = False

    def begin(self) -> None:
        atexit.register(self._at_exit)
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            signal.signal(signal.SIGTERM, _terminate)
            self._took_sigterm = True

    def hurry_no_more(self) -> None:
        """The process ends already: a launcher that asks twice must not cut its leave short."""
        if self._took_sigterm and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._took_sigterm = False

    def end(self) -> bool:
        """Whether this is the first call."""
        if self._ended:
            return False
        self._ended = True
        atexit.unregister(self._at_exit)
        if self._took_sigterm and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return True

    def _at_exit(self) -> None:
        self._close("its process ends")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def why_it_ended(error: BaseException | None) -> str:
    """One clause for the others."""
    if error is None:
        return "done"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "terminated"
    return error.says if isinstance(error, DecentralError) else type(error).__name__


def in_full(error: BaseException) -> str:
    """For the processes beside this one: also what an error of the script's own says."""
    why = why_it_ended(error)
    return f"{why}: {error}" if why == type(error).__name__ and str(error) else why
