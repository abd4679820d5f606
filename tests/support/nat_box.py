"""What stands between a pretended peer and the world: nothing, a firewall or a NAT (RFC 4787)."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

Address: TypeAlias = tuple[str, int]


def split(address: str) -> Address:
    host, _, port = address.rpartition(":")
    return host, int(port)


def join(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


@dataclass
class Box:
    """It knows nothing of the reach machine: only which packets have gone out, and to whom."""

    ip: str
    """The outer address; of no NAT, the machine's own."""
    mapping: str
    """none, independent, dependent."""
    filtering: str
    """independent, address, port."""
    rng: Random
    remaps: bool = False
    """A packet that comes too early makes this NAT take another port for its answer's way out (as
    Linux does where nothing drops such packets)."""
    _outer: dict[tuple[Address, Address | None], int] = field(default_factory=dict)
    _inner: dict[int, Address] = field(default_factory=dict)
    _sent: dict[int, set[Address]] = field(default_factory=dict)
    _early: set[tuple[int, Address]] = field(default_factory=set)
    forwards: dict[int, Address] = field(default_factory=dict)
    """Ports that were mapped by request."""

    def out(self, source: Address, to: Address) -> Address:
        """A packet leaves: its source, as the world sees it."""
        if self.mapping == "none":
            self._inner[source[1]] = source
            self._sent.setdefault(source[1], set()).add(to)
            return source
        known = self._outer.get((source, None))
        if self.mapping == "dependent" or (known is not None and (known, to) in self._early):
            key: tuple[Address, Address | None] = (source, to)
        else:
            key = (source, None)
        if key not in self._outer:
            port = self._free_port()
            self._outer[key], self._inner[port] = port, source
        port = self._outer[key]
        self._sent.setdefault(port, set()).add(to)
        return self.ip, port

    def _free_port(self) -> int:
        while True:
            port = self.rng.randrange(1024, 65536)
            if port not in self._inner and port not in self.forwards:
                return port

    def lets_in(self, port: int, source: Address) -> Address | None:
        """A packet comes: who gets it inside."""
        if port in self.forwards:
            return self.forwards[port]
        if self.mapping == "none" and self.filtering == "independent":
            return self.ip, port
        inner, sent = self._inner.get(port), self._sent.get(port, set())
        if inner is None:
            return None
        if self.filtering == "independent" or source in sent:
            return inner
        if self.filtering == "address" and any(source[0] == ip for ip, _ in sent):
            return inner
        if self.remaps:
            self._early.add((port, source))
        return None

    def forget(self) -> None:
        """It restarts."""
        for table in (self._outer, self._inner, self._sent, self._early):
            table.clear()


KINDS = {
    "public": ("none", "independent"),
    "firewall": ("none", "port"),
    "full": ("independent", "independent"),
    "address": ("independent", "address"),
    "port": ("independent", "port"),
    "symmetric": ("dependent", "port"),
}
