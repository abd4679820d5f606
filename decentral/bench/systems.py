"""What `bench allreduce` compares: each system runs one all-reduce of the same size when asked."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from decentral.bench.crew import Crew
from decentral.bench.lab import program
from decentral.bench.workers import Place, Worker, Workers, soon
from decentral.errors import ConfigError, DecentralError

Answer = dict[str, Any]
"""Of one rank: `seconds` since the common start, `cpu_seconds`, `bytes_sent`, `max_abs_error`."""


class System(Protocol):
    """Started by its constructor; takes turns with the others."""

    def run_once(self) -> list[Answer]: ...
    def close(self) -> None: ...


class Native:
    """decentral itself. `bytes_sent` has payloads and headers, before encryption."""

    def __init__(self, crew: Crew, size_bytes: int, codec: str, schedule: str) -> None:
        self._crew = crew
        self._how = {"codec": codec, "schedule": schedule}
        crew.prepare(size_bytes)

    def run_once(self) -> list[Answer]:
        return self._crew.reduce(**self._how)

    def close(self) -> None:
        self._crew.close()


class Peer:
    """Another library's all-reduce, in workers of its own: gloo, PCCL."""

    def __init__(self, name: str, places: Sequence[Place], size_bytes: int) -> None:
        self._workers = Workers(
            f"decentral.bench.{name}_worker",
            places,
            ["--size-bytes", str(size_bytes), "--interface", places[0].interface],
        )
        try:
            self._workers.ask(addresses=self._workers.addresses)
        except BaseException:
            self._workers.close()
            raise

    def run_once(self) -> list[Answer]:
        return self._workers.ask(start_at=soon(len(self._workers)))

    def close(self) -> None:
        self._workers.close()


class Flows:
    """A ring of bare TCP or TLS connections (native/netlab/flow.cc) that moves as many bytes."""

    def __init__(
        self, kind: str, places: Sequence[Place], size_bytes: int, congestion: str = ""
    ) -> None:
        if not program("_flow").exists():
            raise ConfigError("the bare flows are built on Linux only, and this one lacks them")
        self._bytes_each = ring_bytes(len(places), size_bytes)
        self._workers: list[Worker] = []
        extra = [congestion] if congestion else []
        try:
            for place in places:
                command = [str(program("_flow")), place.address, kind, *extra]
                self._workers.append(Worker(command, place, f"the {kind} flow"))
            ports = [worker.hear()["port"] for worker in self._workers]
            for rank, worker in enumerate(self._workers):
                after = (rank + 1) % len(places)
                worker.tell(f"connect {places[after].address} {ports[after]}")
            for worker in self._workers:
                worker.hear()
        except BaseException:
            self.close()
            raise

    def run_once(self) -> list[Answer]:
        start_at = soon(len(self._workers))
        for worker in self._workers:
            worker.tell(f"run {self._bytes_each} {start_at:.6f}")
        return [
            {**worker.hear(), "bytes_sent": self._bytes_each, "max_abs_error": 0.0}
            for worker in self._workers
        ]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class Iperf:
    """iperf3 as a ring of flows, all at once: the rate that the links carry. Not an all-reduce."""

    PORT = 5201

    def __init__(self, places: Sequence[Place], seconds: float, congestion: str = "") -> None:
        if shutil.which("iperf3") is None:
            raise ConfigError("--against iperf3 needs the iperf3 command (apt install iperf3)")
        self._places = places
        self._seconds = seconds
        self._extra = ["-C", congestion] if congestion else []
        self._servers = [
            subprocess.Popen(
                [*place.prefix, "iperf3", "-s", "-B", place.address, "-p", str(self.PORT)],
                stdout=subprocess.DEVNULL,
            )
            for place in places
        ]

    def rates_mbit(self) -> list[float]:
        """What each receiver got, payload only."""
        clients = [
            subprocess.Popen(
                [*place.prefix, "iperf3", "-J", "-t", f"{self._seconds:g}", "-p", str(self.PORT)]
                + ["-c", self._places[(rank + 1) % len(self._places)].address, *self._extra],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, place in enumerate(self._places)
        ]
        reports = [json.loads(client.communicate()[0]) for client in clients]
        for report in reports:
            if "error" in report:
                raise DecentralError(f"iperf3: {report['error']}", phase="bench")
        return [report["end"]["sum_received"]["bits_per_second"] / 1e6 for report in reports]

    def close(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait()


def ring_bytes(peers: int, size_bytes: int) -> int:
    """What a bandwidth-optimal all-reduce makes each peer send: 2 (n − 1) / n of the buffer."""
    return 2 * (peers - 1) * size_bytes // peers


def why_no_pccl() -> str:
    """One sentence, or empty where its Python package imports."""
    if importlib.util.find_spec("pccl") is None:
        return "pypccl is not installed (its wheel wants Python 3.12 or later and libcuda.so.1)"
    probe = subprocess.run(
        [sys.executable, "-P", "-c", "import pccl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        says = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"pypccl is installed but does not import: {says}"
    return ""


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"no system {name!r}: there are {', '.join(known)}")
