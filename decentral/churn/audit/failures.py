"""I5: every failure surfaces as a typed error that names peer or phase.

An exit that the driver did not cause must have said why; so must every `fault` event. A traceback
is a bug that nobody has typed.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.logs import Event, Tail

NAMED = re.compile(r"\((?:phase|peer): [^()]+\)\s*$")
"""How `DecentralError` ends, in words."""
CRASH = re.compile(
    rb"^(Traceback \(most recent call last\)|Fatal Python error|\w*AssertionError\b"
    rb"|terminate called|=+\d*=*\s*ERROR: \w+Sanitizer)"
)
UNTYPED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Warning)(?::|$)|^Traceback|^\s+File ")
"""A last line that Python wrote, not we."""
FAULT_BEFORE_EXIT_S = 10.0
MANY = 3


class Failures:
    def __init__(self, folder: Path, findings: Findings) -> None:
        self._folder, self._findings = folder, findings
        self.faults_checked = self.exits_checked = 0
        self._last_fault: dict[str, tuple[float, dict[str, Any]]] = {}
        self._over: dict[str, str] = {}
        self._stderr: dict[str, Tail] = {}

    def exited(self, event: Event) -> None:
        """The driver saw a process end."""
        data = event.data
        name, status, says = data["peer"], int(data["status"]), str(data.get("says") or "")
        over = self._over.pop(name, "")
        if data["expected"]:
            return
        self.exits_checked += 1
        if status < 0:
            try:
                what = signal.Signals(-status).name
            except ValueError:
                what = f"signal {-status}"
            self._say(event.at, name, f"{name} died of {what}, which nobody had sent")
            return
        if status == 0 and over:
            return
        since, fault = self._last_fault.get(name, (0.0, {}))
        late = event.at - since > FAULT_BEFORE_EXIT_S
        typed = not late and (fault.get("peer") or fault.get("phase"))
        if UNTYPED.search(says):
            self._say(event.at, name, f"{name} ended with an untyped error: {says[:200]}")
        elif typed or NAMED.search(says):
            return
        elif not says.strip():
            self._say(event.at, name, f"{name} ended with status {status} and said nothing")
        else:
            words = f"{name} ended with status {status} and named no peer or phase: {says[:200]}"
            self._say(event.at, name, words)

    def see(self, event: Event) -> None:
        """`fault`, `left` and `done` of the peers."""
        if event.what != "fault":
            self._over[event.source] = event.what
            return
        self.faults_checked += 1
        data, name = event.data, event.source
        self._last_fault[name] = (event.at, data)
        kind, says, peer = data.get("kind"), data.get("says"), data.get("peer")
        wrong = ""
        if not isinstance(kind, str) or not kind:
            wrong = "has no kind"
        elif not isinstance(says, str) or len(says.split()) < MANY:
            wrong = "says nothing that a person could use"
        elif UNTYPED.search(says):
            wrong = "is an untyped error"
        elif "peer" not in data and not data.get("phase"):
            wrong = "names neither peer nor phase"
        elif peer is not None and not (isinstance(peer, str) and peer):
            wrong = "names a peer that is none"
        if wrong:
            self._say(event.at, name, f"a fault event of {name} {wrong}: {str(data)[:200]}")

    def read_stderr(self, at: float | None) -> None:
        """What processes printed besides, where the driver keeps it: stderr.log in the home."""
        for path in (self._folder / "peers").glob("*/stderr.log"):
            name = path.parent.name
            tail = self._stderr.setdefault(name, Tail(path))
            while (line := tail.next()) is not None:
                if CRASH.search(line):
                    words = line.decode(errors="replace").strip()[:200]
                    says = f"{name} printed, in line {tail.lines_read} of its stderr: {words}"
                    self._say(at, name, says)

    def _say(self, at: float | None, name: str, says: str) -> None:
        self._findings.add("I5", at, says, peer=name, key=(at, name, says))
