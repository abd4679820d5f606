"""The event stream of one peer: printed, kept in its home, and published to local tools.

One JSON object a line, stable (README, "Events"): ``event``, ``t`` (seconds since start) and the
fields of that event.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from decentral.errors import DiskError
from decentral.peer.home import Home


class EventLog:
    """Append-only; `emit` may be called on any thread."""

    def __init__(
        self,
        home: Home,
        on_event: Callable[[Mapping[str, Any]], None],
        publish: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._home, self._on_event, self._publish = home, on_event, publish
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._refused = False  # guarded by _lock: the last line could not be written
        # A home outlives its processes: whoever reads the log needs to know where one begins.
        self.record("start", monotonic_s=self._start_s, time=time.time(), pid=os.getpid())

    def emit(self, event: str, **fields: Any) -> None:
        record = self._stamped(event, fields)
        with self._lock:  # one order for all readers
            self._write(record)
            self._on_event(record)
        self._publish(event, record)

    def record(self, event: str, **fields: Any) -> None:
        """In the log only."""
        record = self._stamped(event, fields)
        with self._lock:
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        """What the disk refuses is lost to the log, and no more: events come from every thread, in
        the middle of everything, and neither votes nor states depend on their lines."""
        try:
            self._home.append_event(json.dumps(record))
            self._refused = False
        except DiskError as error:
            if not self._refused:
                self._refused = True
                fault = {"kind": "event-log", "peer": None, "says": error.says}
                self._on_event(self._stamped("fault", fault))

    def _stamped(self, event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"event": event, "t": round(time.monotonic() - self._start_s, 4), **fields}
