"""``decentral bench strategies``: what every algorithm makes of the same samples, between peers.

decentral bench strategies --seeds 5 --plot strategies.png
decentral bench strategies --rows single diloco async-diloco,outer_lr=0.3 --lr 1e-3 3e-3 --json

    one seed    the same initial parameters and the same order of samples in every row
    one row     P processes over loopback, all of which begin together; then the next row
    loss        validation loss of the committed parameters at the end, equal on all peers
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from decentral.bench.intervals import Interval, paired
from decentral.bench.machine import about
from decentral.bench.strategy_rows import DATA_PARALLEL, ROWS, Row, chosen
from decentral.bench.training_peer import PROGRAM
from decentral.cli.fork_server import ForkServer
from decentral.cli.processes import PeerProcess
from decentral.errors import ConfigError, DecentralError
from decentral.strategies.named import spell

START_S, STEP_S = 60.0, 1.0
"""Longest waits: for a peer to listen, and per step of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to be made."""

    row: Row
    lr: float | None
    seed: int
    steps: int
    peers: int
    recipe: str

    @property
    def key(self) -> Mapping[str, Any]:
        """What a result is recognized by in a log."""
        return {
            "row": self.row.name,
            "options": {} if self.row.baseline else dict(self.row.strategy.options()),
            "slow": list(self.row.slow),
            "lr": self.lr,
            "seed": self.seed,
            "steps": self.steps,
            "peers": self.peers,
            "recipe": self.recipe,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", default=[row.name for row in ROWS],
        help="names of rows, or strategies in one word; ROW+slow=4,10 slows its last peers down "
        f"(default: {' '.join(row.name for row in ROWS)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument("--steps", type=int, default=1500, help="inner steps (default 1500)")
    parser.add_argument("--peers", type=int, default=4, help="processes (default 4)")
    parser.add_argument("--recipe", default="gpt", help="what is trained (default gpt)")
    parser.add_argument(
        "--lr", type=float, nargs="+", default=[None], help="a grid (default: the recipe's)"
    )
    parser.add_argument(
        "--against", default="diloco", metavar="ROW", help="paired differences (default diloco)"
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE",
        help="one JSON line per run; runs that it holds already are not made again",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG (needs matplotlib)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("seeds", "steps", "peers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(args, name)}", phase="bench")
    rows = chosen(args.rows)
    jobs = [
        Job(row=row, lr=lr, seed=seed, steps=args.steps, peers=args.peers, recipe=args.recipe)
        for seed in range(args.seeds)
        for lr in args.lr
        for row in rows
    ]
    done = list(_run_all(jobs, args.log))
    failed = [
        f"{one['row']}, seed {one['seed']}: {one['failed']}" for one in done if "failed" in one
    ]
    done = [one for one in done if "failed" not in one]
    if not done:
        raise DecentralError("; ".join(failed), phase="bench")
    report = {
        "bench": "strategies",
        "steps": args.steps,
        "peers": args.peers,
        "recipe": args.recipe,
        "against": args.against,
        "results": summaries(done, args.against),
        "held": not failed,
        "failed": failed,
        "machine": about(),
    }
    if args.plot is not None:
        from decentral.bench.strategy_plot import plot

        plot(report["results"], args.plot)
    return report


# ------------------------------------------------------------------ runs


def _run_all(jobs: Sequence[Job], log: Path | None) -> Iterator[dict[str, Any]]:
    known = _read(log)
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ) as progress,
        contextlib.ExitStack() as stack,
    ):
        server: ForkServer | None = None
        bar = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(bar, description=f"{job.row.name}, seed {job.seed}")
            result = known.get(json.dumps(job.key))
            if result is None:
                if server is None and not job.row.baseline:
                    server = stack.enter_context(ForkServer(PROGRAM[0]))
                try:
                    if job.row.baseline or server is None:
                        made = _baseline(job)
                    else:
                        made = _between_processes(job, server)
                except DecentralError as error:
                    yield {**job.key, "failed": str(error)}
                    continue
                word = "" if job.row.baseline else spell(job.row.strategy)
                result = {**job.key, "strategy": word, **made}
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps(result) + "\n")
            yield result
            progress.advance(bar)


def _read(log: Path | None) -> dict[str, dict[str, Any]]:
    if log is None or not log.exists():
        return {}
    found = {}
    names = ("row", "options", "slow", "lr", "seed", "steps", "peers", "recipe")
    for line in log.read_text().splitlines():
        try:
            result = json.loads(line)
            found[json.dumps({name: result[name] for name in names})] = result
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{log} holds a line that is no run: {error}", phase="log") from error
    return found


def _baseline(job: Job) -> dict[str, Any]:
    from decentral import baselines, recipes
    from decentral.recipes.train import adjusted

    plain = recipes.load_training(job.recipe)
    recipe = recipes.Recipe(
        name=plain.name,
        version=plain.version,
        build=lambda seed: adjusted(plain.build(seed), lr=job.lr),
    )
    if job.row.name == DATA_PARALLEL:
        made = baselines.data_parallel(recipe, job.steps, job.peers, seed=job.seed)
    else:
        made = baselines.single(recipe, job.steps, seed=job.seed)
    return {
        "loss": made.loss,
        "tokens": made.tokens,
        "rounds": made.steps,
        "seconds": made.seconds,
        "bytes_sent": made.bytes_per_peer,
    }


def _between_processes(job: Job, server: ForkServer) -> dict[str, Any]:
    strategy = job.row.strategy
    rounds = max(1, round(job.steps / strategy.sync_every))
    words = ["--recipe", job.recipe, "--strategy", spell(strategy), "--seed", str(job.seed)]
    words += ["--members", str(job.peers), "--lan", "off", "--port-mapping", "off"]
    words += [] if job.lr is None else ["--lr", str(job.lr)]
    if job.row.by_tokens:
        words += ["--tokens", str(_tokens(job))]
    else:
        words += ["--rounds", str(rounds)]
    fast = job.peers - len(job.row.slow)
    slow = [*([1.0] * fast), *job.row.slow][-job.peers :]
    limit_s = START_S + STEP_S * job.steps * max(slow)
    peers: list[PeerProcess] = []
    with tempfile.TemporaryDirectory(prefix="decentral-strategies-") as folder:
        try:
            join: list[str] = []
            for number, factor in enumerate(slow, start=1):
                name = f"peer-{number}"
                more = [*join, "--slow", str(factor)]
                peer = PeerProcess(name, Path(folder) / name, [*words, *more], launch=server.launch)
                peers.append(peer)
                join = join or [
                    "--join", str(peer.wait_for("listening", timeout_s=START_S)["join"])
                ]  # fmt: skip
            ends = [peer.wait_for("trained", timeout_s=limit_s) for peer in peers]
            return _outcome(job, peers, ends)
        finally:
            for peer in peers:
                peer.close()


def _outcome(
    job: Job, peers: Sequence[PeerProcess], ends: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    hashes = {json.dumps(end["state_hashes"]) for end in ends}
    if len(hashes) > 1:
        raise DecentralError(f"{job.row.name}: peers end with different states", phase="bench")
    last = peers[0].last("round")
    counted = [event["participants"] for event in peers[0].events("round")]
    return {
        "loss": ends[0]["val_loss"],
        "training_loss": last["loss"] if last else None,
        "tokens": ends[0]["tokens"],
        "rounds": ends[0]["rounds"],
        "contributions_per_round": statistics.fmean(counted),
        "steps_of_each": [end["steps"] for end in ends],
        "seconds": max(end["seconds"] for end in ends),
        "bytes_sent": round(statistics.fmean(end["bytes_sent"] for end in ends)),
        "faults": [
            f"{peer.name}, {event['kind']}: {event['says']}"
            for peer in peers
            for event in peer.events("fault")
        ],
    }


def _tokens(job: Job) -> int:
    """As many as the rows whose rounds are counted see."""
    from decentral.recipes import load_training

    task = load_training(job.recipe).build(job.seed)
    batch = [task.dataset[i] for i in range(task.batch_size)]
    import torch

    return job.steps * job.peers * task.tokens_of(torch.utils.data.default_collate(batch))


# ------------------------------------------------------------------ tables


def summaries(done: Sequence[Mapping[str, Any]], against: str) -> list[dict[str, Any]]:
    """One result per row and learning rate, in the order of their first runs."""
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for one in done:
        groups.setdefault((one["row"], one["lr"]), []).append(one)
    results = []
    for (name, lr), runs in groups.items():
        by_seed = {run["seed"]: run["loss"] for run in runs}
        loss = Interval.of(list(by_seed.values()))
        reference = {run["seed"]: run["loss"] for run in groups.get((against, lr), [])}
        difference = paired(by_seed, reference) if name != against else None
        results.append(
            {
                "row": name,
                "strategy": runs[0]["strategy"],
                "lr": lr,
                "loss": loss.mean,
                "loss_ci95": loss.half,
                "difference": difference and difference.mean,
                "difference_ci95": difference and difference.half,
                "seeds": loss.count,
                "losses": list(by_seed.values()),
                **{
                    key: statistics.median(run[key] for run in runs)
                    for key in ("tokens", "rounds", "seconds", "bytes_sent")
                },
                "runs": [dict(run) for run in runs],
            }
        )
    return results


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{report['recipe']}, {report['peers']} peers, {report['steps']} steps each: "
        "validation loss of the committed parameters"
    )
    table.add_column("row", no_wrap=True)
    heads = ("loss", f"against {report['against']}", "rounds", "tokens", "seconds", "sent per peer")
    for head in heads:
        table.add_column(head, justify="right")
    for result in report["results"]:
        lr = f", lr {result['lr']:g}" if result["lr"] is not None else ""
        loss = Interval(result["loss"], result["loss_ci95"], result["seeds"])
        difference = "–"
        if result["difference"] is not None:
            half = result["difference_ci95"]
            difference = f"{result['difference']:+.3f}" + (f" ± {half:.3f}" if half else "")
        computed = " (computed)" if not result["strategy"] and result["bytes_sent"] else ""
        table.add_row(
            result["row"] + lr, str(loss), difference, f"{result['rounds']:g}",
            f"{result['tokens'] / 1e6:.2f} M", f"{result['seconds']:.1f}",
            f"{result['bytes_sent'] / 2**20:.1f} MiB{computed}",
        )  # fmt: skip
    console.print(table)
    for says in report["failed"]:
        console.print(f"failed: {says}")
    console.print(
        "± is a 95 % interval of the mean over seeds (Student's t), and differences are paired by "
        "seed. Bytes are all that a peer sent from its first step on, control messages included."
    )
