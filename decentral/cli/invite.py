"""``decentral invite``: the word with which others join the run that a peer here takes part in.

decentral invite --role observe      for somebody who shall look on, not train
"""

from __future__ import annotations

import argparse
import json

from decentral.control_client import add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)
    parser.add_argument(
        "--role", choices=("train", "relay", "observe"),
        help="what those who come with the word may do at most (default: what this peer may)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    answer = ask(home_of(args), "invite", role=args.role)
    print(json.dumps(answer) if args.json else answer["join"])
    return 0
