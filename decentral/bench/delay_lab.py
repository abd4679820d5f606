"""A lab whose lines have a delay and a loss: TUN devices on `_netlab` (native/netlab)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from decentral.bench.lab import Host, Lab, LabError, Lines, addresses, program


class DelayLab(Lab):
    """Made at once. One process moves every packet: about half a Gbit/s in all."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None
        try:
            for number, address in enumerate(addresses(len(lines.rates_mbit))):
                self.hosts.append(Host(self._namespace(f"h{number}"), address, "wan0"))
            self._process = subprocess.Popen(
                [str(program("_netlab")), "--seed", str(lines.seed)]
                + [f"{host.netns}={host.address}" for host in self.hosts],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._hear("ready")
            self.tell(f"queue * {lines.queue_ms}")
            self.tell(f"delay * * {lines.rtt_ms / 2}")
            self.tell(f"loss {lines.loss}")
            for number, rate_mbit in enumerate(lines.rates_mbit):
                self.set_rate(number, rate_mbit)
        except BaseException:
            self.close()
            raise

    def tell(self, command: str) -> str:
        """One command of native/netlab/commands.h; its answer. LabError if it is refused."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._hear(command)

    def _set_rate(self, host: int, mbit: float) -> None:
        self.tell(f"rate {host} up {mbit}")
        self.tell(f"rate {host} down {mbit}")

    def set_delay(self, first: int, second: int, rtt_ms: float) -> None:
        """The round trip between two hosts, half of it each way."""
        self.tell(f"delay {first} {second} {rtt_ms / 2}")
        self.tell(f"delay {second} {first} {rtt_ms / 2}")

    def set_loss(self, probability: float) -> None:
        self.tell(f"loss {probability}")

    def cut(self, host: int) -> None:
        self.tell(f"cut {host}")

    def heal(self, host: int) -> None:
        self.tell(f"heal {host}")

    def counters(self) -> Sequence[dict[str, Any]]:
        """Per host: packets and bytes sent and delivered, dropped, lost, cut."""
        return list(json.loads(self.tell("stats"))["hosts"])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # reaps it and closes its pipes
            self._process = None
        super().close()

    def _hear(self, asked: str) -> str:
        assert self._process is not None and self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            _, says = self._process.communicate()
            raise LabError(f"the delay line ended: {says.strip()}", phase="lab")
        if answer.startswith("error: "):
            raise LabError(f"{asked!r}: {answer.removeprefix('error: ')}", phase="lab")
        return answer
