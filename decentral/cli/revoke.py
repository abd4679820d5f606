"""``decentral revoke PEER``: take membership back, in the whole run and for good.

The run's maker can revoke anybody, other members those whom they have invited. Whoever was invited
by the revoked is revoked, too. Peers that are away learn it when they come back.
"""

from __future__ import annotations

import argparse
import json

from decentral.control_client import add_home_argument, ask, home_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "peer", metavar="PEER", help="its id (or the id's beginning), its name, or a serial"
    )
    parser.add_argument(
        "--with-invite", action="store_true",
        help="also the invite that it came with, and so everybody else who came with that",
    )  # fmt: skip
    parser.add_argument("--reason", default="", help="what the others are told")
    add_home_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    done = ask(
        home_of(args),
        "revoke",
        peer=args.peer,
        with_invite=args.with_invite,
        reason=args.reason,
    )
    if args.json:
        print(json.dumps(done))
        return 0
    print(f"revoked; {done['told']} linked peer(s) know it, and pass it on")
    if done["by_invite"] and not args.with_invite:
        others = done["shares_invite_with"]
        print(
            "It came with an invite, and can come back with that under a new key: --with-invite "
            f"takes the invite back, too, and with it {others} other peer(s) that this one has met."
        )
    return 0
