"""Three ways to have a router send a port's connections to us, behind one small interface.

PCP and NAT-PMP are a datagram each way (`pcp.py`, `natpmp.py`). UPnP is SSDP, XML and SOAP, in C
(miniupnpc), which blocks: it gets threads of its own, which are left behind if a router stalls.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from decentral.errors import PortMappingError
from decentral.peer.runtime import natpmp, pcp
from decentral.peer.runtime.gateway import Gateway, default_gateway, is_hidden
from decentral.peer.runtime.natpmp import Granted

T = TypeVar("T")
How: TypeAlias = Literal["pcp", "nat-pmp", "upnp"]

LIFETIME_S = 3600
"""What is asked for. Routers may give less."""
ANSWER_S = 1.5
UPNP_DISCOVERY_MS = 1000
UPNP_ANSWER_S = 5.0
_DESCRIPTION = "decentral"
_MOST_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A port that the router forwards to this peer."""

    external: str
    """``IPv4:PORT``, to be told to others."""
    how: How
    lifetime_s: float
    """How long it stays without being renewed; infinite where a router knows no end."""

    @property
    def double_nat(self) -> bool:
        """The router is itself behind a NAT: this address is of use to its neighbours only."""
        return is_hidden(self.external.rpartition(":")[0])

    def says(self) -> str:
        """One sentence for a person."""
        if self.double_nat:
            return (
                f"the router maps {self.external} ({self.how}), but that address is not public: it "
                "is behind another NAT (of the provider, or a second router)"
            )
        return f"the router maps {self.external} to this peer ({self.how})"


class Way(Protocol):
    """One way to ask. All methods raise PortMappingError."""

    how: How

    async def find(self) -> None:
        """Is there somebody who can be asked? Changes nothing."""
        ...

    async def map(self, port: int, wanted: int) -> Mapping:
        """Map `port`, by preference to `wanted` outside; again: renew."""

    async def unmap(self, port: int, mapping: Mapping) -> None:
        """Take it back."""


class Pcp:
    how: How = "pcp"

    def __init__(self, gateway: str | None = None, port: int = natpmp.SERVER_PORT) -> None:
        self._gateway, self._port = gateway, port
        self._nonce = secrets.token_bytes(pcp.NONCE_BYTES)
        self._outer = ("0.0.0.0", 0)

    async def find(self) -> None:
        async with self._open() as router:
            ask = pcp.ask_whether_there(router.own_address)
            await router.ask(ask, pcp.read_whether_there, ANSWER_S)

    async def map(self, port: int, wanted: int) -> Mapping:
        address, granted = await self._ask(port, (self._outer[0], wanted), LIFETIME_S)
        if not granted.lifetime_s:
            raise PortMappingError("it gave a mapping that lasts no time")
        self._outer = (address, granted.port)
        return _mapping(address, granted, self.how)

    async def unmap(self, port: int, mapping: Mapping) -> None:
        await self._ask(port, ("0.0.0.0", 0), 0)

    async def _ask(self, port: int, outer: tuple[str, int], lifetime_s: int) -> tuple[str, Granted]:
        async with self._open() as router:
            ask = pcp.ask_mapping(router.own_address, self._nonce, port, outer, lifetime_s)
            return await router.ask(
                ask, lambda reply: pcp.read_mapping(reply, self._nonce, port), ANSWER_S
            )

    def _open(self) -> Gateway:
        return Gateway(self._gateway or default_gateway(), self._port)


class NatPmp:
    how: How = "nat-pmp"

    def __init__(self, gateway: str | None = None, port: int = natpmp.SERVER_PORT) -> None:
        self._gateway, self._port = gateway, port

    async def find(self) -> None:
        async with self._open() as router:
            await router.ask(natpmp.ASK_ADDRESS, natpmp.read_address, ANSWER_S)

    async def map(self, port: int, wanted: int) -> Mapping:
        async with self._open() as router:
            address = await router.ask(natpmp.ASK_ADDRESS, natpmp.read_address, ANSWER_S)
            granted = await router.ask(
                natpmp.ask_mapping(port, wanted, LIFETIME_S),
                lambda reply: natpmp.read_mapping(reply, port),
                ANSWER_S,
            )
        if not granted.lifetime_s:
            raise PortMappingError("it gave a mapping that lasts no time")
        return _mapping(address, granted, self.how)

    async def unmap(self, port: int, mapping: Mapping) -> None:
        async with self._open() as router:
            ask = natpmp.ask_mapping(port, 0, 0)
            await router.ask(ask, lambda reply: natpmp.read_mapping(reply, port), ANSWER_S)

    def _open(self) -> Gateway:
        return Gateway(self._gateway or default_gateway(), self._port)


class Upnp:
    """UPnP-IGD. Keeps the device that it has found."""

    how: How = "upnp"

    def __init__(self) -> None:
        self._device: Any = None

    async def find(self) -> None:
        default_gateway()  # without a router nobody needs to be asked by multicast
        self._device = await in_thread(_discover, UPNP_DISCOVERY_MS / 1000 + UPNP_ANSWER_S)

    async def map(self, port: int, wanted: int) -> Mapping:
        if self._device is None:
            await self.find()
        device = self._device
        try:
            return await in_thread(lambda: _add(device, port, wanted), UPNP_ANSWER_S)
        except PortMappingError:
            self._device = None  # it may have changed its address: look again next time
            raise

    async def unmap(self, port: int, mapping: Mapping) -> None:
        device, outer = self._device, int(mapping.external.rpartition(":")[2])
        if device is not None:
            await in_thread(lambda: device.deleteportmapping(outer, "TCP"), UPNP_ANSWER_S)


def _discover() -> Any:
    import miniupnpc

    device = miniupnpc.UPnP()
    device.discoverdelay = UPNP_DISCOVERY_MS
    if device.discover() == 0:
        raise PortMappingError("no router offers it")
    device.selectigd()
    return device


def _add(device: Any, port: int, wanted: int) -> Mapping:
    """The lease is given up where the router knows none; a taken port makes us try others."""
    address = _public(device.externalipaddress())
    outer, lifetime_s = wanted, LIFETIME_S
    for _ in range(_MOST_TRIES):
        try:
            device.addportmapping(outer, "TCP", device.lanaddr, port, _DESCRIPTION, "", lifetime_s)
        except Exception as error:  # miniupnpc has one type, and the standard's names in its text
            if "OnlyPermanentLeases" in str(error) and lifetime_s:
                lifetime_s = 0
            elif "Conflict" in str(error):
                outer = 1024 + secrets.randbelow(64512)
            else:
                raise
            continue
        return Mapping(
            external=f"{address}:{outer}", how="upnp", lifetime_s=lifetime_s or float("inf")
        )
    raise PortMappingError("every outer port that was tried is taken")


def _public(text: object) -> str:
    try:
        address = ipaddress.IPv4Address(text if isinstance(text, str) else "")
    except ValueError:
        raise PortMappingError(natpmp.NO_ADDRESS) from None
    if address.is_unspecified:
        raise PortMappingError(natpmp.NO_ADDRESS)
    return str(address)


def _mapping(address: str, granted: Granted, how: How) -> Mapping:
    return Mapping(
        external=f"{_public(address)}:{granted.port}", how=how, lifetime_s=granted.lifetime_s
    )


async def in_thread(function: Callable[[], T], limit_s: float) -> T:
    """Run what blocks; PortMappingError if it raises or takes too long.

    A daemon thread, not an executor's: an interpreter that ends would wait for those.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value: T | None = None
        failed: Exception | None = None
        try:
            value = function()
        except PortMappingError as error:
            failed = error
        except Exception as error:  # of a C library without error types
            failed = PortMappingError(f"{error}" or type(error).__name__)
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=work, name="port mapping", daemon=True).start()
    try:
        return await asyncio.wait_for(done, limit_s)
    except TimeoutError:
        raise PortMappingError(f"it took longer than {limit_s:.1f} s") from None
