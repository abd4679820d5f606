"""``decentral bench``: one benchmark at a time, a table for people or JSON for machines.

decentral bench allreduce --peers 4 --size-mib 64 --codec fp32 --encrypt off --against gloo --json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    reduce = kinds.add_parser("allreduce", help="all-reduce over loopback, next to others")
    reduce.add_argument("--peers", type=int, default=4)
    reduce.add_argument("--size-mib", type=float, default=64)
    reduce.add_argument("--codec", choices=("fp32", "bf16", "int8"), default="fp32")
    reduce.add_argument("--schedule", choices=("ring",), default="ring")
    reduce.add_argument("--encrypt", choices=("on", "off"), default="on")
    reduce.add_argument("--streams", type=int, default=2, help="bulk streams per link")
    reduce.add_argument("--runs", type=int, default=7)
    reduce.add_argument("--against", default="", help="comma-separated: gloo")
    codecs = kinds.add_parser("codecs", help="ratio, speed and error of every codec on one core")
    codecs.add_argument("--size-mib", type=int, default=64)
    codecs.add_argument("--runs", type=int, default=7)
    for kind in (reduce, codecs):
        kind.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    report = _measure(args)
    if args.json:
        print(json.dumps(report))
    else:
        show(report, Console())
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.bench == "codecs":
        from decentral.bench.codecs import measure

        return measure(args.size_mib, args.runs)
    from decentral.bench.allreduce import AllReduceBench

    return AllReduceBench(
        peers=args.peers,
        size_mib=args.size_mib,
        codec=args.codec,
        encrypt=args.encrypt == "on",
        runs=args.runs,
        streams=args.streams,
        against=tuple(filter(None, args.against.split(","))),
    ).run()


def show(report: dict[str, Any], console: Console) -> None:
    """Every list of results is a table: its keys are the columns."""
    columns = [key for key in report["results"][0] if key != "seconds"]
    table = Table(title=report["bench"])
    for column in columns:
        table.add_column(column)
    for result in report["results"]:
        table.add_row(*(_cell(result[column]) for column in columns))
    console.print(table)
    for name, ratio in report.get("ratios", {}).items():
        console.print(f"{name}: {ratio:.2f}×")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
