"""``decentral leave``: this peer leaves its run cleanly and its process ends."""

from __future__ import annotations

import argparse

from decentral.control_client import WISH_TIMEOUT_S, add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)


def run(args: argparse.Namespace) -> int:
    ask(home_of(args), "leave", timeout_s=WISH_TIMEOUT_S)
    print("leaving: uncommitted samples go back to the run")
    return 0
