"""``decentral rollback --round N``: the whole run goes back to a round that a disk still holds.

What was trained since is undone for all members, its samples go back to the pool, and checkpoints
of later rounds are moved aside (``undone-…``), not deleted.
"""

from __future__ import annotations

import argparse

from decentral.control_client import WISH_TIMEOUT_S, add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)
    parser.add_argument(
        "--round", type=int, required=True, help="the committed round to go back to"
    )
    parser.add_argument("--reason", default="", help="what the others are told")
    parser.add_argument(
        "--module", default="", metavar="TAG", help="whose rounds, in a run of several modules"
    )


def run(args: argparse.Namespace) -> int:
    done = ask(
        home_of(args),
        "rollback",
        timeout_s=WISH_TIMEOUT_S,
        round=args.round,
        reason=args.reason,
        module=args.module,
    )
    print(f"{args.module or 'the run'} goes on from round {done['round']}")
    return 0
