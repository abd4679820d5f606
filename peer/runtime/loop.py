"""One asyncio loop (uvloop) in one thread of its own.

The user's thread trains; it hands work over with `call` and never waits for the network here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class LoopThread:
    """Starts at construction; `stop` ends and joins it. All methods may be called anywhere."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run it on the loop, soon. After `stop` it is dropped: there is nobody left to care."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed
            if self._thread.is_alive():
                raise

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run it on the loop and wait for its result (never call this on the loop's thread)."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def stop(self) -> None:
        self.call(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
