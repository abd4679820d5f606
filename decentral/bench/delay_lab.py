"""A lab whose lines have a delay, a loss and worse: TUN devices on `_netlab` (native/netlab)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from decentral.bench.delay_line import DelayLine
from decentral.bench.lab import Host, Lab, Lines, addresses


class DelayLab(Lab):
    """Made at once. One process moves every packet: about half a Gbit/s in all."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._line: DelayLine | None = None
        try:
            for number, address in enumerate(addresses(len(lines.rates_mbit))):
                self.hosts.append(Host(self._namespace(f"h{number}"), address, "wan0"))
            self._line = DelayLine(
                [(host.netns, host.address) for host in self.hosts], seed=lines.seed
            )
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
        assert self._line is not None
        return self._line.tell(command)

    def _set_rate(self, host: int, mbit: float) -> None:
        self.tell(f"rate {host} up {mbit}")
        self.tell(f"rate {host} down {mbit}")

    def set_delay(self, first: int, second: int, rtt_ms: float) -> None:
        """The round trip between two hosts, half of it each way."""
        self.tell(f"delay {first} {second} {rtt_ms / 2}")
        self.tell(f"delay {second} {first} {rtt_ms / 2}")

    def set_loss(self, probability: float) -> None:
        self.tell(f"loss {probability}")

    def set_host_loss(self, host: int, probability: float) -> None:
        """Besides the loss of all: of the packets that this host sends and of those it gets."""
        self.tell(f"loss {host} {probability}")

    def set_corruption(self, host: int, probability: float) -> None:
        """So many TCP packets from and to the host have one bit of their payload flipped, under a
        checksum that fits: the bytes reach the application, which must notice by itself."""
        self.tell(f"corrupt {host} {probability}")

    def block(self, sender: int, receiver: int, on: bool = True) -> None:
        """Packets of this one direction vanish, until it is off again."""
        self.tell(f"block {sender} {receiver} {'on' if on else 'off'}")

    def cut(self, host: int) -> None:
        self.tell(f"cut {host}")

    def heal(self, host: int) -> None:
        self.tell(f"heal {host}")

    def counters(self) -> Sequence[dict[str, Any]]:
        """Per host: packets and bytes sent and delivered, and what became of the others."""
        return list(json.loads(self.tell("stats"))["hosts"])

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        super().close()
