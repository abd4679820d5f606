"""How much memory an all-reduce takes beyond its source: peak resident bytes, result included.

decentral bench memory --peers 4 --size-mib 256 --json
"""

from __future__ import annotations

import argparse
from typing import Any

from decentral.bench import machine
from decentral.bench.allreduce import SCHEDULES
from decentral.bench.crew import Crew
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments, open_net

SAYS = "resident memory that an all-reduce takes beyond its source"
WARM_UP_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--size-mib", type=float, default=256)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    add_net_arguments(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The first all-reduce of this size gets a fresh result buffer, the later ones the same."""
    net = from_arguments(args)
    size_bytes = int(args.size_mib * 2**20)
    how = {"schedule": args.schedule, "codec": args.codec, "check": False}
    with open_net(net, args.peers) as site:
        crew = Crew(site.places, encrypt=args.encrypt == "on", congestion=net.congestion)
        try:
            crew.prepare(WARM_UP_BYTES)
            crew.reduce(**how)  # streams, threads and imports are not the operation's
            crew.prepare(size_bytes)
            before = [a["rss_bytes"] for a in crew.workers.ask(do="forget_peak")]
            peaks = []
            for _ in range(3):
                crew.reduce(**how)
                peaks.append([a["peak_bytes"] for a in crew.workers.ask(do="peak")])
                crew.workers.ask(do="same_peak")
        finally:
            crew.close()
    results = [
        {
            "rank": rank,
            "extra_bytes": peaks[0][rank] - before[rank],
            "extra_of_buffer": round((peaks[0][rank] - before[rank]) / size_bytes, 4),
            "second_run_adds_bytes": peaks[1][rank] - peaks[0][rank],
            "third_run_adds_bytes": peaks[2][rank] - peaks[1][rank],
        }
        for rank in range(args.peers)
    ]
    return {
        "bench": "memory",
        "machine": machine.about(),
        "net": net.report(args.peers),
        "size_bytes": size_bytes,
        "codec": args.codec,
        "schedule": args.schedule,
        "results": results,
        "worst_extra_of_buffer": max(result["extra_of_buffer"] for result in results),
    }
