"""``decentral doctor``: how well a peer on this machine can be reached, and what would help."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.control_client import add_home_argument, ask, home_of
from decentral.doctor import findings
from decentral.types import short

MARKS = {"ok": "[green]✓[/]", "info": "·", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_home_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    facts = ask(home_of(args), "doctor")
    found = findings(facts)
    if args.json:
        print(json.dumps({**facts, "findings": [one.as_dict() for one in found]}))
    else:
        show(facts, Console())
        for one in found:
            Console().print(f"{MARKS[one.level]} {one.says}", highlight=False)
            if one.fix:
                Console().print(f"    {one.fix[0].upper()}{one.fix[1:]}.", highlight=False)
    return 1 if any(one.level == "error" for one in found) else 0


def show(facts: dict[str, Any], console: Console) -> None:
    nat = facts["nat"]
    console.print(f"{facts['name']} ({short(facts['peer'])}), TCP port {facts['port']}")
    console.print(
        f"NAT: {nat['called']} (mapping {nat['mapping']}, filtering {nat['filtering']}); outside: "
        f"{nat['mapped'] or nat['address'] or 'not known'}; addresses: "
        f"{', '.join(nat['addresses'])}; relays: {'yes' if nat['relays'] else 'no'}"
    )
    table = Table()
    for column in ("peer", "link", "how", "rtt", "sends", "receives", "clock"):
        table.add_column(column)
    for link in facts["links"]:
        table.add_row(
            link["name"] or short(link["peer"]),
            link["class"],
            link["how"],
            _unit(link["rtt_ms"], "ms"),
            _unit(link["tx_mbps"], "Mbit/s"),
            _unit(link["rx_mbps"], "Mbit/s"),
            "–" if link["skew_s"] is None else f"{link['skew_s']:+.1f} s",
        )
    console.print(table)


def _unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.1f} {unit}"
