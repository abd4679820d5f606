"""What the harness did and saw, as it happens: one JSON object a line, for the audit.

`at` is CLOCK_MONOTONIC, which all processes of a machine share; every peer's own log says in its
`start` line where its time begins.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil


class Timeline:
    """Append-only. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._events = (folder / "timeline.jsonl").open("w", buffering=1)
        self._samples = (folder / "samples.jsonl").open("w", buffering=1)
        self._lock = threading.Lock()
        self._faults = 0

    def note(self, what: str, **fields: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "what": what, **fields})
        with self._lock:
            self._events.write(line + "\n")

    def fault(self, kind: str, peers: list[str], **detail: Any) -> int:
        """Its number, for `healed`."""
        self._faults += 1
        self.note("fault", id=self._faults, kind=kind, peers=peers, detail=detail)
        return self._faults

    def sample(self, peer: str, pid: int) -> None:
        """What this process holds of the system's resources now."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                line = {
                    "at": time.monotonic(),
                    "peer": peer,
                    "pid": pid,
                    "fds": process.num_fds(),
                    "threads": process.num_threads(),
                    "rss_kib": process.memory_info().rss // 1024,
                }
        except psutil.Error:
            return  # it has just died
        with self._lock:
            self._samples.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._events.close()
        self._samples.close()
