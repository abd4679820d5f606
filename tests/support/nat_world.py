"""Peers on the hosts of a `NatLab` that train together while their network changes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import IO, Any

from processes import until

from decentral.bench.nat_lab import NatHost, NatLab, Site
from decentral.cli.fork_server import Forked, ForkServer
from decentral.cli.processes import PeerProcess

Start = Callable[[NatHost, str, Sequence[str]], PeerProcess]


class NatWorld:
    """A lab, its peers by name, and what all that they say must agree on."""

    def __init__(self, sites: Mapping[str, Site], folder: Path, start: Start) -> None:
        self.lab, self.folder, self._start = NatLab(sites), folder, start
        self.peers: dict[str, PeerProcess] = {}

    def __enter__(self) -> NatWorld:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:
            self._show()
        for peer in self.peers.values():
            peer.close()
        self.lab.close()

    def start(self, name: str, *args: str, site: str = "", number: int = 0) -> PeerProcess:
        peer = self._start(self.lab.host(site or name, number), name, args)
        self.peers[name] = peer
        return peer

    def found(self, *names: str, timeout_s: float = 60) -> list[PeerProcess]:
        """A run that the first of them makes, with a round of them all."""
        first = self.start(names[0])
        word = str(first.wait_for("listening", timeout_s=30)["join"])
        crew = [first, *(self.start(name, "--join", word) for name in names[1:])]
        self.complete(crew, 0.0, timeout_s)
        return crew

    def complete(
        self, crew: Sequence[PeerProcess], since_s: float, timeout_s: float, rounds: int = 1
    ) -> float:
        """When each of them had seen so many rounds of them all committed after `since_s`."""

        def full(peer: PeerProcess) -> list[float]:
            return [
                e["seen_at"]
                for e in peer.events("round")
                if e["participants"] == len(crew) and e["seen_at"] > since_s
            ]

        until(
            lambda: all(len(full(peer)) >= rounds for peer in crew),
            timeout_s=timeout_s,
            says=f"{rounds} rounds of {', '.join(peer.name for peer in crew)}",
        )
        return max(full(peer)[rounds - 1] for peer in crew)

    def links_back_s(self, crew: Sequence[PeerProcess], since_s: float, until_s: float) -> float:
        """How long after `since_s` the last link between two of them had come up again; 0 where
        all survived."""
        last = since_s
        for one, other in combinations(crew, 2):
            for peer, far in ((one, other), (other, one)):
                ups = [
                    e["seen_at"]
                    for e in peer.events("link")
                    if e["peer"] == far.peer_id
                    and e["state"] == "up"
                    and since_s < e["seen_at"] < until_s
                ]
                last = max([last, *ups[:1]])
        return last - since_s

    def _show(self) -> None:
        """Last events of each peer, rounds but for the last one left out, and its errors."""
        for peer in self.peers.values():
            print(f"--- {peer.name}: round {peer.round}, exit status {peer.exit_status()}")
            for event in [e for e in peer.events() if e["event"] != "round"][-12:]:
                print(f"    {event}")
            print(peer.stderr()[-2000:])

    # ------------------------------------------------------------------------- what must hold

    def check(self) -> None:
        """One hash for every committed round, whoever names it; and no number left out."""
        told: dict[tuple[str, int], set[str]] = defaultdict(set)
        for peer in self.peers.values():
            for event in peer.events("round"):
                told[event["lineage"], event["round"]].add(event["state_hash"])
        assert len({lineage for lineage, _ in told}) == 1, "the run has split"
        assert all(len(hashes) == 1 for hashes in told.values()), told
        numbers = sorted(number for _, number in told)
        assert all(b == a + 1 for a, b in pairwise(numbers)), "a round was lost"


def forked(server: ForkServer, folder: Path, *args: str) -> Start:
    """Peers of a fork server."""

    def start(host: NatHost, name: str, more: Sequence[str]) -> PeerProcess:
        def launch(words: Sequence[str], env: Mapping[str, str], stderr: IO[bytes]) -> Forked:
            return server.launch(words, env, stderr, host.netns)

        return PeerProcess(name, folder / name, [*args, *more], listen=host.listen, launch=launch)

    return start


def executed(folder: Path, *args: str) -> Start:
    """`decentral peer`, with an interpreter of its own."""

    def start(host: NatHost, name: str, more: Sequence[str]) -> PeerProcess:
        return PeerProcess(
            name, folder / name, [*args, *more], listen=host.listen, prefix=host.prefix
        )

    return start


def in_mid_round(peer: PeerProcess) -> None:
    """Returns well inside a round of this peer's."""
    event: dict[str, Any] = peer.wait_round(peer.round + 1, timeout_s=60)
    time.sleep(event["seconds"] / 2)
