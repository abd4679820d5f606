"""``decentral pause``: no round begins until ``decentral resume``; the members stay together."""

from __future__ import annotations

import argparse

from decentral.control_client import WISH_TIMEOUT_S, add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)
    parser.add_argument("--reason", default="", help="what the others are told")


def run(args: argparse.Namespace) -> int:
    done = ask(home_of(args), "pause", timeout_s=WISH_TIMEOUT_S, reason=args.reason)
    print(f"the run is paused at round {done['round']}; go on with: decentral resume")
    return 0
