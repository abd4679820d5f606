"""Sleeping peers as a group, and what all that they said must agree on.

with Fleet(folder, step_s=0.03) as fleet:
    peers = fleet.found(5)            a run in which all five commit
    peers[0].kill(); …
    fleet.violations()                of I1 and I2, in words
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decentral.bench.sleep_peer import PROGRAM
from decentral.cli.processes import Launch, PeerProcess
from decentral.errors import DecentralError

POLL_S = 0.01


class Fleet:
    """`args` are every peer's. `places`: command prefix and address of each peer's host.
    `launch`: of a fork server for `sleep_peer`, where interpreters would cost too much."""

    def __init__(
        self,
        folder: Path,
        *args: str,
        places: Sequence[tuple[Sequence[str], str]] = (),
        launch: Launch | None = None,
    ) -> None:
        self.folder, self.args, self.places, self.launch = folder, args, places, launch
        self.all: list[PeerProcess] = []
        """Every process that ever was, the dead included."""

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, number: int, *more: str, env: Mapping[str, str] | None = None) -> PeerProcess:
        """Peer `number` (from 0); with the home that it had, if it had one."""
        prefix, address = self.places[number] if self.places else ((), "127.0.0.1")
        peer = PeerProcess(
            f"peer-{number + 1}",
            self.folder / f"peer-{number + 1}",
            [*self.args, *more],
            prefix=prefix,
            listen=f"{address}:0",
            program=PROGRAM,
            env={"OPENBLAS_NUM_THREADS": "1", **(env or {})},
            launch=self.launch,
        )
        self.all.append(peer)
        return peer

    def found(
        self, count: int, more: Callable[[int], Sequence[str]] = lambda n: ()
    ) -> list[PeerProcess]:
        """A run of `count` peers that all have committed a round together."""
        first = self.start(0, *more(0))
        word = str(first.wait_for("listening", timeout_s=60)["join"])
        peers = [first, *(self.start(n, "--join", word, *more(n)) for n in range(1, count))]
        self.complete(peers, time.monotonic())
        return peers

    def complete(
        self, peers: Sequence[PeerProcess], since_s: float, timeout_s: float = 60
    ) -> float:
        """When each of them had committed a round of them all, begun after `since_s`."""
        return max(
            float(
                peer.wait_for(
                    "round",
                    timeout_s=timeout_s,
                    where=lambda e: e["participants"] == len(peers) and e["seen_at"] > since_s,
                )["seen_at"]
            )
            for peer in peers
        )

    def close(self) -> None:
        for peer in self.all:
            peer.close()

    # ------------------------------------------------------------------ what they said

    def violations(self, since_s: float = 0.0) -> list[str]:
        """Two hashes for one round of a lineage, whoever printed them and died since (I1, I2).

        `since_s`: only of what was seen from then on, where everybody had died before, and what
        was on no disk may have been committed anew.
        """
        told: dict[tuple[str, str, int], dict[str, str]] = {}
        for peer in self.all:
            for event in peer.events("round"):
                if event["seen_at"] < since_s:
                    continue
                key = (event["lineage"], event.get("tag", ""), event["round"])
                told.setdefault(key, {}).setdefault(event["state_hash"], peer.name)
        return [
            f"round {number} {f'of {tag} ' * bool(tag)}of lineage {lineage} has {len(hashes)} "
            f"hashes: {hashes}"
            for (lineage, tag, number), hashes in sorted(told.items())
            if len(hashes) > 1
        ]


@contextlib.contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """Where the homes are: a folder to look into afterwards, or one that goes."""
    made = keep or Path(tempfile.mkdtemp(prefix="decentral-fleet-"))
    made.mkdir(parents=True, exist_ok=True)
    try:
        yield made
    finally:
        if keep is None:
            shutil.rmtree(made, ignore_errors=True)


def first_event(
    peer: PeerProcess, kind: str, after_s: float, where: Callable[[dict[str, Any]], bool]
) -> float | None:
    """When this peer first said so after `after_s`."""
    found = (e["seen_at"] for e in peer.events(kind) if e["seen_at"] > after_s and where(e))
    return next(found, None)


def until(condition: Callable[[], Any], *, timeout_s: float, says: str) -> Any:
    """The first true value of a condition of several processes."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DecentralError(f"{says}: not within {timeout_s:.0f} s", phase="wait")
        time.sleep(POLL_S)
    return value


def period_s(peer: PeerProcess, last: int = 9) -> float:
    """The median time from one of its latest rounds to the next."""
    rounds = [float(event["seconds"]) for event in peer.events("round")][-last:]
    return statistics.median(rounds)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max; p99 is the value that at most 1 % exceed."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered), max(1, -int(-share * len(ordered) // 1))) - 1], 3)
        for name, share in at.items()
    }
