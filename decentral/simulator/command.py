"""`decentral simulate`: run seeds, report one line each, say how to replay a failure."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict

from decentral.errors import ConfigError
from decentral.simulator.scenarios import SCENARIOS, Report, simulate

FIELDS = ("seed", "peers", "simulated_s", "events", "violations", "trace_hash")


def simulate_command(
    peers: int = 32,
    seeds: int = 1,
    seed: int | None = None,
    scenario: str = "everything",
    json: bool = False,
) -> int:
    """Simulate seeds 0 … seeds-1, or the one given. Exit status: 0 only without violations."""
    if scenario not in SCENARIOS:
        known = ", ".join(sorted(SCENARIOS))
        raise ConfigError(f"there is no scenario {scenario!r}; there are: {known}")
    if not 1 <= peers <= 1000:
        raise ConfigError(f"--peers is between 1 and 1000, not {peers}")
    failed = False
    for one in [seed] if seed is not None else range(seeds):
        report = simulate(one, peers, scenario)
        failed = failed or bool(report.violations)
        show(report, scenario, as_json=json)
    return 1 if failed else 0


def show(report: Report, scenario: str, *, as_json: bool) -> None:
    """One line for a machine, or one for a person with what it takes to see it again."""
    if as_json:
        row = asdict(report)
        print(json_module.dumps({name: row[name] for name in FIELDS}), flush=True)
        return
    verdict = "ok" if not report.violations else f"{len(report.violations)} violations"
    print(
        f"seed {report.seed}: {verdict}; {report.peers} peers, {report.simulated_s:.0f} s, "
        f"{report.events} events, {report.rounds} rounds, longest gap "
        f"{report.longest_gap_s:.1f} s, trace {report.trace_hash[:16]}",
        flush=True,
    )
    for one in report.violations[:20]:
        print(f"  {one}", file=sys.stderr)
    if report.violations:
        print(
            f"  replay: decentral simulate --seed {report.seed} --peers {report.peers} "
            f"--scenario {scenario}",
            file=sys.stderr,
        )
