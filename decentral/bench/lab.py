"""Hosts on this machine: network namespaces with links of a chosen rate, delay and loss.

    with open_lab(Lines(rates_mbit=(400, 400, 400, 100))) as lab:      veth, bridge, tbf
    with open_lab(Lines(rates_mbit=(200,) * 2, rtt_ms=100, loss=.001)) as lab:   a delay line
        subprocess.Popen([*lab.hosts[0].prefix, "python", …])          runs on host 0
        lab.set_rate(3, 50); lab.cut(1); lab.heal(1)                   at any moment

Hosts count from 0. A lab is gone when its block ends, with whatever still runs on its hosts; what
a killed process left behind is swept away by the next lab.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from decentral import _native
from decentral.errors import ConfigError, DecentralError

PREFIX = "dlab"
CLONE_NEWNET = 0x40000000


class LabError(DecentralError):
    """The lab cannot be made on this system, or one of its tools failed."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What the hosts of a lab are connected by."""

    rates_mbit: tuple[float, ...]
    """Per host, both directions, Mbit/s; 0: no limit. Its length is the number of hosts."""
    rtt_ms: float = 0
    """Between any two hosts. Above 0 (or with loss) the lines are a delay line in user space,
    good for about half a Gbit/s in all; without, they are shaped by the kernel."""
    loss: float = 0
    """Probability per packet."""
    queue_ms: float = 30
    """What a packet may wait in a line's queue before it is dropped."""
    seed: int = 1
    """Which packets are lost."""
    delay_line: bool = False
    """A delay line also where there is neither delay nor loss."""

    def __post_init__(self) -> None:
        if len(self.rates_mbit) < 2 or any(rate < 0 for rate in self.rates_mbit):
            raise ConfigError("a lab has two hosts or more, with rates in Mbit/s (0: no limit)")
        if self.rtt_ms < 0 or not 0 <= self.loss < 1 or self.queue_ms <= 0:
            raise ConfigError("rtt_ms and queue_ms are milliseconds, loss is a probability")

    @property
    def delayed(self) -> bool:
        return self.delay_line or self.rtt_ms > 0 or self.loss > 0


@dataclass(frozen=True)
class Host:
    """One machine of the lab."""

    netns: str
    address: str
    interface: str

    @property
    def prefix(self) -> list[str]:
        """What to put before a command so that it runs on this host."""
        return ["ip", "netns", "exec", self.netns]

    def socket(self, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of this process on this host, bound to its address and a free port."""
        return bound_socket(Path("/run/netns") / self.netns, self.address, kind)


class Namespaces:
    """Network namespaces that go, with whatever still runs in them, when their block ends."""

    def __init__(self) -> None:
        self.tag = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
        self._namespaces: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs on the hosts, and the hosts. Idempotent."""
        for netns in self._namespaces:
            remove(netns)
        self._namespaces.clear()

    def _namespace(self, name: str) -> str:
        netns = f"{self.tag}-{name}"
        ip("netns", "add", netns)
        self._namespaces.append(netns)
        ip("-n", netns, "link", "set", "lo", "up")
        return netns


class Lab(Namespaces, ABC):
    """Hosts with lines; how they are connected is the subclass's business."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: list[Host] = []

    def set_rate(self, host: int, mbit: float) -> None:
        """Both directions of a host's line, from now on; 0: no limit."""
        if not 0 <= mbit <= 1e6:
            raise ConfigError(f"a rate is 0 to 1,000,000 Mbit/s, not {mbit}", phase="lab")
        self._set_rate(host, mbit)

    @abstractmethod
    def _set_rate(self, host: int, mbit: float) -> None: ...

    @abstractmethod
    def cut(self, host: int) -> None:
        """Pull the cable: packets vanish, nobody gets a FIN or an error."""

    @abstractmethod
    def heal(self, host: int) -> None:
        """Put the cable back."""

    def bytes_sent(self) -> int:
        """What all hosts have put on their lines so far: IP packets with all headers."""
        return sum(
            int(
                command(*host.prefix, "cat", f"/sys/class/net/{host.interface}/statistics/tx_bytes")
            )
            for host in self.hosts
        )


def open_lab(lines: Lines) -> Lab:
    """A lab with these lines. LabError says why this system cannot have one."""
    from decentral.bench.delay_lab import DelayLab
    from decentral.bench.shaped_lab import ShapedLab

    reason = why_not(delayed=lines.delayed)
    if reason:
        raise LabError(reason, phase="lab")
    sweep()
    return DelayLab(lines) if lines.delayed else ShapedLab(lines)


def why_not(*, delayed: bool = False) -> str:
    """Why this system cannot make a lab; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip",) if delayed else ("ip", "tc", "nft"):
        if shutil.which(tool) is None:
            return f"the lab needs the {tool} command (apt install iproute2 nftables)"
    if delayed and not Path("/dev/net/tun").exists():
        return "the delay line needs /dev/net/tun, and this system has none"
    if delayed and not program("_netlab").exists():
        return "the delay line is built on Linux only, and this installation lacks it"
    probe = f"{PREFIX}-{os.getpid()}-probe{secrets.token_hex(2)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return f"this system forbids network namespaces: {made.stderr.decode().strip()}"
    remove(probe)
    return ""


def program(name: str) -> Path:
    """A program that is installed next to the native module."""
    return Path(str(_native.__file__)).parent / name


def sweep() -> None:
    """Remove the labs of processes that no longer live: they were killed."""
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0]
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-.*", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            remove(name)


def remove(netns: str) -> None:
    """End whatever runs in a namespace, then the namespace."""
    pids = subprocess.run(
        ["ip", "netns", "pids", netns], capture_output=True, text=True, check=False
    )
    for pid in pids.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", netns], capture_output=True, check=False)


def bound_socket(netns: Path, address: str, kind: int) -> socket.socket:
    """A socket of this process in that namespace, at a free port."""
    with inside(netns):
        made = socket.socket(socket.AF_INET, kind)
    made.bind((address, 0))
    return made


@contextlib.contextmanager
def inside(netns: Path) -> Iterator[None]:
    """This thread is in a namespace for so long. A socket belongs to the one that its thread was
    in when it was made."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as here, netns.open() as there:
        try:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise LabError(f"cannot enter {netns}: {os.strerror(ctypes.get_errno())}")
            yield
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)


def ip(*args: str) -> None:
    command("ip", *args)


def command(*words: str, stdin: str = "") -> str:
    """Run a tool; its output. LabError with the tool's own words if it refuses."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, input=stdin)
    if done.returncode:
        says = done.stderr.strip() or f"status {done.returncode}"
        raise LabError(f"{' '.join(words)}: {says}", phase="lab")
    return done.stdout


def addresses(count: int) -> Sequence[str]:
    """10.77.0.1 …: host n has the address that ends in n + 1."""
    return [f"10.77.0.{number + 1}" for number in range(count)]
