"""``decentral plan``: how often to exchange, in which codec, and what it will cost.

decentral plan --params 124M --links 100mbit,20ms                      eight peers like that
decentral plan --params 1.3B --links 1gbit,20ms 100mbit/20mbit,40ms    two unlike peers
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from decentral import quantities
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.collectives.network import Network
    from decentral.planning import Advice, Plan

PEERS = 8
PIPE_WIDTH = 150
NUMBERS = (
    "H", "fragments", "exchange", "round", "waits", "hidden", "sent/round", "sent/day", "memory",
)  # fmt: skip
COLUMNS = ("strategy", "codec", "schedule", *NUMBERS)
ONLY_WIDE = ("schedule", "round", "sent/round")
WIDE = 140
"""Characters that all columns take; a narrower terminal is spared some."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--params", required=True, metavar="N", help="trained parameters: 124M, 1.3B")
    add(
        "--links", required=True, nargs="+", metavar="RATE,RTT",
        help="100mbit,20ms: what each peer sends and receives, and the round trip to another like "
        "it; 100mbit/20mbit,20ms where it receives and sends unlike; one for all, or one per peer",
    )  # fmt: skip
    add("--peers", type=int, help=f"how many, where one link is given (default: {PEERS})")
    add("--step-s", type=float, default=0.25, metavar="S", help="an inner step (default: 0.25)")
    add("--codec", help="consider this one only")
    add("--memory", metavar="SIZE", help="host memory per peer for the outer rounds: 8GiB")
    add(
        "--overhead", type=float, default=10.0, metavar="PERCENT",
        help="of the time may be spent waiting for exchanges (default: 10)",
    )  # fmt: skip
    add("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    from decentral.planning import plan

    network = network_of(args.links, args.peers)
    params = quantities.count(args.params)
    advice = plan(
        params,
        network,
        args.step_s,
        codec=args.codec,
        memory_bytes=quantities.size_bytes(args.memory) if args.memory is not None else None,
        overhead=args.overhead / 100,
    )
    if args.json:
        given = {"params": params, "peers": network.members, "step_s": args.step_s}
        plans = [one.as_dict() for one in advice.plans]
        print(json.dumps({**given, "recommended": advice.recommended.as_dict(), "plans": plans}))
    else:
        console = Console()
        title = f"{args.params} parameters, {network.members} peers, a step of {args.step_s:g} s"
        show(advice, title, console if console.is_terminal else Console(width=PIPE_WIDTH))
    return 0


def network_of(links: Sequence[str], peers: int | None) -> Network:
    """Members with these links: one for all of `peers`, or one each. A pair's round trip is the
    mean of its two ends' (each brings half of the path). ConfigError for what cannot be read."""
    from decentral.collectives.network import Network

    ends = [_link(text) for text in links]
    if len(ends) == 1:
        ends *= PEERS if peers is None else max(0, peers)
    elif peers not in (None, len(ends)):
        raise ConfigError(
            f"{len(ends)} links for {peers} peers: give one, or one each", phase="plan"
        )
    if not ends:
        raise ConfigError(f"a run has 1 peer or more, not {peers}", phase="plan")
    down, up, rtt = (np.array(column) for column in zip(*ends, strict=True))
    return Network(
        up_bytes_s=tuple(up), down_bytes_s=tuple(down), rtt_s=(rtt[:, None] + rtt[None, :]) / 2
    )


def _link(text: str) -> tuple[float, float, float]:
    """(receives, sends, in bytes per second; round trip in seconds)."""
    rates, comma, rtt = text.partition(",")
    down, slash, up = rates.partition("/")
    if not comma:
        raise ConfigError(f"{text!r} is not a link: write 100mbit,20ms", phase="options")
    received = quantities.bytes_s(down)
    return received, quantities.bytes_s(up) if slash else received, quantities.seconds(rtt)


def show(advice: Advice, title: str, console: Console) -> None:
    from decentral.planning import COMFORTABLE

    table = Table(title=title)
    names = [name for name in COLUMNS if console.width >= WIDE or name not in ONLY_WIDE]
    for name in names:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    last = ""
    for one in advice.plans:
        if last and one.strategy != last:
            table.add_section()
        cells = _cells(one) if one.strategy != last else {**_cells(one), "strategy": ""}
        style = "bold green" if one is advice.recommended else None if one.fits else "dim"
        table.add_row(*(cells[name] for name in names), style=style)
        last = one.strategy
    console.print(table)
    console.print(_sentence(advice.recommended), highlight=False, soft_wrap=True)
    for name, needed in advice.recommended.as_dict()["memory"].items():
        if needed:
            console.print(f"    {name.replace('_', ' '):<16}{_size(needed):>12}", highlight=False)
    console.print(
        "Sent: by the peer that sends most. Memory: the host's, per peer, for the outer rounds. "
        "H is the smallest of its ladder that waits little enough. Recommended is the first plan, "
        f"from the top, that does so with at most {COMFORTABLE} steps (dim: those that do not). "
        "DecoupledDiLoCo sends what StreamingDiLoCo does, and waits for no slow peer.",
        highlight=False,
    )


def _cells(one: Plan) -> dict[str, str]:
    return {
        "strategy": one.strategy,
        "codec": one.codec,
        "schedule": one.schedule,
        "H": str(one.sync_every),
        "fragments": str(one.fragments) if one.fragments > 1 else "–",
        "exchange": _time(one.exchange_s),
        "round": _time(one.round_s),
        "waits": f"{one.blocked:.1%}",
        "hidden": f"{one.hidden:.1%}",
        "sent/round": _size(one.sent_bytes_round),
        "sent/day": _size(one.sent_bytes_day),
        "memory": _size(one.memory.total),
    }


def _sentence(one: Plan) -> str:
    pieces = f", fragments={one.fragments}" if one.fragments > 1 else ""
    call = f'{one.strategy}(sync_every={one.sync_every}, codec="{one.codec}"{pieces})'
    but = "" if one.fits else " No plan keeps to that; this one comes nearest."
    return (
        f"Take {call}: a round of {_time(one.round_s)}, of which {one.blocked:.1%} is waiting and "
        f"{one.hidden:.1%} exchanges behind training; {_size(one.sent_bytes_day)} sent a day."
        f"{but} Host memory, {_size(one.memory.total)}:"
    )


def _time(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.1f} TiB"
