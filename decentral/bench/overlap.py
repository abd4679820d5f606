"""``decentral bench overlap``: how much of its communication a strategy hides, and what blocks.

Peers behind lines of equal rate (network namespaces, so root) train with naps as inner steps, so
that cores are not what is measured. The state is as large as makes a round take about as long as
its steps; then a strategy that hides all of it takes half of what DiLoCo takes.

    speed-up    a round of DiLoCo / a round of the strategy
    ideal       (compute + communication) / max(compute, communication)      both measured
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decentral.bench import machine
from decentral.bench.fleet import Fleet, folder
from decentral.bench.lab import Lines, open_lab
from decentral.cli.processes import PeerProcess

PATIENCE_S = 120.0
WARM_UP = 3
"""Rounds in which links are made, streams grow and the network is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rate-mbit", type=float, default=100, help="of each peer's line")
    parser.add_argument("--step-s", type=float, default=0.06)
    parser.add_argument("--sync-every", type=int, default=15, metavar="H")
    parser.add_argument("--rounds", type=int, default=15, help="that are measured")
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["async-diloco", "decoupled-diloco,min_contributors=4"],
        metavar="WORD",
        help="compared with DiLoCo",
    )
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    # A ring sends 2 (n − 1)/n of the state.
    share = 2 * (args.peers - 1) / args.peers
    compute_s = args.sync_every * args.step_s
    state_kib = int(compute_s * args.rate_mbit * 1e6 / 8 / share / 1024)
    base = _rounds(args, "diloco", state_kib)
    communication_s = base["round_s"] - compute_s
    ideal = (compute_s + communication_s) / max(compute_s, communication_s)
    results = [base | {"speed_up": 1.0, "of_ideal": round(1 / ideal, 3)}]
    for word in args.strategies:
        one = _rounds(args, word, state_kib)
        speed_up = base["round_s"] / one["round_s"]
        results.append(
            one | {"speed_up": round(speed_up, 3), "of_ideal": round(speed_up / ideal, 3)}
        )
    return {
        "bench": "overlap",
        "held": not any(one["violations"] for one in results),
        "machine": machine.about(),
        "compute_s": round(compute_s, 3),
        "communication_s": round(communication_s, 3),
        "ideal": round(ideal, 3),
        "state_kib": state_kib,
        "results": results,
    }


def _rounds(args: argparse.Namespace, word: str, state_kib: int) -> dict[str, Any]:
    """The same task with this strategy."""
    word = f"{word},sync_every={args.sync_every}"
    how = [
        *("--state-kib", str(state_kib), "--step-s", str(args.step_s), "--leases", "off"),
        *("--strategy", word, "--members", str(args.peers)),
    ]
    with (
        folder(args.keep) as home,
        open_lab(Lines(rates_mbit=(args.rate_mbit,) * args.peers)) as lab,
        Fleet(home, *how, places=[(one.prefix, one.address) for one in lab.hosts]) as fleet,
    ):
        peers = fleet.found(args.peers)
        first = peers[0].round + WARM_UP
        for peer in peers:
            peer.wait_round(first + args.rounds, timeout_s=PATIENCE_S)
        return {
            "strategy": word,
            "round_s": round(_period_s(peers, first, args.rounds), 4),
            "violations": fleet.violations(),
        }


def _period_s(peers: Sequence[PeerProcess], first: int, rounds: int) -> float:
    """The median over the peers of a round's time, from the first to the last that count."""
    took: list[float] = []
    for peer in peers:
        at = {event["round"]: event["seen_at"] for event in peer.events("round")}
        took.append((at[first + rounds] - at[first]) / rounds)
    return statistics.median(took)
