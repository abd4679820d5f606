"""Where a benchmark runs: on loopback, or on the hosts of a lab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral.bench.lab import Lab, Lines, open_lab
from decentral.bench.workers import Place
from decentral.errors import ConfigError

KINDS = ("loopback", "shaped", "wan")


@dataclass(frozen=True, kw_only=True)
class Net:
    """What is between the peers."""

    kind: str = "loopback"
    """``shaped``: veth and tbf; ``wan``: a delay line in user space, with delay and loss."""
    rates_mbit: tuple[float, ...] = ()
    """Per host, or one for all; both directions. Empty: no limit."""
    rtt_ms: float = 0
    loss: float = 0
    queue_ms: float = 0
    """Bound of each line's queue. 0: 30 ms, or one RTT if that is longer."""
    congestion: str = ""
    """Of TCP; empty: the system's."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"--net is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.kind == "loopback" and (self.rates_mbit or self.rtt_ms or self.loss):
            raise ConfigError("loopback has neither rates nor delay: use --net shaped or wan")
        if self.kind == "shaped" and (self.rtt_ms or self.loss):
            raise ConfigError("shaped lines have neither delay nor loss: use --net wan")

    def rates(self, peers: int) -> tuple[float, ...]:
        """Mbit/s by rank; 0: no limit."""
        rates = self.rates_mbit or (0,)
        if len(rates) not in (1, peers):
            raise ConfigError(f"{len(rates)} rates for {peers} peers: give one, or one for each")
        return rates if len(rates) == peers else rates * peers

    def report(self, peers: int) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "rates_mbit": list(self.rates(peers)),
            "rtt_ms": self.rtt_ms,
            "loss": self.loss,
            "congestion": self.congestion or system_congestion(),
        }


def system_congestion() -> str:
    """What TCP uses here unless it is told otherwise."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "default"


@dataclass(frozen=True)
class Site:
    """A net that exists."""

    places: list[Place]
    lab: Lab | None


@contextmanager
def open_net(net: Net, peers: int) -> Iterator[Site]:
    """Places for that many peers, for as long as the block lasts."""
    if net.kind == "loopback":
        yield Site([Place()] * peers, None)
        return
    lines = Lines(
        rates_mbit=net.rates(peers),
        rtt_ms=net.rtt_ms,
        loss=net.loss,
        queue_ms=net.queue_ms or max(30.0, net.rtt_ms),
        seed=net.seed,
        delay_line=net.kind == "wan",
    )
    with open_lab(lines) as lab:
        yield Site([Place(h.address, h.interface, tuple(h.prefix)) for h in lab.hosts], lab)


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """``--net`` and its details; `from_arguments` reads them."""
    parser.add_argument("--net", choices=KINDS, help="default: what the other options need")
    parser.add_argument("--rates-mbit", default="", help="one for all hosts, or one each: 400,100")
    parser.add_argument("--rtt-ms", type=float, default=0)
    parser.add_argument("--loss", type=float, default=0, help="probability per packet")
    parser.add_argument("--queue-ms", type=float, default=0, help="default: 30, or one RTT")
    parser.add_argument("--congestion", choices=("default", "cubic", "bbr"), default="default")
    parser.add_argument("--net-seed", type=int, default=1, help="which packets are lost")
    parser.set_defaults(**defaults)


def from_arguments(args: argparse.Namespace) -> Net:
    """The net that the options describe. ConfigError if they contradict each other."""
    delayed = args.rtt_ms > 0 or args.loss > 0
    try:
        rates = tuple(float(rate) for rate in str(args.rates_mbit).split(",") if rate)
    except ValueError:
        raise ConfigError(f"--rates-mbit takes numbers, not {args.rates_mbit!r}") from None
    return Net(
        kind=args.net or ("wan" if delayed else "shaped" if rates else "loopback"),
        rates_mbit=rates,
        rtt_ms=args.rtt_ms,
        loss=args.loss,
        queue_ms=args.queue_ms,
        congestion="" if args.congestion == "default" else args.congestion,
        seed=args.net_seed,
    )
