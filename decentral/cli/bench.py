"""``decentral bench``: one benchmark at a time, a table for people or JSON for machines.

decentral bench allreduce --peers 4 --size-mib 64 --encrypt off --against gloo,tcp
decentral bench unequal --rates-mbit 400,400,400,100
decentral bench link --rate-mbit 200 --rtt-ms 100 --loss 0.001 --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.bench.machine import about

BENCHES = {
    "allreduce": "all-reduce next to gloo, PCCL, bare TCP and TLS, iperf3",
    "codecs": "ratio, speed and error of every codec on one core",
    "unequal": "peers with unequal links: the chosen schedule, the ring, the lower bound",
    "link": "one long, lossy link: goodput as a fraction of the pipe, and its streams",
    "latency": "small all-reduces between distant peers, per schedule",
    "concurrency": "all-reduces in flight together, and what waits behind them",
    "faults": "a peer is killed, stopped or cut off in the middle of an all-reduce",
    "failover": "the coordinator is killed, stopped or cut off: until a successor commits",
    "failpoints": "a peer crashes, stalls or fails at every named point, and comes back",
    "storm": "many peers join a running run at once",
    "crowd": "hundreds of peers in one process join one run through a few entries",
    "partition": "a run is cut in two and healed (root)",
    "admission": "strangers that dribble, announce huge frames, replay, or sit in the middle",
    "nat": "every pair of NATs connects, with data over the link (root)",
    "state": "a state to a joiner from one member and from all; a kill, a liar, rounds meanwhile",
    "strategies": "what each algorithm makes of the same samples, between processes",
    "dipaco": "paths through shared modules, routed, next to DiLoCo at equal tokens",
    "overlap": "how much of its communication a strategy hides behind training (root)",
    "diffusion": "isolated experts and a router against one model, at equal training FLOPs",
    "memory": "memory that an all-reduce takes beyond its source",
}
"""Each is a module of decentral.bench with ``add_arguments(parser)`` and ``measure(args)``; with
``show(report, console)`` where one column per result is not the right table."""
MODULES = {"nat": "nat_matrix"}
"""Where the name is another one."""

PIPE_WIDTH = 150
LONG = ("seconds", "operations", "instants", "streams_over_time", "schedules")
"""Lists that a table for people leaves out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, says in BENCHES.items():
        kind = kinds.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        if name == "codecs":
            kind.add_argument("--size-mib", type=int, default=64)
            kind.add_argument("--runs", type=int, default=7)
        else:
            _module(name).add_arguments(kind)
        kind.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 only if all held that the benchmark claims to check."""
    signal.signal(signal.SIGTERM, _end)  # labs and workers go with their `with` blocks
    report = _measure(args)
    if args.json:
        print(json.dumps(report))
    else:
        console = Console()
        table = getattr(_module(args.bench), "show", show)
        table(report, console if console.is_terminal else Console(width=PIPE_WIDTH))
    if not report.get("held", True):
        print(f"decentral bench: {args.bench} did not hold; see its report", file=sys.stderr)
        return 1
    return 0


def _module(bench: str) -> Any:
    return importlib.import_module(f"decentral.bench.{MODULES.get(bench, bench)}")


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    module = _module(args.bench)
    if args.bench == "codecs":
        return {**module.measure(args.size_mib, args.runs), "machine": about()}
    return dict(module.measure(args))


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def show(report: dict[str, Any], console: Console) -> None:
    """One column per result, one row per figure; the rest follows line by line."""
    rows = [key for key in report["results"][0] if key not in LONG]
    table = Table("", *([""] * len(report["results"])), title=report["bench"], show_header=False)
    table.columns[0].no_wrap = True
    for key in rows:
        table.add_row(key, *(_brief(result[key]) for result in report["results"]))
    console.print(table)
    for name, ratio in report.get("ratios", {}).items():
        console.print(f"{name}: {ratio:.3f}")
    for note in report.get("notes", []):
        console.print(note)
    for key, value in report.items():
        if key not in ("bench", "results", "ratios", "notes", *LONG):
            console.print(f"{key}: {_cell(value)}", highlight=False)


def _brief(value: object) -> str:
    """For a narrow column: figures by some number lose that number."""
    if isinstance(value, dict):
        return " / ".join(_brief(one) for one in value.values())
    return f"{value:.3g}" if isinstance(value, float) else _cell(value)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(_cell(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
