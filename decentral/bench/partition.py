"""``decentral bench partition``: a run of real processes is cut in two, and healed.

    5 | 3     the five go on; the three stop, and come back with one state transfer each
    4 | 4     after the quorum timeout two lineages go on; the one with more tokens wins

Each peer on a host of its own (network namespaces, so root); between the sides every packet is
dropped, within a side all goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decentral.bench import machine
from decentral.bench.fleet import Fleet, folder, percentiles
from decentral.bench.lab import Host, Lines, command, open_lab
from decentral.cli.processes import PeerProcess
from decentral.errors import ConfigError

DETECTION_S = 7.0
PATIENCE_S = 60.0
RULES = """
table inet split {{
  chain in {{ type filter hook input priority 0; ip saddr {{ {addresses} }} drop; }}
  chain out {{ type filter hook output priority 0; ip daddr {{ {addresses} }} drop; }}
}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", default="5,3", metavar="A,B", help="how many peers on each")
    parser.add_argument("--cut-s", type=float, default=15, help="how long the cut lasts")
    parser.add_argument("--step-s", type=float, default=0.1)
    parser.add_argument(
        "--slower", type=float, default=2, help="a step of side B takes so much more"
    )
    parser.add_argument("--sync-every", type=int, default=4)
    parser.add_argument("--state-kib", type=int, default=4096)
    parser.add_argument("--quorum-timeout", type=float, default=3)
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    try:
        a, b = (int(size) for size in args.sides.split(","))
    except ValueError:
        raise ConfigError("--sides is two numbers, as in 5,3") from None
    if a < b or b < 1:
        raise ConfigError("the first side is the larger one")
    how = [
        *("--sync-every", str(args.sync_every), "--state-kib", str(args.state_kib)),
        *("--quorum-timeout", str(args.quorum_timeout)),
    ]
    steps = [args.step_s] * a + [args.step_s * (args.slower if a == b else 1)] * b
    with (
        folder(args.keep) as home,
        open_lab(Lines(rates_mbit=(0,) * (a + b))) as lab,
        Fleet(home, *how, places=[(one.prefix, one.address) for one in lab.hosts]) as fleet,
    ):
        peers = fleet.found(a + b, lambda n: ("--step-s", str(steps[n])))
        peers[0].wait_round(peers[0].round + 3, timeout_s=PATIENCE_S)
        hosts = lab.hosts
        cut_at = time.monotonic()
        split(hosts[:a], hosts[a:])
        time.sleep(args.cut_s)
        received = [_received(peer) for peer in peers]
        heal(hosts)
        healed_at = time.monotonic()
        whole_at = fleet.complete(peers, healed_at, PATIENCE_S)
        later = peers[0].round + 5
        for peer in peers:
            peer.wait_round(later, timeout_s=PATIENCE_S)
        seen = _Seen(peers[:a], peers[a:], cut_at, healed_at)
        result = {
            "sides": args.sides,
            "cut_s": round(healed_at - cut_at, 2),
            "whole_after_s": round(whole_at - healed_at, 2),
            **seen.facts(),
            "state_mib": round(2 * args.state_kib / 1024, 2),
            "fetched_mib": percentiles(
                [
                    _fetched_mib(peer, old, healed_at)
                    for peer, old in zip(peers, received, strict=True)
                ][a:]
            ),
            "violations": fleet.violations(),
        }
        wrong = seen.wrong(equal=a == b) + result["violations"]
        # One state, its share of one all-reduce, and the update of each round committed meanwhile.
        meanwhile = sum(healed_at <= e["seen_at"] <= whole_at for e in peers[0].events("round"))
        allowed_mib = (1.9 + 0.5 * (meanwhile + 1)) * result["state_mib"]
        if a != b and result["fetched_mib"]["max"] > allowed_mib:
            wrong.append(f"more than one state transfer was received (over {allowed_mib:.1f} MiB)")
    return {
        "bench": "partition",
        "held": not wrong,
        "machine": machine.about(),
        "results": [result],
        "notes": wrong,
    }


def split(one: Sequence[Host], other: Sequence[Host]) -> None:
    """No packet between the two from here on; nobody gets a FIN or an error."""
    for side, far in ((one, other), (other, one)):
        rules = RULES.format(addresses=", ".join(host.address for host in far))
        for host in side:
            command(*host.prefix, "nft", rules)


def heal(hosts: Sequence[Host]) -> None:
    for host in hosts:
        command(*host.prefix, "nft", "delete table inet split")


class _Seen:
    """What both sides said from the cut on."""

    def __init__(
        self,
        one: list[PeerProcess],
        other: list[PeerProcess],
        cut_at: float,
        healed_at: float,
    ) -> None:
        self.one, self.other = one, other
        self.cut_at, self.healed_at = cut_at, healed_at

    def rounds(self, peer: PeerProcess) -> list[dict[str, Any]]:
        """Of the time of the cut."""
        return [
            event
            for event in peer.events("round")
            if self.cut_at < event["seen_at"] < self.healed_at
        ]

    def alone(self, side: list[PeerProcess]) -> list[dict[str, Any]]:
        return [e for peer in side for e in self.rounds(peer) if e["participants"] <= len(side)]

    def said(self, peer: PeerProcess, *kinds: str) -> bool:
        return any(e["kind"] in kinds and e["seen_at"] > self.cut_at for e in peer.events("fault"))

    def facts(self) -> dict[str, Any]:
        return {
            "first_alone_s": [
                round(min((e["seen_at"] for e in self.alone(side)), default=0) - self.cut_at, 2)
                if self.alone(side)
                else None
                for side in (self.one, self.other)
            ],
            "last_of_the_others_s": round(
                max([self.cut_at, *(e["seen_at"] for p in self.other for e in self.rounds(p))])
                - self.cut_at,
                2,
            ),
            "rounds_alone": [
                round(statistics.median(
                    sum(e["participants"] <= len(side) for e in self.rounds(peer)) for peer in side
                )) for side in (self.one, self.other)
            ],
            "faults": sorted(
                {
                    e["kind"]
                    for peer in (*self.one, *self.other)
                    for e in peer.events("fault")
                    if e["seen_at"] > self.cut_at
                }
            ),
            "kept": sum(_keeps_a_lineage(peer) for peer in self.other),
        }  # fmt: skip

    def wrong(self, *, equal: bool) -> list[str]:
        wrong = []
        lineages = {peer.name: peer.last("round")["lineage"] for peer in (*self.one, *self.other)}  # type: ignore[index]
        if len(set(lineages.values())) != 1:
            wrong.append(f"not one lineage in the end: {lineages}")
        if not self.alone(self.one):
            return [*wrong, "the first side did not go on"]
        final = next(iter(lineages.values()))
        if self.alone(self.one)[-1]["lineage"] != final:
            wrong.append("the side with more tokens did not win")
        if not equal:
            late = [
                e for peer in self.other for e in self.rounds(peer)
                if e["seen_at"] > self.cut_at + DETECTION_S or e["participants"] <= len(self.other)
            ]  # fmt: skip
            if late:
                wrong.append(f"the minority committed {len(late)} rounds")
            return wrong
        if not self.alone(self.other):
            wrong.append("the second side did not go on as a lineage")
        for peer in (*self.one, *self.other):
            if not self.said(peer, "fork"):
                wrong.append(f"{peer.name} does not say that it forked")
            if not self.said(peer, "merge") and not _saw_them_come(peer):
                wrong.append(f"{peer.name} does not say that lineages met")
        return wrong


def _saw_them_come(peer: PeerProcess) -> bool:
    """Whom the losers reach only once they have gone over knows it from the log."""
    return any("coming over from lineage" in e["reason"] for e in peer.events("view"))


def _keeps_a_lineage(peer: PeerProcess) -> bool:
    """Whether something other than the run's own rounds lies among the checkpoints."""
    return any(not path.name.startswith((".", "round-")) for path in _checkpoints(peer).iterdir())


def _checkpoints(peer: PeerProcess) -> Path:
    return peer.home / "checkpoints"


def _received(peer: PeerProcess) -> tuple[int, int]:
    """(round, bytes received so far)."""
    last = peer.last("round")
    return (last["round"], last["bytes_received"]) if last else (0, 0)


def _fetched_mib(peer: PeerProcess, before: tuple[int, int], healed_at: float) -> float:
    """What came in with the first round after the healing, which is one reduce and the state."""
    event = next(e for e in peer.events("round") if e["seen_at"] > healed_at)
    return float(event["bytes_received"] - before[1]) / 2**20
