"""Small buffers between many distant peers: what each schedule takes, and which one is chosen.

decentral bench latency --peers 16 --rtt-ms 20 --size-kib 8 --json
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from decentral.bench import machine
from decentral.bench.crew import Crew
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments, open_net

SAYS = "small all-reduces between distant peers, per schedule"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--size-kib", type=float, default=8)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--schedules", default="ring,tree,butterfly,auto")
    add_net_arguments(parser, rtt_ms=20.0)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    net = from_arguments(args)
    schedules = list(filter(None, args.schedules.split(",")))
    size_bytes = max(4, int(args.size_kib * 1024) // 4 * 4)
    answers: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in schedules}
    with open_net(net, args.peers) as site:
        crew = Crew(site.places, encrypt=args.encrypt == "on", congestion=net.congestion)
        try:
            crew.prepare(size_bytes)
            if "auto" in schedules:
                crew.measure()
            for run in range(args.runs + 1):  # the first opens what each schedule needs
                for name in schedules:
                    answer = crew.reduce(schedule=name, codec=args.codec)
                    if run:
                        answers[name].append(answer)
        finally:
            crew.close()
    results = []
    for name, runs in answers.items():
        seconds = [max(rank["seconds"] for rank in ranks) for ranks in runs]
        results.append(
            {
                "asked": name,
                "schedule": runs[-1][0]["schedule"],
                "peers": args.peers,
                "size_bytes": size_bytes,
                "seconds": [round(one, 5) for one in seconds],
                "seconds_median": round(statistics.median(seconds), 5),
                "max_abs_error": max(rank["max_abs_error"] for ranks in runs for rank in ranks),
            }
        )
    median = {result["asked"]: result["seconds_median"] for result in results}
    return {
        "bench": "latency",
        "machine": machine.about(),
        "net": net.report(args.peers),
        "results": results,
        "ratios": {
            f"{name}/ring": round(median[name] / median["ring"], 4)
            for name in median
            if name != "ring" and "ring" in median
        },
    }
