"""``decentral resume``: let a paused run go on."""

from __future__ import annotations

import argparse

from decentral.control_client import WISH_TIMEOUT_S, add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)


def run(args: argparse.Namespace) -> int:
    done = ask(home_of(args), "resume", timeout_s=WISH_TIMEOUT_S)
    print(f"the run goes on from round {done['round']}")
    return 0
