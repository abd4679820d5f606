"""Real peers: separate processes, real sockets, real signals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decentral.cli.processes import Launch, PeerProcess

RECIPES = Path(__file__).resolve().parent.parent / "integration"
TINY = "tiny_recipe:recipe"


class Peers:
    """Starts peers and ends them with the test. On failure their last words are shown."""

    def __init__(self, folder: Path, launch: Launch | None = None) -> None:
        """`launch`: of a fork server for `forked_cli`; what starts otherwise goes without it."""
        self.folder, self.launch = folder, launch
        self.all: list[PeerProcess] = []

    def start(
        self,
        name: str,
        *args: str,
        recipe: str = TINY,
        home: Path | None = None,
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> PeerProcess:
        if not more.keys() & {"prefix", "program"}:
            more.setdefault("launch", self.launch)
        peer = PeerProcess(
            name,
            home or self.folder / name,
            ["--recipe", recipe, *args],
            env={"PYTHONPATH": str(RECIPES), **(env or {})},
            **more,
        )
        self.all.append(peer)
        return peer

    def first(self, *args: str, **more: Any) -> tuple[PeerProcess, str]:
        """A peer that makes a run, and its join word."""
        peer = self.start("peer-1", *args, **more)
        return peer, str(peer.wait_for("listening", timeout_s=30)["join"])

    def group(self, count: int, *args: str, **more: Any) -> list[PeerProcess]:
        """`count` peers that all commit rounds together."""
        first, word = self.first(*args, **more)
        others = [self.start(f"peer-{n}", "--join", word, **more) for n in range(2, count + 1)]
        peers = [first, *others]
        for peer in peers:
            peer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == count)
        return peers

    def show(self) -> None:
        for peer in self.all:
            print(f"--- {peer.name}: exit status {peer.exit_status()}", file=sys.stderr)
            for event in peer.events()[-12:]:
                print(f"    {event}", file=sys.stderr)
            print(peer.stderr()[-3000:], file=sys.stderr)


def until(condition: Callable[[], Any], *, timeout_s: float, says: str) -> Any:
    """Wait for a condition of several processes; the first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{says}: not within {timeout_s} s"
        time.sleep(0.02)
    return value


def same_bits(peers: Sequence[PeerProcess], round_: int) -> str:
    """The one hash that all these peers hold after a round (I1)."""
    hashes = {
        peer.name: peer.wait_for(
            "round", timeout_s=30, where=lambda event: event["round"] == round_
        )["state_hash"]
        for peer in peers
    }
    assert len(set(hashes.values())) == 1, f"round {round_}: {hashes}"
    return next(iter(hashes.values()))
