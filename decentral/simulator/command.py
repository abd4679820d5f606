"""`decentral simulate`: run seeds, report one line each, say how to replay a failure."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decentral.errors import ConfigError
from decentral.simulator.scenarios import DURATION_S, HEAL_S, SCENARIOS, Report
from decentral.simulator.seeds import MAX_SEED, fresh_seeds, run_seed, run_seeds

FIELDS = ("seed", "peers", "simulated_s", "events", "violations", "trace_hash")
LEAST_S = 90.0


def simulate_command(
    peers: int = 32,
    seeds: int | None = None,
    seed: int | None = None,
    scenario: str = "everything",
    json: bool = False,
    *,
    fresh: bool = False,
    jobs: int | None = None,
    simulated_s: float = DURATION_S,
    for_s: float | None = None,
    trace: str | None = None,
) -> int:
    """Simulate the seed given, or `seeds` of them, or as many as fit into `for_s`.

    `trace`: write a page that shows the one seed. Exit status: 0 only without violations.
    """
    if scenario not in SCENARIOS:
        known = ", ".join(sorted(SCENARIOS))
        raise ConfigError(f"there is no scenario {scenario!r}; there are: {known}")
    if not 1 <= peers <= 4096:
        raise ConfigError(f"--peers is between 1 and 4096, not {peers}")
    if seed is not None and not 0 <= seed < MAX_SEED:
        raise ConfigError(f"--seed is between 0 and {MAX_SEED - 1}, not {seed}")
    if simulated_s < LEAST_S:
        raise ConfigError(
            f"--simulated-s is at least {LEAST_S:.0f}: {HEAL_S:.0f} s of it are for healing, and "
            "quiet rounds follow"
        )
    if for_s is not None and for_s <= 0:
        raise ConfigError(f"--for is a positive number of seconds, not {for_s}")
    if trace is not None:
        if seed is None:
            raise ConfigError("--trace shows one run: give its --seed")
        return _traced(seed, peers, scenario, simulated_s, Path(trace), as_json=json)
    total = 1 if seed is not None else seeds or (None if for_s is not None else 10)
    which = [seed] if seed is not None else islice(fresh_seeds() if fresh else count(), total)
    width = jobs or min(os.cpu_count() or 1, total or 1 << 30)
    reports = run_seeds(
        which, peers, scenario, simulated_s, jobs=width, for_s=for_s or float("inf")
    )
    failed = done = 0
    for report in reports if json else _with_progress(reports, total):
        done += 1
        failed += bool(report.violations)
        show(report, scenario, simulated_s, as_json=json)
    if not json and done > 1:
        print(f"{done} seeds, {failed} with violations")
    return 1 if failed else 0


def _traced(
    seed: int, peers: int, scenario: str, simulated_s: float, path: Path, *, as_json: bool
) -> int:
    from decentral.simulator.recorder import Recorder
    from decentral.simulator.trace_page import trace_page, write_page

    recorder = Recorder()
    report = run_seed(seed, peers, scenario, simulated_s, twice=False, prepare=recorder.attach)
    show(report, scenario, simulated_s, as_json=as_json)
    write_page(path, trace_page(recorder, report, replay(report, scenario, simulated_s)))
    return 1 if report.violations else 0


def _with_progress(reports: Iterable[Report], total: int | None) -> Iterator[Report]:
    """A bar for people; none where the output goes into a file."""
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("seeds", total=total)
        for report in reports:
            bar.advance(task)
            yield report


def replay(report: Report, scenario: str, simulated_s: float) -> str:
    """The command that shows this run again."""
    return (
        f"decentral simulate --seed {report.seed} --peers {report.peers} "
        f"--simulated-s {simulated_s:g} --scenario {scenario}"
    )


def show(report: Report, scenario: str, simulated_s: float, *, as_json: bool) -> None:
    """One line for a machine, or one for a person with what it takes to see it again."""
    if as_json:
        row = asdict(report)
        print(json_module.dumps({name: row[name] for name in FIELDS}), flush=True)
    else:
        verdict = "ok" if not report.violations else f"{len(report.violations)} violations"
        print(
            f"seed {report.seed}: {verdict}; {report.peers} peers, {report.simulated_s:.0f} s, "
            f"{report.events} events, {report.rounds} rounds, longest gap "
            f"{report.longest_gap_s:.1f} s, whole after {report.healed_s:.1f} s, "
            f"trace {report.trace_hash[:16]}",
            flush=True,
        )
    if report.violations:
        for one in report.violations[:20]:
            print(f"  {one}", file=sys.stderr)
        print(f"  replay: {replay(report, scenario, simulated_s)}", file=sys.stderr)
