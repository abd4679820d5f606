"""Several all-reduces at once against one of the same total size; and who waits behind them.

decentral bench concurrency --peers 4 --size-mib 64 --parts 8 --json
decentral bench concurrency --rates-mbit 200 --json      adds how long a control message waits

On shaped links a probe, the highest priority of the control stream, goes along the saturated link
every few milliseconds, and a UDP packet of the benchmark's own beside it: the packet shows what the
shaper's queue costs anybody, the difference is what waits inside decentral.

    probe's round trip = line + shaper's queue + wait        packet's = line + shaper's queue
"""

from __future__ import annotations

import argparse
import select
import socket
import statistics
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from decentral.bench import machine
from decentral.bench.allreduce import streams_from
from decentral.bench.crew import Crew
from decentral.bench.lab import Lab
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments, open_net

SAYS = "all-reduces in flight together, and how long a control message waits behind them"
PROBE_EVERY_S = 0.02
PACKET_EVERY_S = 0.005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--size-mib", type=float, default=64, help="of all parts together")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument(
        "--streams", default="auto", help="bulk streams per link: auto, or a number"
    )
    parser.add_argument("--runs", type=int, default=7)
    add_net_arguments(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    net = from_arguments(args)
    size_bytes = int(args.size_mib * 2**20)
    seconds: dict[int, list[float]] = {1: [], args.parts: []}
    errors = []
    with open_net(net, args.peers) as site:
        crew = Crew(
            site.places,
            encrypt=args.encrypt == "on",
            streams=streams_from(args.streams),
            congestion=net.congestion,
        )
        try:
            crew.prepare(size_bytes)
            crew.measure()
            how = {"schedule": "ring", "codec": args.codec}
            for run in range(args.runs + 1):  # the first one warms up
                for parts in seconds:
                    answers = crew.reduce(parts=parts, **how)
                    if run:
                        seconds[parts].append(max(answer["seconds"] for answer in answers))
                        errors.append(max(answer["max_abs_error"] for answer in answers))
            control = _control(crew, site.lab, how) if site.lab else None
        finally:
            crew.close()
    median = {parts: statistics.median(taken) for parts, taken in seconds.items()}
    return {
        "bench": "concurrency",
        "machine": machine.about(),
        "net": net.report(args.peers),
        "size_bytes": size_bytes,
        "results": [
            {
                "in_flight": parts,
                "seconds": [round(one, 5) for one in taken],
                "seconds_median": round(median[parts], 5),
                "max_abs_error": max(errors),
            }
            for parts, taken in seconds.items()
        ],
        "ratios": {f"{args.parts}/1": round(median[1] / median[args.parts], 4)},
        "control": control,
    }


def _control(crew: Crew, lab: Lab, how: dict[str, Any]) -> dict[str, Any]:
    """Round trips from rank 0 to rank 1, unloaded, then behind a running all-reduce."""
    near, far = (lab.hosts[rank].socket() for rank in (0, 1))
    watch = {"rank": 1, "every_s": PROBE_EVERY_S, "probe": True}
    with near, far:
        first = crew.workers.all[0]
        crew.workers.tell([0], do="idle", seconds=2.0, watch=watch)
        idle_packets = packets(near, far, first.ready)
        idle_probes = first.hear()["samples"]
        probes: list[dict[str, float]] = []
        flights: list[tuple[float, float]] = []
        for _ in range(3):
            crew.begin(of_rank={0: {"watch": watch}}, check=False, **how)
            flights += packets(near, far, first.ready)
            probes += crew.end()[0]["samples"]
    idle_ms = statistics.median(probe["rtt_ms"] for probe in idle_probes)
    idle_packet_ms = statistics.median(ms for _, ms in idle_packets)
    beyond = [
        (probe["rtt_ms"] - idle_ms) - (_nearest(flights, probe["at"]) - idle_packet_ms)
        for probe in probes
    ]
    return {
        "unloaded_rtt_ms": _spread([probe["rtt_ms"] for probe in idle_probes]),
        "probe_rtt_ms": _spread([probe["rtt_ms"] for probe in probes]),
        "shaper_rtt_ms": _spread([ms for _, ms in flights]),
        "wait_beyond_shaper_ms": _spread(beyond),
        "probes": len(probes),
    }


def packets(
    near: socket.socket, far: socket.socket, over: Callable[[], bool]
) -> list[tuple[float, float]]:
    """Small UDP packets there and back until `over`: (when sent, round trip in ms). The queue may
    drop some; they are not in it."""
    out: list[tuple[float, float]] = []
    due = time.monotonic()
    while not over():
        if (now := time.monotonic()) >= due:
            due = now + PACKET_EVERY_S
            near.sendto(struct.pack("!d", now), far.getsockname())
        for end in select.select([near, far], [], [], 0.001)[0]:
            data, sender = end.recvfrom(64)
            if end is far:
                far.sendto(data, sender)
            else:
                (sent,) = struct.unpack("!d", data)
                out.append((sent, (time.monotonic() - sent) * 1e3))
    return out


def _nearest(flights: Sequence[tuple[float, float]], at: float) -> float:
    """The round trip of the packet that was sent closest to a moment."""
    index = bisect_left(flights, (at, 0.0))
    return min(flights[max(0, index - 1) : index + 1], key=lambda one: abs(one[0] - at))[1]


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }
