"""The run's files as one stream of events in time order, readable while they are being written.

    timeline.jsonl ───┐
    peers/a/events ───┼─ merge by absolute time ─▶ Event, Event, …   up to a horizon
    peers/b/events ───┘

A line that SIGKILL cut off is normal at the end of a process' life: the file's last line, or the
one that the next process' first line was appended to. Anywhere else it is a fault of the log.
"""

from __future__ import annotations

import heapq
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from decentral.churn.audit.findings import Findings

Record: TypeAlias = dict[str, Any]

CHUNK_BYTES = 1 << 20
DRIVER = ""
"""The source of what the driver tells; other sources are names of peers."""


@dataclass(slots=True)
class Event:
    at: float
    """CLOCK_MONOTONIC seconds, comparable between all processes of the machine."""
    source: str
    life: int
    """Which process of this peer told it: 1 for the first."""
    what: str
    data: Record


class Tail:
    """The complete lines of a file that grows, each once. A file that is not there yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines_read = 0
        self._offset = 0
        self._rest = b""
        self._lines: list[bytes] = []  # reversed: the next one is last

    def next(self) -> bytes | None:
        """None: nothing more for now."""
        while not self._lines:
            if not self._read():
                return None
        self.lines_read += 1
        return self._lines.pop()

    def _read(self) -> bool:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return False
        self._offset += len(chunk)
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        self._lines = whole[::-1]
        return bool(chunk)


def parse(line: bytes) -> Record | None:
    """The object on a line, or None."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def records_of(path: Path) -> Iterator[Record]:
    """All that can be read of a file by now, from its beginning."""
    tail = Tail(path)
    while (line := tail.next()) is not None:
        record = parse(line)
        if record is not None:
            yield record


class _Log(ABC):
    """A file's events up to a moment; what is later waits."""

    _pending: Event | None = None

    def until(self, horizon_s: float) -> Iterator[Event]:
        """What was told up to then and has not been given yet."""
        while True:
            event, self._pending = self._pending or self._next(), None
            if event is None:
                return
            if event.at > horizon_s:
                self._pending = event
                return
            yield event

    @abstractmethod
    def _next(self) -> Event | None:
        """The next event, if one has been told."""


class PeerLog(_Log):
    """One peer's own event log, over all lives of the peer, in absolute time."""

    def __init__(self, name: str, path: Path, findings: Findings) -> None:
        self.name = name
        self.life = 0
        self._tail = Tail(path)
        self._findings = findings
        self._base_s: float | None = None
        self._torn = 0  # number of a line that nobody can read, until a new life explains it

    @property
    def lines(self) -> int:
        return self._tail.lines_read

    def _next(self) -> Event | None:
        while (line := self._tail.next()) is not None:
            record = parse(line)
            if record is None:
                # Half a line of a process that was killed, then the next one's first.
                cut = line.rfind(b'{"event"')
                record = parse(line[cut:]) if cut > 0 else None
                if record is None or record.get("event") != "start":
                    self._torn = self._torn or self.lines
                    continue
            event = self._placed(record)
            if event is not None:
                return event
        return None

    def _placed(self, record: Record) -> Event | None:
        what, t = record.get("event"), record.get("t")
        if not isinstance(what, str) or not isinstance(t, int | float):
            self._say(f"line {self.lines} of {self.name}'s log is no event: {str(record)[:80]}")
            return None
        if what == "start":
            self._base_s = float(record["monotonic_s"]) - float(t)
            self.life += 1
            self._torn = 0
        elif self._torn:
            self._say(f"line {self._torn} of {self.name}'s log is broken in the middle of a life")
            self._torn = 0
        if self._base_s is None:
            self._say(f"{self.name}'s log does not begin with a start line: nobody knows when")
            return None
        return Event(self._base_s + float(t), self.name, self.life, what, record)

    def _say(self, says: str) -> None:
        self._findings.add("log", None, says, peer=self.name)


class DriverLog(_Log):
    """timeline.jsonl: what the driver did and saw."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)

    def _next(self) -> Event | None:
        while (line := self._tail.next()) is not None:
            record = parse(line)
            if record is not None and isinstance(record.get("what"), str):
                return Event(float(record["at"]), DRIVER, 0, record["what"], record)
        return None


class RunLogs:
    """All event logs of a run's directory. Peers may appear while it is read."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self.folder = folder
        self.driver = DriverLog(folder / "timeline.jsonl")
        self.peers: dict[str, PeerLog] = {}
        self._findings = findings

    def until(self, horizon_s: float) -> Iterator[Event]:
        """In time order; the driver first where times are equal."""
        for home in sorted((self.folder / "peers").glob("*/")):
            if home.name not in self.peers:
                path = home / "events.jsonl"
                self.peers[home.name] = PeerLog(home.name, path, self._findings)
        streams = [self.driver.until(horizon_s)]
        streams += [log.until(horizon_s) for log in self.peers.values()]
        return heapq.merge(*streams, key=lambda event: event.at)

    @property
    def lines(self) -> int:
        return sum(log.lines for log in self.peers.values())
