"""All-reduce, in turns with others: the same bytes, the same machine and links, run by run.

decentral bench allreduce --peers 4 --size-mib 64 --encrypt off --against gloo,tcp --json
decentral bench allreduce --peers 4 --size-mib 64 --rates-mbit 200 --against iperf3
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from decentral.bench import machine
from decentral.bench.crew import Crew
from decentral.bench.net import Net, Site, open_net
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments as net_from_arguments
from decentral.bench.systems import (
    Answer,
    Flows,
    Iperf,
    Native,
    Peer,
    System,
    check_names,
    ring_bytes,
    why_no_pccl,
)
from decentral.errors import ConfigError

SAYS = "all-reduce, next to gloo, PCCL, bare TCP and TLS, iperf3"
OTHERS = ("gloo", "pccl", "tcp", "tls", "iperf3")
SCHEDULES = ("auto", "ring", "tree", "butterfly", "hierarchical")
IPERF_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class AllReduceBench:
    """What to measure."""

    peers: int = 4
    size_mib: float = 64
    codec: str = "fp32"
    schedule: str = "auto"
    encrypt: bool = True
    runs: int = 7
    warmups: int = 2
    """Runs of every system before the measured ones: connections, streams, caches."""
    streams: int = 0
    """Bulk streams per link; 0: as many as carry more."""
    against: tuple[str, ...] = ()
    net: Net = field(default_factory=Net)

    def __post_init__(self) -> None:
        if self.peers < 2 or self.runs < 1 or self.size_mib <= 0:
            raise ConfigError("bench allreduce needs 2 peers, 1 run and some bytes at least")
        check_names(self.against, OTHERS)
        if "iperf3" in self.against and self.net.kind == "loopback":
            raise ConfigError("iperf3 shows what links carry: use it with --net shaped or wan")

    @property
    def size_bytes(self) -> int:
        return max(4, int(self.size_mib * 2**20) // 4 * 4)

    def run(self) -> dict[str, Any]:
        """``{"results": [one object per system], "ratios": {"decentral/gloo": …}, …}``."""
        notes = []
        against = list(self.against)
        if "pccl" in against and (reason := why_no_pccl()):
            notes.append(f"pccl was not measured: {reason}")
            against.remove("pccl")
        runs: dict[str, list[list[Answer]]] = {}
        link_bytes: dict[str, list[int]] = {}
        with ExitStack() as stack:
            site = stack.enter_context(open_net(self.net, self.peers))
            systems = self._start(site, against, stack)
            iperf = None
            if "iperf3" in against:
                iperf = Iperf(site.places, IPERF_SECONDS, self.net.congestion)
                stack.callback(iperf.close)
            for _ in range(self.warmups):
                for system in systems.values():
                    system.run_once()
            carried: list[list[float]] = []
            for _ in range(self.runs):
                for name, system in systems.items():
                    before = site.lab.bytes_sent() if site.lab else 0
                    runs.setdefault(name, []).append(system.run_once())
                    if site.lab:
                        link_bytes.setdefault(name, []).append(site.lab.bytes_sent() - before)
                if iperf:
                    carried.append(iperf.rates_mbit())
        report: dict[str, Any] = {
            "bench": "allreduce",
            "machine": machine.about(),
            "net": self.net.report(self.peers),
            "results": [self._result(name, runs[name], link_bytes.get(name)) for name in runs],
        }
        report["ratios"] = ratios(report["results"])
        if carried:
            report["iperf3"], report["fraction_of_iperf3"] = self._against_iperf(
                carried, runs["decentral"]
            )
        if notes:
            report["notes"] = notes
        return report

    def _start(self, site: Site, against: list[str], stack: ExitStack) -> dict[str, System]:
        size, net = self.size_bytes, self.net
        crew = Crew(
            site.places, encrypt=self.encrypt, streams=self.streams, congestion=net.congestion
        )
        stack.callback(crew.close)
        if self.schedule == "auto":
            crew.measure()
        make: dict[str, Callable[[], System]] = {
            "decentral": lambda: Native(crew, size, self.codec, self.schedule),
            "gloo": lambda: Peer("gloo", site.places, size),
            "pccl": lambda: Peer("pccl", site.places, size),
            "tcp": lambda: Flows("tcp", site.places, size, net.congestion),
            "tls": lambda: Flows("tls", site.places, size, net.congestion),
        }
        systems: dict[str, System] = {}
        for name in ["decentral", *(name for name in against if name in make)]:
            systems[name] = make[name]()
            stack.callback(systems[name].close)
        return systems

    def _result(
        self, system: str, runs: list[list[Answer]], link_bytes: list[int] | None
    ) -> dict[str, Any]:
        ours = system == "decentral"
        seconds = [max(rank["seconds"] for rank in ranks) for ranks in runs]
        cpu = statistics.median(sum(rank["cpu_seconds"] for rank in ranks) for ranks in runs)
        counted = runs[0][0]["bytes_sent"] is not None
        moved = [
            sum(rank["bytes_sent"] for rank in ranks)
            if counted
            else self.peers * ring_bytes(self.peers, self.size_bytes)
            for ranks in runs
        ]
        wire = statistics.median(moved)
        return {
            "system": system,
            "peers": self.peers,
            "size_bytes": self.size_bytes,
            "codec": self.codec if ours else "fp32",
            "schedule": runs[-1][0]["schedule"] if ours else _pattern(system),
            "encrypted": self.encrypt if ours else system == "tls",
            "seconds": [round(value, 6) for value in seconds],
            "algbw_gib_s_median": round(self.size_bytes / 2**30 / statistics.median(seconds), 6),
            "cpu_seconds": round(cpu, 4),
            "cpu_seconds_per_gib_wire": round(cpu / (wire / 2**30), 4),
            "bytes_on_wire": int(wire) if counted else None,
            "link_bytes": int(statistics.median(link_bytes)) if link_bytes else None,
            "max_abs_error": max(rank["max_abs_error"] for ranks in runs for rank in ranks),
        }

    def _against_iperf(
        self, carried: list[list[float]], runs: list[list[Answer]]
    ) -> tuple[dict[str, Any], float]:
        """What iperf3 found, and our share of it against the ideal 2 (n − 1) / n · bytes."""
        rate_mbit = statistics.median(statistics.mean(rates) for rates in carried)
        seconds = statistics.median(max(rank["seconds"] for rank in ranks) for ranks in runs)
        ours_mbit = ring_bytes(self.peers, self.size_bytes) * 8e-6 / seconds
        return (
            {
                "rate_mbit": round(rate_mbit, 3),
                "rates_mbit": [[round(rate, 2) for rate in rates] for rates in carried],
                "decentral_mbit": round(ours_mbit, 3),
            },
            round(ours_mbit / rate_mbit, 4),
        )


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Against all-reduces: speed. Against bare flows: CPU seconds per GiB on the wire."""
    ours, *others = results
    out = {}
    for other in others:
        if other["system"] in ("tcp", "tls"):
            key, above, below = "cpu_seconds_per_gib_wire", ours, other
        else:
            key, above, below = "algbw_gib_s_median", ours, other
        out[f"decentral/{other['system']}"] = round(above[key] / below[key], 3)
    return out


def _pattern(system: str) -> str:
    return "bare ring of flows" if system in ("tcp", "tls") else "default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size-mib", type=float, default=64)
    size.add_argument("--size-kib", type=float)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument(
        "--streams", default="auto", help="bulk streams per link: auto, or a number"
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--against", default="", help=f"comma-separated: {', '.join(OTHERS)}")
    add_net_arguments(parser)


def streams_from(word: str) -> int:
    """0 for "auto"."""
    if word == "auto":
        return 0
    if not word.isdigit() or not 1 <= int(word) <= 64:
        raise ConfigError(f"--streams is auto or 1 to 64, not {word!r}")
    return int(word)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    return AllReduceBench(
        peers=args.peers,
        size_mib=args.size_mib if args.size_kib is None else args.size_kib / 1024,
        codec=args.codec,
        schedule=args.schedule,
        encrypt=args.encrypt == "on",
        runs=args.runs,
        warmups=args.warmups,
        streams=streams_from(args.streams),
        against=tuple(filter(None, args.against.split(","))),
        net=net_from_arguments(args),
    ).run()
