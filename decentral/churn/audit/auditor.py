"""Reads a run's directory, while the run goes on or afterwards, and says what did not hold.

auditor = Auditor(folder)
while running:
    if auditor.poll(): …              new violations since the last call
report = auditor.finish()             once nothing is written any more
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from decentral.churn.audit.agreement import Acknowledged
from decentral.churn.audit.contributions import Contributions
from decentral.churn.audit.failures import Failures
from decentral.churn.audit.findings import Findings, Violation
from decentral.churn.audit.gaps import Gaps
from decentral.churn.audit.goodput import goodput
from decentral.churn.audit.history import History
from decentral.churn.audit.leaks import Leaks
from decentral.churn.audit.logs import DRIVER, Event, RunLogs, records_of
from decentral.churn.audit.report import Report, build
from decentral.churn.audit.samples import Samples
from decentral.churn.audit.settings import Settings
from decentral.churn.audit.timeline import World
from decentral.errors import ConfigError

BEHIND_S = 1.0
"""`poll` judges what is older: a line may reach its file a little after the moment it names."""


class Auditor:
    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        """`settings`: instead of those that the driver's "run" line leads to."""
        self.folder = folder
        self.findings = Findings()
        self.world = World()
        self.history = History(self.world, self.findings)
        self.contributions = Contributions(self.world, self.history, self.findings)
        self.samples = Samples(self.world, self.findings)
        self.gaps = Gaps(self.world, self.history, self.findings)
        self.failures = Failures(folder, self.findings)
        self.leaks = Leaks(folder, self.findings)
        self.logs = RunLogs(folder, self.findings)
        self.history.listeners += [
            Acknowledged(self.world, self.history, self.findings),
            self.contributions,
            self.samples,
            self.gaps,
        ]
        self.settings = settings
        self._apply(settings or Settings())
        self._reported = 0
        self._last_at = 0.0

    def poll(self, now: float | None = None) -> list[Violation]:
        """What has gone wrong since the last call, as of a second ago.

        `now`: CLOCK_MONOTONIC seconds, by default this moment. Leaks are judged at the end.
        """
        if self.settings is None and not self._know_options():
            return []  # the undisturbed measurement is still going on
        horizon = (time.monotonic() if now is None else now) - BEHIND_S
        self._advance(horizon)
        self.gaps.passed(horizon)
        self.failures.read_stderr(horizon)
        self.leaks.read()
        new = self.findings.violations[self._reported :]
        self._reported = len(self.findings.violations)
        return new

    def finish(self) -> Report:
        """Everything to the last line, and the judgement of the whole. Not to be polled again."""
        if not (self.folder / "timeline.jsonl").is_file():
            raise ConfigError(f"no run in {self.folder}: it has no timeline.jsonl", phase="audit")
        if self.settings is None:
            self._know_options()
        self._advance(math.inf)
        end = self.world.ended_at or self._last_at
        self.gaps.passed(end)
        if self.world.ended_at is None:
            self.gaps.left_behind(end)
        self.failures.read_stderr(None)
        self.leaks.read()
        growths = self.leaks.measure()
        if not self.history.commits:
            self.findings.add("I3", None, "no round was ever committed")
        for name in sorted(self.world.peers):
            if name not in self.logs.peers or not self.logs.peers[name].lines:
                self.findings.add("log", None, f"{name} has no event log", peer=name)
        return build(self, goodput(self.world, self.history, end), growths, end)

    # ------------------------------------------------------------------ event by event

    def _advance(self, horizon: float) -> None:
        for event in self.logs.until(horizon):
            self._last_at = max(self._last_at, event.at)
            try:
                self._see(event)
            except (KeyError, TypeError, ValueError) as error:
                where = event.source or "the driver"
                says = f"a {event.what!r} line of {where} is malformed: {error!r}"
                self.findings.add("log", event.at, says, peer=event.source or None)

    def _see(self, event: Event) -> None:
        known = len(self.history.lineages)
        changed = self.world.see(event)
        if event.source == DRIVER:
            if event.what == "exit":
                self.failures.exited(event)
            elif event.what == "violation":  # what only the driver could see
                says, peer = str(event.data["says"]), event.data.get("peer")
                self.findings.add(str(event.data["invariant"]), event.at, says, peer=peer)
            elif event.what == "end":
                self.gaps.left_behind(event.at)  # before they all leave
        else:
            match event.what:
                case "contribution":
                    self.contributions.see(event)
                case "fault" | "left" | "done":
                    self.failures.see(event)
                case "round" | "commit" | "adopted" | "rolled-back" | "view" | "members":
                    self.history.see(event)
            if event.what == "commit":
                self.samples.granted(event)
            changed = (
                changed or event.what in ("view", "members") or len(self.history.lineages) > known
            )
        if changed:
            self.gaps.changed(event.at)

    def _know_options(self) -> bool:
        """The driver says what it started the peers with once they have committed rounds."""
        for record in records_of(self.folder / "timeline.jsonl"):
            if record.get("what") == "run":
                self.settings = Settings.of(record.get("options", {}))
                self._apply(self.settings)
                return True
        return False

    def _apply(self, settings: Settings) -> None:
        for one in (self.contributions, self.samples, self.gaps):
            one.settings = settings


def audit(folder: Path, settings: Settings | None = None) -> Report:
    """The report of a run that is over. ConfigError where there is none."""
    return Auditor(folder, settings).finish()
