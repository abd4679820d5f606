"""``decentral status``: what a peer on this machine is doing, for people or as one JSON object."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.control_client import add_home_argument, ask, home_of
from decentral.types import short


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    status = ask(home_of(args), "status")
    if args.json:
        print(json.dumps(status))
    else:
        show(status, Console())
    return 0


def show(status: dict[str, Any], console: Console) -> None:
    console.print(
        f"{status['name']} ({short(status['peer'])}) in run {status['run'][:8]}: round "
        f"{status['round']}, epoch {status['epoch']}, state {status['state_hash'][:16] or '–'}"
    )
    if status["paused"]:
        console.print(f"the run is paused: {status['paused']}")
    links = {link["peer"]: link for link in status["links"]}
    table = Table()
    for column in ("member", "id", "state", "link", "rtt"):
        table.add_column(column)
    for member in status["members"]:
        link = links.get(member["peer"])
        rtt = link["rtt_ms"] if link else None
        table.add_row(
            member["name"],
            short(member["peer"]),
            member["state"],
            f"{link['class']} ({link['how']})" if link else "–",
            f"{rtt:.1f} ms" if rtt is not None else "–",
        )
    console.print(table)
