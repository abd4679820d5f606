"""The event stream of one peer: printed, kept in its home, and published to local tools.

One JSON object a line, stable (README, "Events"): ``event``, ``t`` (seconds since start) and the
fields of that event.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

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

    def emit(self, event: str, **fields: Any) -> None:
        record = {"event": event, "t": round(time.monotonic() - self._start_s, 4), **fields}
        with self._lock:  # one order for all readers
            self._home.append_event(json.dumps(record))
            self._on_event(record)
        self._publish(event, record)
