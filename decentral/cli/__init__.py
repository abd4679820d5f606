"""The command line: one module per command, loaded only when it is asked for.

decentral peer --recipe gpt                 make a run; prints the line for the others
decentral peer --join WORD                  take part in it
decentral demo                              four peers, one killed, one late, on this machine
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from decentral.errors import DecentralError
from decentral.version import PROTOCOL_VERSIONS, __version__

#: command → what it does, in the order of `decentral --help`; each is a module beside this file
#: with ``add_arguments(parser)`` and ``run(args) -> exit status``.
COMMANDS = {
    "peer": "start a peer: make a run, take part in one, or go on with one",
    "demo": "train with four peers on this machine while one is killed and one joins late",
    "generate": "have a run's paths go on with a text, wherever they are (DiPaCo)",
    "sample": "have a run's experts make images, wherever they are (diffusion)",
    "invite": "print the word with which others join the run of a peer on this machine",
    "revoke": "take a peer's membership back, and that of all whom it invited",
    "status": "what a peer on this machine is doing",
    "doctor": "how well a peer on this machine can be reached, and what would help",
    "pause": "begin no further round, in the whole run, until it is resumed",
    "resume": "let a paused run go on",
    "rollback": "take the whole run back to an earlier round",
    "leave": "have a peer on this machine leave its run",
    "plan": "how often to exchange, in which codec, and what it will cost",
    "bench": "measure all-reduce, codecs and links, next to others where they run",
    "churn": "run peers on this machine under faults, and audit what they did",
    "simulate": "run the peers' protocol in a seeded simulator and check its invariants",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``decentral``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="decentral",
        description="Train one model on machines that do not share a data center.",
    )
    protocol = ", ".join(map(str, PROTOCOL_VERSIONS))
    parser.add_argument(
        "--version", action="version", version=f"decentral {__version__} (protocol {protocol})"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in words if word in COMMANDS), None)
    for name, says in COMMANDS.items():
        sub = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        if name == asked:
            importlib.import_module(f"decentral.cli.{name}").add_arguments(sub)
    args = parser.parse_args(words)
    try:
        return int(importlib.import_module(f"decentral.cli.{args.command}").run(args))
    except DecentralError as error:
        print(f"decentral {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
