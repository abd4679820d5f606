"""``decentral bench dipaco``: paths through shared modules, next to DiLoCo at equal tokens.

decentral bench dipaco --seeds 3 --log dipaco.jsonl --plot domains.png
decentral bench dipaco --rows diloco 2x2 --outer-lr 0.5 0.7 1.0 --seeds 1 --json

    one seed    the same pretrained model, from which every row starts
    one run     in this process: the bits that peers would come to (`decentral.dataflow.alone`)
    perplexity  per byte of validation documents, without the prefix that routers see
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.bench.machine import about
from decentral.errors import ConfigError

ROWS = ("dense", "diloco", "2x2", "2x2-em", "flat", "4x4")
MORE = ("2x2-lm", "2x2-overlap", "2x2-unbalanced", "2x2-product", "2x2-early", "2x2-int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=[*ROWS, *MORE], metavar="ROW",
        help=f"of {' '.join([*ROWS, *MORE])} (default: {' '.join(ROWS)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--steps", type=int, default=30, help="inner steps per phase (default 30)")
    parser.add_argument("--phases", type=int, default=10, help="outer rounds (default 10)")
    parser.add_argument(
        "--outer-lr", type=float, nargs="+", default=[0.7], help="a grid, for all rows alike"
    )
    parser.add_argument(
        "--outer-momentum", type=float, default=0.5, help="for all rows alike (default 0.5)"
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE",
        help="one JSON line per run; runs that it holds already are not made again",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="a PNG of which domain went to which path (needs matplotlib)",
    )  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("seeds", "steps", "phases"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(args, name)}", phase="bench")
    results = list(_run_all(args))
    if args.plot is not None:
        from decentral.bench.dipaco_plot import plot

        plot(results, args.plot)
    return {"bench": "dipaco", "results": results, "machine": about()}


def _run_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    from decentral.bench import dipaco_rows
    from decentral.dipaco import corpus

    torch.set_num_threads(1)
    scale = dipaco_rows.Scale(phases=args.phases, steps=args.steps, momentum=args.outer_momentum)
    known = _read(args.log)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        start = None
        for row in args.rows:
            for lr in args.outer_lr if row != "dense" else args.outer_lr[:1]:
                key = {
                    "row": row, "seed": seed, "outer_lr": 1.0 if row == "dense" else lr,
                    "momentum": scale.momentum, "phases": scale.phases, "steps": scale.steps,
                    "eight_domains": corpus.fetched(),
                }  # fmt: skip
                result = known.get(json.dumps(key))
                if result is None:
                    start = start or dipaco_rows.base(seed, scale)
                    began = time.monotonic()
                    make = dipaco_rows.programs(seed, scale, start, lr)[row]
                    made = dipaco_rows.run(make())
                    result = {**key, **made, "seconds": time.monotonic() - began}
                    print(f"{row}, seed {seed}: {made['last_router']:.3f}", file=sys.stderr)
                    if args.log is not None:
                        with args.log.open("a") as file:
                            file.write(json.dumps(result) + "\n")
                yield result


def _read(log: Path | None) -> dict[str, dict[str, Any]]:
    if log is None or not log.exists():
        return {}
    names = ("row", "seed", "outer_lr", "momentum", "phases", "steps", "eight_domains")
    found = {}
    for line in log.read_text().splitlines():
        try:
            result = json.loads(line)
            found[json.dumps({name: result[name] for name in names})] = result
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{log} holds a line that is no run: {error}", phase="log") from error
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """One line per row and outer learning rate, means over seeds."""
    table = Table(
        "row", "outer lr", "seeds", "once", "every 64", "first router", "worst dead", "oracle",
        "M tokens", "TFLOP", title="validation perplexity per byte",
    )  # fmt: skip
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for result in report["results"]:
        groups.setdefault((result["row"], result["outer_lr"]), []).append(result)
    for (row, lr), runs in groups.items():
        columns = ("last_router", "last_router_windowed", "first_router")
        dead = [max(run["one_dead"]) for run in runs if "one_dead" in run]
        table.add_row(
            row, f"{lr:g}", str(len(runs)),
            *(f"{statistics.fmean(run[name] for run in runs):.3f}" for name in columns),
            f"{statistics.fmean(dead):.3f}" if dead else "",
            f"{statistics.fmean(run['oracle'] for run in runs):.3f}",
            f"{runs[0]['tokens'] / 1e6:.2f}", f"{runs[0]['training_flops'] / 1e12:.2f}",
        )  # fmt: skip
    console.print(table)
    moved = report["results"][-1]["bytes"]
    console.print(
        f"bytes per peer and phase of the last row: Δ {moved['delta']:,}, θ {moved['module']:,}, "
        f"replica {moved['replica']:,}; DiLoCo's ring {moved['diloco_ring']:,}: "
        f"{moved['delta'] / moved['diloco_ring']:.2f} of it where modules are computed beside "
        "their paths"
    )
