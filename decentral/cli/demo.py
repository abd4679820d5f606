"""``decentral demo [gpt]``: the main job, on this machine, with real processes over real sockets.

    peer 1 ━━━━━━━━━━━━━━━━╳ SIGKILL in mid-round (it made the run: no master)
    peer 2 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 3 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 4 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 5                       ┗━ joins late, through a survivor ▶

Then two baselines in one process each: one peer alone (the same steps, a quarter of the tokens)
and data-parallel (the same tokens); and the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from decentral.cli.processes import PeerProcess
from decentral.errors import ConfigError, DecentralError
from decentral.types import short

PEERS = 4
ROUNDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", choices=("gpt", "dipaco", "diffusion"), default="gpt",
        help="gpt: one model with DiLoCo (default); dipaco: paths through shared modules; "
        "diffusion: experts that never speak to each other",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="of gpt: outer rounds (default 100); the others have their own"
    )
    parser.add_argument(
        "--recipe", metavar="MODULE:FUNCTION",
        help="of dipaco and diffusion: another size of the same kind",
    )  # fmt: skip
    parser.add_argument("--no-baselines", action="store_true", help="skip the two baseline runs")
    parser.add_argument("--keep", type=Path, help="keep the peers' homes and logs in this folder")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="decentral-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if args.what != "gpt":
        return _programs(args, folder, console)
    if args.recipe is not None:
        raise ConfigError("--recipe is for dipaco and diffusion", phase="demo")
    demo = Demo(folder, args.rounds or ROUNDS, console)
    try:
        demo.train()
        if not args.no_baselines:
            demo.measure_baselines()
    finally:
        demo.close()
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    report = demo.report()
    if args.json:
        print(json.dumps(report))
    else:
        show(report, console)
    return 0 if report["verdict"] == "held" else 1


def _programs(args: argparse.Namespace, folder: Path, console: Console) -> int:
    from decentral.cli import demo_program

    if args.rounds is not None:
        raise ConfigError(f"how long {args.what} trains is its recipe's business", phase="demo")
    try:
        report = demo_program.run(
            args.what,
            args.recipe or args.what,
            folder,
            console,
            baselines=not args.no_baselines,
            keep=args.keep,
        )
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps(report))
    return 0 if report["verdict"] == "held" else 1


class Demo:
    """The peers, the two faults, and what was seen."""

    def __init__(self, folder: Path, rounds: int, console: Console) -> None:
        self.folder, self.rounds, self.console = folder, rounds, console
        self.peers: list[PeerProcess] = []
        self.kill_round = max(2, rounds * 3 // 10)
        self.late_round = max(3, rounds * 4 // 10)
        self.killed: PeerProcess | None = None
        self.killed_at = 0.0
        self.recovery_s = 0.0
        self.period_s = 0.0
        self.late: PeerProcess | None = None
        self.baselines: dict[str, dict[str, Any]] = {}

    # ------------------------------------------------------------------------------- the run

    def train(self) -> None:
        first = self.spawn("peer-1", [])
        word = first.wait_for("listening", timeout_s=60)["join"]
        for number in range(2, PEERS + 1):
            self.spawn(f"peer-{number}", ["--join", word])
        with Live(console=self.console, refresh_per_second=4) as live:
            while not self.finished():
                self.inject()
                live.update(self.picture())
                self.check_alive()
                time.sleep(0.05)
            live.update(self.picture())

    def spawn(self, name: str, more: list[str]) -> PeerProcess:
        rounds = ["--rounds", str(self.rounds)] if not more else []
        peer = PeerProcess(name, self.folder / name, ["--recipe", "gpt", *rounds, *more])
        self.peers.append(peer)
        return peer

    def alive(self) -> list[PeerProcess]:
        return [peer for peer in self.peers if peer is not self.killed]

    def round(self) -> int:
        return max((peer.round for peer in self.alive()), default=0)

    def inject(self) -> None:
        """The two faults, each once, when their round has come."""
        first = self.peers[0]
        if self.killed is None and first.round >= self.kill_round:
            periods = [event["seconds"] for event in first.events("round")][-10:]
            self.period_s = statistics.median(periods)
            time.sleep(self.period_s / 2)  # well inside the next round
            first.kill()
            self.killed, self.killed_at = first, time.monotonic()
        if self.killed and not self.recovery_s:
            # A round that the dead peer still had a part in is no recovery.
            without = [
                event["seen_at"]
                for peer in self.alive()
                for event in peer.events("round")
                if event["seen_at"] > self.killed_at and event["participants"] < PEERS
            ]
            if without:
                self.recovery_s = min(without) - self.killed_at
        if self.late is None and self.killed and self.round() >= self.late_round:
            word = self.peers[1].invite()
            self.late = self.spawn(f"peer-{PEERS + 1}", ["--join", word])

    def finished(self) -> bool:
        return bool(self.peers) and all(peer.events("done") for peer in self.alive())

    def check_alive(self) -> None:
        for peer in self.alive():
            if peer.exit_status() not in (None, 0):
                raise DecentralError(
                    f"{peer.name} ended with status {peer.exit_status()}: {peer.last_words()}",
                    phase="demo",
                )

    def picture(self) -> Table:
        table = Table(title=f"decentral demo · round {self.round()} of {self.rounds}")
        for column in ("peer", "id", "state", "round", "members", "train loss", "sent MiB"):
            table.add_column(
                column, justify="left" if column in ("peer", "id", "state") else "right"
            )
        for peer in self.peers:
            state = "training" if peer.round else "starting"
            if peer is self.killed:
                state = "[red]killed (SIGKILL)[/]"
            elif peer.events("done"):
                state = "[green]done[/]"
            elif peer is self.late:
                state = "[cyan]joined late[/]" if peer.round else "[cyan]joining[/]"
            last = peer.last("round") or {}
            loss = last.get("loss")
            table.add_row(
                peer.name,
                short(peer.peer_id),
                state,
                str(peer.round or "–"),
                str(last.get("participants", "–")),
                f"{loss:.3f}" if loss is not None else "–",
                f"{last.get('bytes_sent', 0) / 2**20:.1f}",
            )
        return table

    # ------------------------------------------------------------------------- the comparison

    def measure_baselines(self) -> None:
        from decentral import baselines, recipes  # imports torch

        recipe = recipes.load_training("gpt")
        steps = self.rounds * recipe.build(0).strategy.sync_every
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        ) as progress:
            alone = progress.add_task("one peer alone", total=steps)
            parallel = progress.add_task("data-parallel", total=steps)

            def alone_done(step: int, _loss: float) -> None:
                progress.update(alone, completed=step)

            def parallel_done(step: int, _loss: float) -> None:
                progress.update(parallel, completed=step)

            one = baselines.single(recipe, steps, progress=alone_done)
            many = baselines.data_parallel(recipe, steps, PEERS, progress=parallel_done)
        self.baselines = {"single": asdict(one), "data_parallel": asdict(many)}

    # ------------------------------------------------------------------------------ the report

    def report(self) -> dict[str, Any]:
        done = {
            peer.name: {**(peer.last("round") or {}), **peer.events("done")[-1]}
            for peer in self.alive()
        }
        hashes = {event["state_hash"] for event in done.values()}
        equal = len(hashes) == 1
        committed = max(event["round"] for event in done.values())
        full_time = [done[peer.name] for peer in self.peers[1:PEERS]]
        recovered = 0 < self.recovery_s <= self.period_s + 5
        return {
            "verdict": "held" if equal and recovered and committed >= self.rounds else "broken",
            "rounds_committed": committed,
            "killed": self.killed.name if self.killed else None,
            "round_period_s": round(self.period_s, 3),
            "recovery_s": round(self.recovery_s, 3),
            "hashes_equal": equal,
            "peers": {
                name: {
                    key: event[key]
                    for key in ("val_loss", "state_hash", "bytes_sent", "bytes_received", "tokens")
                }
                for name, event in done.items()
            },
            "baselines": self.baselines,
            "bytes_sent_per_peer": int(statistics.median(e["bytes_sent"] for e in full_time)),
        }

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


def show(report: dict[str, Any], console: Console) -> None:
    """The final table, for people."""
    table = Table(title="validation loss (nats per byte) and bytes")
    for column in ("run", "loss", "sent per peer", "state hash"):
        table.add_column(column, justify="right" if column != "run" else "left")
    for name, peer in report["peers"].items():
        table.add_row(
            f"decentral, {name}",
            f"{peer['val_loss']:.4f}",
            f"{peer['bytes_sent'] / 2**20:.1f} MiB",
            peer["state_hash"][:16],
        )
    names = {
        "single": "one peer alone (same steps, a quarter of the tokens)",
        "data_parallel": "data-parallel (same steps, same tokens)",
    }
    for key, baseline in report["baselines"].items():
        sent = baseline["bytes_per_peer"]
        table.add_row(
            names[key],
            f"{baseline['loss']:.4f}",
            f"{sent / 2**20:.1f} MiB (computed)" if sent else "–",
            "–",
        )
    console.print(table)
    parallel = report["baselines"].get("data_parallel")
    if parallel:
        factor = parallel["bytes_per_peer"] / max(1, report["bytes_sent_per_peer"])
        console.print(
            f"Each peer sent {factor:.1f}× fewer bytes than fp32 data-parallel would have "
            "(a ring over the same peers, computed; ours counted on the wire, with control)."
        )
    console.print(
        f"{report['killed']}, which had made the run, was killed in mid-round: the survivors "
        f"committed the next round {report['recovery_s']:.2f} s later "
        f"(an undisturbed round took {report['round_period_s']:.2f} s)."
    )
    same = "the same bits" if report["hashes_equal"] else "[red]DIFFERENT bits[/]"
    console.print(
        f"{report['rounds_committed']} rounds committed; {len(report['peers'])} peers hold {same}."
    )
    if report["verdict"] != "held":
        print("decentral demo: something did not hold; see above", file=sys.stderr)
