"""Links of different speed: what the planner chooses, next to the ring and the lower bound.

decentral bench unequal --rates-mbit 400,400,400,100 --runs 12 --change 6:0:50 --json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from decentral.bench import machine
from decentral.bench.crew import Crew
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments, open_net
from decentral.errors import ConfigError

SAYS = "peers with unequal links: the chosen schedule, the ring, and the lower bound"
ADAPTED = 1.15
"""An operation counts as adapted when it takes at most this much of the later ones' median."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size-mib", type=float, default=32)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--warmups", type=int, default=1)
    parser.add_argument(
        "--change", action="append", default=[], metavar="RUN:HOST:MBIT",
        help="before run RUN (from 0), give HOST (from 0) another rate; may be repeated",
    )  # fmt: skip
    parser.add_argument("--ring", choices=("on", "off"), default="on", help="also force the ring")
    add_net_arguments(parser, rates_mbit="400,400,400,100")


def lower_bound_s(size_bytes: int, rates_mbit: Sequence[float]) -> float:
    """No all-reduce of fp32 is faster, whatever the schedule; headers not counted.

    Every peer must send its values and receive the sum once, S bytes each; and all peers together
    send at least 2 (n − 1) S, what a tree of sums and the way back need.
    """
    size_mbit, peers = size_bytes * 8e-6, len(rates_mbit)
    return max(size_mbit / min(rates_mbit), 2 * (peers - 1) * size_mbit / sum(rates_mbit))


def parse_changes(
    words: Sequence[str], runs: int, peers: int
) -> dict[int, list[tuple[int, float]]]:
    """{run: [(host, Mbit/s)]}. ConfigError for what is not RUN:HOST:MBIT."""
    changes: dict[int, list[tuple[int, float]]] = {}
    for word in words:
        try:
            run_word, host_word, rate_word = word.split(":")
            run, host, rate = int(run_word), int(host_word), float(rate_word)
        except ValueError:
            raise ConfigError(f"--change is RUN:HOST:MBIT, not {word!r}") from None
        if not 0 < run < runs or not 0 <= host < peers or rate <= 0:
            raise ConfigError(f"--change {word}: runs are 1 to {runs - 1}, hosts 0 to {peers - 1}")
        changes.setdefault(run, []).append((host, rate))
    return changes


def measure(args: argparse.Namespace) -> dict[str, Any]:
    net = from_arguments(args)
    peers = len(net.rates_mbit)
    if peers < 2:
        raise ConfigError("bench unequal needs a rate for each of two peers or more")
    changes = parse_changes(args.change, args.runs, peers)
    size_bytes = int(args.size_mib * 2**20)
    schedules = ["auto", "ring"] if args.ring == "on" else ["auto"]
    rates = list(net.rates(peers))
    operations: list[dict[str, Any]] = []
    with open_net(net, peers) as site, ExitStack() as stack:
        assert site.lab is not None
        crews = {}
        for schedule in schedules:  # each its own: what the ring's links look like is its affair
            crew = Crew(site.places, encrypt=args.encrypt == "on", congestion=net.congestion)
            stack.callback(crew.close)
            crew.prepare(size_bytes)
            crews[schedule] = crew
        measured = crews["auto"].measure()
        for _ in range(args.warmups):
            for schedule, crew in crews.items():
                crew.reduce(schedule=schedule, codec=args.codec)
        for run in range(args.runs):
            for host, rate in changes.get(run, []):
                site.lab.set_rate(host, rate)
                rates[host] = rate
            bound_s = lower_bound_s(size_bytes, rates)
            for schedule, crew in crews.items():
                answers = crew.reduce(schedule=schedule, codec=args.codec)
                seconds = max(answer["seconds"] for answer in answers)
                operations.append(
                    {
                        "run": run,
                        "asked": schedule,
                        "schedule": answers[0]["schedule"],
                        "seconds": round(seconds, 4),
                        "lower_bound_s": round(bound_s, 4),
                        "of_bound": round(seconds / bound_s, 4),
                        "sent_share": _shares([a["bytes_sent"] for a in answers]),
                        "max_abs_error": max(a["max_abs_error"] for a in answers),
                    }
                )
    return {
        "bench": "unequal",
        "machine": machine.about(),
        "net": net.report(peers),
        "size_bytes": size_bytes,
        "codec": args.codec,
        "measured": measured,
        "results": phases(operations, [0, *sorted(changes)], schedules),
        "operations": operations,
    }


def phases(
    operations: list[dict[str, Any]], starts: list[int], schedules: list[str]
) -> list[dict[str, Any]]:
    """One object per stretch of runs between two changes of a rate."""
    out = []
    for start, end in zip(starts, [*starts[1:], 1 << 30], strict=True):
        here = [one for one in operations if start <= one["run"] < end]
        row: dict[str, Any] = {"from_run": start, "lower_bound_s": here[0]["lower_bound_s"]}
        for asked in schedules:
            seconds = [one["seconds"] for one in here if one["asked"] == asked]
            adapted = operations_until_adapted(seconds) if start and asked == "auto" else 0
            settled = seconds[adapted:] or seconds
            row[f"{asked}_s_median"] = round(statistics.median(settled), 4)
            if asked == "auto":
                row["auto_of_bound"] = round(row["auto_s_median"] / row["lower_bound_s"], 4)
                row["schedules"] = [one["schedule"] for one in here if one["asked"] == "auto"]
                row["operations_until_adapted"] = adapted
        if "ring" in schedules:
            row["ring/auto"] = round(row["ring_s_median"] / row["auto_s_median"], 3)
        out.append(row)
    return out


def operations_until_adapted(seconds: Sequence[float]) -> int:
    """How many operations after a change took clearly longer than the last third of them."""
    settled = statistics.median(seconds[-max(1, len(seconds) // 3) :])
    return next(i for i, one in enumerate([*seconds, settled]) if one <= ADAPTED * settled)


def _shares(sent: list[int]) -> list[float]:
    """What part of all bytes each member has sent."""
    return [round(one / max(1, sum(sent)), 3) for one in sent]
