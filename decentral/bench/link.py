"""Links: what they carry on loopback, or how much of a long, lossy pipe an all-reduce fills.

decentral bench link --json
decentral bench link --rates-mbit 200 --rtt-ms 100 --loss 0.001 --congestion cubic --json

Without a net: direct and relayed links against a bare TLS loop (link_transfer.py). With one: below.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from decentral.bench import link_transfer, machine
from decentral.bench.allreduce import streams_from
from decentral.bench.crew import Crew
from decentral.bench.net import Net, Site, from_arguments, open_net
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.errors import ConfigError

SAYS = "links: direct and relayed against a TLS loop, or one long, lossy pipe (--rate-mbit …)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size-mib", type=float, help="of one transfer (256) or operation (32)")
    parser.add_argument("--runs", type=int, default=7, help="on loopback")
    parser.add_argument("--link-streams", type=int, default=2, help="bulk streams, on loopback")
    parser.add_argument("--seconds", type=float, default=40, help="per number of streams")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument("--streams", default="auto,1", help="comma-separated: auto or numbers")
    add_net_arguments(parser)
    parser.add_argument("--rate-mbit", dest="rates_mbit", default=argparse.SUPPRESS)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    net = from_arguments(args)
    args.size_mib = args.size_mib or (256 if net.kind == "loopback" else 32)
    if net.kind == "loopback":
        return link_transfer.measure(args)
    if not net.rates_mbit or net.rates_mbit[0] <= 0:
        raise ConfigError("bench link needs a rate: the pipe that it is a fraction of")
    results = []
    for word in filter(None, args.streams.split(",")):
        streams = streams_from(word)
        with open_net(net, 2) as site:
            results.append({"streams": word, **_fill(site, net, streams, args)})
    return {
        "bench": "link",
        "machine": machine.about(),
        "net": net.report(2),
        "results": results,
    }


def _fill(site: Site, net: Net, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Reduce again and again. With two peers each sends the buffer once, both ways at a time."""
    size_bytes = int(args.size_mib * 2**20)
    crew = Crew(
        site.places,
        encrypt=args.encrypt == "on",
        streams=streams,
        congestion=net.congestion,
    )
    operations: list[dict[str, float]] = []
    samples: list[dict[str, float]] = []
    try:
        crew.prepare(size_bytes)
        begun = time.monotonic()
        while time.monotonic() - begun < args.seconds:
            answers = crew.reduce(
                schedule="ring", check=not operations, watch={"rank": 1, "every_s": 0.25},
                of_rank={1: {"watch": None}},
            )  # fmt: skip
            seconds = max(answer["seconds"] for answer in answers)
            samples += answers[0]["samples"]
            operations.append(
                {
                    "at_s": round(time.monotonic() - begun, 3),
                    "seconds": round(seconds, 4),
                    "mbit": round(size_bytes * 8e-6 / seconds, 2),
                }
            )
    finally:
        crew.close()
    pipe_mbit = min(net.rates(2))
    later = [one["mbit"] for one in operations[len(operations) // 2 :]]
    settled = statistics.median(later)
    return {
        "goodput_mbit": round(settled, 2),
        "fraction_of_pipe": round(settled / pipe_mbit, 4),
        "first_operation_mbit": operations[0]["mbit"],
        "streams_at_the_end": int(samples[-1]["streams"]),
        "operations": operations,
        "streams_over_time": [
            [round(sample["at"] - begun, 2), int(sample["streams"])] for sample in samples
        ],
    }
