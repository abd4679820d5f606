"""``decentral bench nat``: does every pair of networks connect, how, how fast, and with what data?

    a's site ── router ──┐
                         ├── internet ── entry: makes the run; observer: another public peer
    b's site ── router ──┘
                         a and b join it, get a link to each other, and move 16 MiB each way over
                         this link, verified by hash; `bar` is which classes of link will do

Network namespaces with nftables (Linux, root): see `decentral.bench.nat_lab`. Times that are over
their limits (`nat_scenarios`) are listed as late; a report holds whatever the machine's load was.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from decentral.bench import machine
from decentral.bench.fleet import folder
from decentral.bench.nat_lab import NatLab
from decentral.bench.nat_peer import PROGRAM
from decentral.bench.nat_play import Stage, play
from decentral.bench.nat_scenarios import (
    CONNECTED,
    DIRECT,
    DIRECT_PAIRS,
    FAR,
    ZERO,
    Scenario,
    scenarios,
    sites,
)
from decentral.cli.fork_server import ForkServer
from decentral.errors import ConfigError
from decentral.types import short

COLOURS = {"direct": "green", "mapped": "green", "punched": "green", "relayed": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", metavar="REGEX", help="scenarios that match")
    parser.add_argument("--parallel", type=int, default=2, help="scenarios at a time")
    parser.add_argument(
        "--patience-s", type=float, default=6.0, help="for a link that is good enough"
    )
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = [one for one in scenarios() if re.search(args.only, f"{one.group}: {one.name}")]
    if not chosen:
        raise ConfigError(f"no scenario matches {args.only!r}", phase="start")
    if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
        raise ConfigError(f"{args.keep} is not empty: peers would go on with runs that they find")
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    with (
        ForkServer(PROGRAM[0]) as server,
        folder(args.keep) as home,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("scenarios", total=len(chosen))
        for rtt_ms in (ZERO, FAR):
            these = [one for one in chosen if one.rtt_ms == rtt_ms]
            if not these:
                continue
            used = {site for one in these for site in (*one.sites, one.entry, one.observer)}
            there = sites(rtt_ms)
            used |= {there[name].behind for name in used}
            needed = {name: site for name, site in there.items() if name in used}
            with NatLab(needed, rtt_ms=rtt_ms) as lab:
                crowd = _Crowd(lab, Stage(server, home), these, args.patience_s, (bar, task))
                rows += crowd.play(args.parallel)
    order = {one.name: number for number, one in enumerate(chosen)}
    rows.sort(key=lambda row: order[row["scenario"]])
    wrong = _wrong(rows)
    return {
        "bench": "nat",
        "held": not wrong,
        "machine": machine.about(),
        "took_s": round(time.monotonic() - began, 1),
        "totals": _totals(rows),
        "results": rows,
        "notes": wrong,
        "late": [f"{row['scenario']}: {late}" for row in rows for late in row["late"]],
    }


class _Crowd:
    """Plays scenarios a few at a time, no two of them on the same site."""

    def __init__(
        self,
        lab: NatLab,
        stage: Stage,
        left: Sequence[Scenario],
        patience_s: float,
        progress: tuple[Progress, TaskID],
    ) -> None:
        self._lab, self._stage, self._patience_s = lab, stage, patience_s
        self._progress = progress
        self._changed = threading.Condition()
        self._left, self._busy = list(left), set[str]()  # guarded by _changed, as what follows
        self._rows: list[dict[str, Any]] = []
        self._error: BaseException | None = None

    def play(self, parallel: int) -> list[dict[str, Any]]:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self._rows

    def _work(self) -> None:
        while (scenario := self._next()) is not None:
            try:
                row = play(self._lab, self._stage, scenario, self._patience_s)
                with self._changed:
                    self._rows.append(row)
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error
            with self._changed:
                self._busy -= scenario.sites
                self._changed.notify_all()
            self._progress[0].advance(self._progress[1])

    def _next(self) -> Scenario | None:
        with self._changed:
            while self._left and self._error is None:
                for scenario in self._left:
                    if not scenario.sites & self._busy:
                        self._left.remove(scenario)
                        self._busy |= scenario.sites
                        return scenario
                self._changed.wait()
            return None


def _totals(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Per group: how many connected with verified data, and how many of them without a relay."""
    totals = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        these = [row for row in rows if row["group"] == group]
        linked = sum(row["class"] in CONNECTED and row["verified"] for row in these)
        direct = sum(row["class"] in DIRECT and row["verified"] for row in these)
        totals[group] = f"{linked}/{len(these)} connected, {direct} direct"
    return totals


def _wrong(rows: Sequence[dict[str, Any]]) -> list[str]:
    wrong = [f"{row['scenario']}: {row['why']}" for row in rows if not row["held"]]
    pairs = [row for row in rows if row["group"] == "pairs"]
    direct = sum(row["class"] in DIRECT for row in pairs)
    if len(pairs) == 15 and direct < DIRECT_PAIRS:
        wrong.append(f"{direct} of the 15 pairs are direct: {DIRECT_PAIRS} should be")
    return wrong


def show(report: dict[str, Any], console: Console) -> None:
    """For people: a line for each scenario."""
    table = Table(title="who reaches whom, and how")
    for name in ("scenario", "link", "how", "entry s", "link s", "direct s", "MiB/s", "data"):
        table.add_column(name, justify="right" if name.endswith("s") else "left")
    group = ""
    for row in report["results"]:
        if group and group != row["group"]:
            table.add_section()
        group = row["group"]
        colour = COLOURS.get(row["class"], "red") if row["held"] else "red"
        relay = short(row["relay"]) if row["relay"] else ""
        via = f" through {relay}" if relay not in row["how"] else ""
        table.add_row(
            row["scenario"],
            f"[{colour}]{row['class']}[/]",
            (row["how"] + via) if row["held"] else row["why"],
            *(_seconds(row[name]) for name in ("entry_s", "link_s", "direct_s")),
            "–" if row["mib_s"] is None else f"{row['mib_s']:.0f}",
            "verified" if row["verified"] else "–",
        )
    console.print(table)
    for name, total in report["totals"].items():
        console.print(f"{name}: {total}", highlight=False)
    for late in report["late"]:
        console.print(f"late: {late}", highlight=False)
    console.print(f"{len(report['results'])} scenarios in {report['took_s']} s", highlight=False)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
