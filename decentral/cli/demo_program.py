"""``decentral demo dipaco`` and ``decentral demo diffusion``: a program of cells, on this machine.

    peer 1 ━━━━━━━━━━━╳ SIGKILL at a third of the way (it made the run)
    peer 2 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 3 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 4 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    peer 5                ┗━ comes in its place ▶

Then what was trained is read from the peers' disks, put together, and judged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from decentral.cli.processes import PeerProcess
from decentral.dataflow.program import Arrays, Program
from decentral.dataflow.progress import kind_of
from decentral.dataflow.store import Store
from decentral.errors import ConfigError, DecentralError, StateError
from decentral.recipes import ProgramRecipe, load
from decentral.types import short

PEERS = 4


def run(
    what: str, recipe: str, folder: Path, console: Console, *, baselines: bool, keep: Path | None
) -> dict[str, Any]:
    """The whole demo; what it found, for machines."""
    judge: Any
    if what == "dipaco":
        from decentral.cli import demo_dipaco as judge
    else:
        from decentral.cli import demo_diffusion as judge
    loaded = load(recipe)
    if not isinstance(loaded, ProgramRecipe):
        raise ConfigError(f"recipe {recipe!r} is no program", phase="demo")
    program = loaded.build(0)
    demo = ProgramDemo(recipe, program, folder, console)
    try:
        demo.train()
        report = demo.report()
        states = dict(demo.states())
    finally:
        demo.close()
    with console.status("judging …") as status:
        found = judge.judge(
            program, states, baselines, lambda cell: status.update(f"a baseline: {cell} …")
        )
    judge.show(found, keep, console)
    console.print(
        f"{report['killed']}, which had made the run, was killed; the others committed their next "
        f"round {report['recovery_s']:.2f} s later. {len(demo.alive())} peers end with "
        f"{'the same bits' if report['hashes_equal'] else '[red]DIFFERENT bits[/]'}."
    )
    return {**report, **{name: one for name, one in found.items() if name != "images"}}


class ProgramDemo:
    """The peers, the fault, and what was seen."""

    def __init__(self, recipe: str, program: Program, folder: Path, console: Console) -> None:
        self.recipe, self.program, self.folder, self.console = recipe, program, folder, console
        self.peers: list[PeerProcess] = []
        self.killed: PeerProcess | None = None
        self.killed_at = self.recovery_s = 0.0
        self.late: PeerProcess | None = None

    def train(self) -> None:
        first = self._spawn("peer-1", [])
        word = first.wait_for("listening", timeout_s=60)["join"]
        for number in range(2, PEERS + 1):
            self._spawn(f"peer-{number}", ["--join", word])
        with Live(console=self.console, refresh_per_second=2) as live:
            while not all(peer.events("done") for peer in self.alive()):
                self._inject()
                live.update(self._picture())
                self._check_alive()
                time.sleep(0.2)
            live.update(self._picture())

    def _spawn(self, name: str, more: list[str]) -> PeerProcess:
        # They stay when all is trained, so that whoever comes late still meets them.
        words = ["--recipe", self.recipe, "--members", str(PEERS), "--serve", *more]
        peer = PeerProcess(name, self.folder / name, words)
        self.peers.append(peer)
        return peer

    def alive(self) -> list[PeerProcess]:
        return [peer for peer in self.peers if peer is not self.killed]

    def at(self) -> dict[str, int]:
        """The newest round of each cell that anybody has spoken of."""
        found = dict.fromkeys(self.program.cells, 0)
        for peer in self.peers:
            for event in peer.events("round"):
                found[event["tag"]] = max(found[event["tag"]], event["round"])
        return found

    def _share(self) -> float:
        """How much of all rounds is done."""
        total = sum(self.program.rounds(cell) for cell in self.program.cells)
        return sum(self.at().values()) / total

    def _inject(self) -> None:
        first = self.peers[0]
        if self.killed is None and self._share() > 1 / 3:
            first.kill()
            self.killed, self.killed_at = first, time.monotonic()
            word = self.peers[1].invite()
            self.late = self._spawn(f"peer-{PEERS + 1}", ["--join", word, "--members", "1"])
        if self.killed is not None and not self.recovery_s:
            since = [
                event["seen_at"] - self.killed_at
                for peer in self.alive()
                for event in peer.events("round")
                if event["seen_at"] > self.killed_at + 0.5
            ]
            self.recovery_s = min(since, default=0.0)

    def _check_alive(self) -> None:
        for peer in self.alive():
            if peer.exit_status() not in (None, 0):
                raise DecentralError(
                    f"{peer.name} ended with status {peer.exit_status()}: {peer.last_words()}",
                    phase="demo",
                )

    def _picture(self) -> Table:
        table = Table(title=f"decentral demo {self.recipe} · {self._share():.0%} of all rounds")
        for column in ("peer", "id", "state", "keeps", "sent MiB"):
            right = column == "sent MiB"
            table.add_column(column, justify="right" if right else "left")
        for peer in self.peers:
            state = "working" if peer.round else "starting"
            if peer is self.killed:
                state = "[red]killed (SIGKILL)[/]"
            elif peer.events("done"):
                state = "[green]done[/]"
            elif peer is self.late and peer.round:
                state = "[cyan]came late[/]"
            newest: dict[str, int] = {}
            for event in peer.events("round"):
                newest[event["tag"]] = event["round"]
            kept = ", ".join(f"{cell} ({round})" for cell, round in sorted(newest.items()))
            sent = (peer.last("round") or {}).get("bytes_sent", 0)
            table.add_row(peer.name, short(peer.peer_id), state, kept, f"{sent / 2**20:.1f}")
        return table

    # ------------------------------------------------------------------ what has come of it

    def states(self) -> Mapping[str, Arrays]:
        """The last round of every cell, from the disks of those who keep it; a StateError that
        names a cell of which two disks hold different bits, or none holds any."""
        found: dict[str, Arrays] = {}
        for cell in self.program.cells:
            last = self.program.rounds(cell)
            roots = {
                event["state_hash"]
                for peer in self.peers
                for event in peer.events("round")
                if event["tag"] == cell and event["round"] == last
            }
            if last == 0:
                found[cell] = self.program.initial(cell)
                continue
            if len(roots) != 1:
                raise StateError(f"{cell}: {len(roots)} different last rounds", phase="demo")
            root = bytes.fromhex(next(iter(roots)))
            stores = (Store(p.home, self.program, lambda: b"") for p in self.alive())
            state = next((s for s in (one.load(cell, last, root) for one in stores) if s), None)
            if state is None:
                raise StateError(f"{cell}: nobody has its last round", phase="demo")
            found[cell] = state.tensors
        return found

    def report(self) -> dict[str, Any]:
        done = {peer.name: peer.events("done")[-1]["state_hash"] for peer in self.alive()}
        equal = len(set(done.values())) == 1
        rounds: dict[str, int] = {}
        for cell in self.program.cells:
            kind = kind_of(cell)
            rounds[kind] = rounds.get(kind, 0) + self.program.rounds(cell)
        return {
            "verdict": "held" if equal and self.killed and self.recovery_s else "broken",
            "recipe": self.recipe,
            "state_hash": next(iter(done.values())),
            "hashes_equal": equal,
            "killed": self.killed.name if self.killed else None,
            "recovery_s": round(self.recovery_s, 3),
            "rounds_committed": rounds,
            "bytes_sent": {
                peer.name: (peer.last("round") or {}).get("bytes_sent", 0) for peer in self.peers
            },
        }

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
