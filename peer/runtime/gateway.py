"""The router of this machine's network: where it is, and how to ask it something over UDP."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from decentral.errors import PortMappingError, ProtocolError

T = TypeVar("T")
_ROUTES = Path("/proc/net/route")
_MAX_ROUTES_BYTES = 1 << 20
_UP_GATEWAY = 0x3
FIRST_WAIT_S = 0.1
"""Until a datagram is sent again; doubled each time. (The RFCs start with 0.25 and 3 s; a router is
a millisecond away, and the whole of it has a short limit.)"""
MAX_STRAYS = 64
"""So many datagrams that are no answer end the wait."""
_HIDDEN = [
    ipaddress.ip_network(block)
    for block in ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
                  "172.16.0.0/12", "192.168.0.0/16")
]  # fmt: skip


def is_hidden(address: str) -> bool:
    """Whether an IPv4 address means nothing outside: private, carrier-grade NAT, link-local."""
    return any(ipaddress.IPv4Address(address) in block for block in _HIDDEN)


def default_gateway() -> str:
    """The IPv4 default route's router. PortMappingError if there is none."""
    try:
        with _ROUTES.open("rb") as file:
            table = file.read(_MAX_ROUTES_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise PortMappingError(f"the routing table cannot be read: {error}") from None
    found = find_gateway(table)
    if found is None:
        raise PortMappingError("this machine has no default route, so no router to ask")
    return found


def find_gateway(table: str) -> str | None:
    """In the text of ``/proc/net/route``: of several default routes, the one with least metric."""
    best: tuple[int, str] | None = None
    for line in table.splitlines()[1:]:
        columns = line.split()
        try:
            destination, via, flags = (int(columns[n], 16) for n in (1, 2, 3))
            metric, mask = int(columns[6]), int(columns[7], 16)
        except (IndexError, ValueError):
            continue
        if destination or mask or flags & _UP_GATEWAY != _UP_GATEWAY or via >> 32:
            continue
        # The kernel prints the address as one number of this machine's byte order.
        address = str(ipaddress.IPv4Address(struct.pack("=I", via)))
        if best is None or metric < best[0]:
            best = (metric, address)
    return best[1] if best else None


class Gateway:
    """A connected UDP socket to a router's port: other senders are not heard. Async context."""

    def __init__(self, address: str, port: int) -> None:
        self._where = (address, port)
        self._inbox: asyncio.Queue[bytes | OSError] = asyncio.Queue(MAX_STRAYS)
        self._transport: asyncio.DatagramTransport | None = None
        self.own_address = ""
        """This machine's, on the way to the router."""

    async def __aenter__(self) -> Gateway:
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Inbox(self._inbox), remote_addr=self._where, family=socket.AF_INET
            )
        except OSError as error:
            raise PortMappingError(f"it cannot be asked: {error}") from None
        self.own_address = self._transport.get_extra_info("sockname")[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def ask(self, request: bytes, read: Callable[[bytes], T], limit_s: float) -> T:
        """Send until `read` takes an answer; bytes for which it raises ProtocolError are strays.

        PortMappingError if the router says no, refuses, or stays silent for `limit_s`.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        end, wait_s, strays = loop.time() + limit_s, FIRST_WAIT_S, 0
        while (left_s := end - loop.time()) > 0:
            self._transport.sendto(request)
            again = loop.time() + min(wait_s, left_s)
            wait_s *= 2
            while (rest_s := again - loop.time()) > 0:
                try:
                    got = await asyncio.wait_for(self._inbox.get(), rest_s)
                except TimeoutError:
                    break
                if isinstance(got, OSError):
                    raise PortMappingError("it does not offer this way (port unreachable)")
                try:
                    return read(got)
                except ProtocolError as error:
                    strays += 1
                    if strays >= MAX_STRAYS:
                        raise PortMappingError(f"it talks nonsense: {error.says}") from None
        raise PortMappingError(f"it did not answer within {limit_s:.1f} s")


class _Inbox(asyncio.DatagramProtocol):
    def __init__(self, inbox: asyncio.Queue[bytes | OSError]) -> None:
        self._inbox = inbox

    def datagram_received(self, data: bytes, _address: object) -> None:
        self._put(data)

    def error_received(self, error: Exception) -> None:
        self._put(error if isinstance(error, OSError) else OSError(str(error)))

    def _put(self, what: bytes | OSError) -> None:
        if not self._inbox.full():  # a flood: what does not fit is lost, as in any network
            self._inbox.put_nowait(what)
