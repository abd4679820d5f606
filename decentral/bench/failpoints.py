"""``decentral bench failpoints``: every failpoint crashes, stalls and fails a peer of a run.

    whole ─ round ─ round ─╳ one peer passes the point                      ┌ back, with its home ─
    the others   ─ round ─ … ─ a round of all who live: recovered ─ round ─ ┴ a round of all: whole

    in whom it is armed, and who makes it pass:
      a member        nobody: rounds do                    a coordinator   its proposals do
      a joiner        in its environment: a member that left cleanly comes back
      a host          another member, that left cleanly and comes back
      a leaver        SIGTERM

Real processes that sleep instead of training. Whatever anybody printed must be what all hold, and
nothing that a dead one printed may be lost.
"""

from __future__ import annotations

import argparse
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decentral.bench import machine
from decentral.bench.failpoint_crew import ENDED_BY_ERROR, Case, Crew
from decentral.bench.fleet import folder, percentiles
from decentral.bench.sleep_peer import PROGRAM
from decentral.cli.fork_server import ForkServer
from decentral.errors import ConfigError, DecentralError
from decentral.failpoints import REGISTRY

KINDS = ("crash", "error", "stall")
COMMIT_LIMIT_S = 10.0
"""Until those who live have committed a round together; a stall's own time comes on top."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=3, help="of each, over crash, error and stall")
    parser.add_argument("--name", action="append", metavar="X", help="these only (default: all)")
    parser.add_argument("--kind", choices=KINDS, help="this only (default: all in turn)")
    parser.add_argument("--stall-s", type=float, default=0.6)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--fleets", type=int, default=2, help="runs side by side")
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--sync-every", type=int, default=4)
    parser.add_argument("--state-kib", type=int, default=64)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    names = args.name or list(REGISTRY)
    for name in names:
        if name not in REGISTRY:
            raise ConfigError(f"there is no failpoint {name!r} (there are: {', '.join(REGISTRY)})")
    if args.times < 1 or args.peers < 4 or args.fleets < 1 or not 0 < args.stall_s < 3600:
        raise ConfigError("bench failpoints needs one time, four peers, one fleet, a stall's time")
    kinds = [args.kind] if args.kind else KINDS
    cases = [Case(name, kinds[n % len(kinds)]) for name in names for n in range(args.times)]
    random.Random(args.seed).shuffle(cases)
    began = time.monotonic()
    with folder(args.keep) as home:
        work = _Work(args, home, cases)
        threads = [
            threading.Thread(target=work.run, args=(n,), name=f"fleet {n + 1}")
            for n in range(min(args.fleets, len(cases)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            work.cases.clear()  # interrupted: nobody begins another one
            for thread in threads:
                thread.join()
    return _report(args, work.rows, work.violations, time.monotonic() - began)


class _Work:
    """Cases that the fleets share; each takes the next one when it is whole."""

    def __init__(self, args: argparse.Namespace, home: Path, cases: Sequence[Case]) -> None:
        self.args, self.home = args, home
        self.cases = deque(cases)
        self.rows: list[dict[str, Any]] = []
        self.violations: list[str] = []

    def run(self, number: int) -> None:
        """A fleet after the other: whatever went wrong in one says nothing of the next case."""
        with ForkServer(*PROGRAM) as server:
            for life in itertools.count(1):
                if not self.cases:
                    return
                place = self.home / f"fleet-{number + 1}-{life}"
                seed = self.args.seed * 10_000 + 100 * number + life
                with Crew(self.args, place, seed, server.launch) as crew:
                    self._with_one(crew)
                    self.violations += crew.violations()

    def _with_one(self, crew: Crew) -> None:
        try:
            crew.found()
        except DecentralError as error:
            self.rows.append({"name": "", "kind": "", "failed": f"no fleet: {error.says}"})
            self.cases.clear()
            return
        while not crew.worn:
            try:
                case = self.cases.popleft()
            except IndexError:
                return
            row = crew.strike(case)
            self.rows.append(row)
            if "failed" in row:
                return


def _report(
    args: argparse.Namespace, rows: list[dict[str, Any]], violations: list[str], took_s: float
) -> dict[str, Any]:
    failed = [row for row in rows if "failed" in row]
    done = [row for row in rows if "failed" not in row]
    results = []
    for kind in KINDS:
        mine = [row for row in done if row["kind"] == kind]
        if mine:
            results.append(
                {
                    "kind": kind,
                    "names": len({row["name"] for row in mine}),
                    "times": len(mine),
                    "ended": sum(row["ended"] is not None for row in mine),
                    "recovered_s": percentiles([row["recovered_s"] for row in mine]),
                    "whole_s": percentiles([row["whole_s"] for row in mine]),
                }
            )
    late = [row for row in done if row["recovered_s"] > _limit_s(args, row)]
    notes = [*violations, *(_says(row, row["failed"]) for row in failed)]
    notes += [_says(row, f"recovered after {row['recovered_s']:.1f} s") for row in late]
    return {
        "bench": "failpoints",
        "held": not notes,
        "machine": machine.about(),
        "seed": args.seed,
        "took_s": round(took_s, 1),
        "limit_s": COMMIT_LIMIT_S,
        "ended_by_error": sorted(ENDED_BY_ERROR),
        "results": results or [{"times": 0}],
        "notes": notes[:40],
        "violations": len(violations),
        "instants": [
            {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            for row in sorted(rows, key=lambda row: (row["name"], row["kind"]))
        ],
    }


def _limit_s(args: argparse.Namespace, row: dict[str, Any]) -> float:
    return COMMIT_LIMIT_S + (float(args.stall_s) if row["kind"] == "stall" else 0.0)


def _says(row: dict[str, Any], says: str) -> str:
    return f"{row['name']}={row['kind']} in {row.get('victim')}: {says}"
