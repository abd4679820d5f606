"""``decentral simulate``: the peers' protocol, unmodified, on a simulated network and clock."""

from __future__ import annotations

import argparse

from decentral.simulator import simulate_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=32)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, default=10, help="run seeds 0 … K−1 (default 10)")
    which.add_argument("--seed", type=int, help="run this one seed")
    parser.add_argument("--scenario", default="everything", help="which faults (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object per seed")


def run(args: argparse.Namespace) -> int:
    return simulate_command(
        peers=args.peers,
        seeds=args.seeds,
        seed=args.seed,
        scenario=args.scenario,
        json=args.json,
    )
