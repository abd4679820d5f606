"""Finding each other on a local network, by multicast DNS (RFC 6762, 6763).

    <key>._decentral._tcp.local.   SRV port   A addresses   TXT r=<hash of the run> o=<open?> v=1

Announced is what a neighbour needs to dial, and a hash by which members of the same run know each
other; whoever answers still has to prove its key and its credential. Nothing of it is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from decentral.types import PeerId, peer_id, raw_id

SERVICE = "_decentral._tcp.local."
MAX_PENDING = 64
"""Questions about neighbours at once: a flood of names is not followed."""
MAX_ADDRESSES = 8
ANSWER_S = 2.0
RUN_KNOWN_S = 0.5
CLOSE_S = 1.0
_VERSION = b"1"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Somebody on this network who says that it is a peer."""

    peer: PeerId
    addresses: tuple[str, ...]
    """``IPv4:PORT``"""
    tag: str
    """`run_tag` of its run."""
    open: bool
    """Its run admits anyone."""


def run_tag(run: bytes) -> str:
    """What is told of a run's id."""
    return hashlib.sha256(b"decentral lan v1\0" + run).hexdigest()[:16]


def read(
    name: str, properties: Mapping[bytes, bytes | None], addresses: list[str], port: int | None
) -> Neighbour | None:
    """An announcement as it came; None if it is not exactly one of ours."""
    label = name.removesuffix(f".{SERVICE}")
    tag = properties.get(b"r") or b""
    if properties.get(b"v") != _VERSION or len(tag) != 16 or not port or not 0 < port < 65536:
        return None
    try:
        peer = f"peer:{label.lower()}"
        raw_id(peer)
        found = [ipaddress.IPv4Address(one) for one in addresses[:MAX_ADDRESSES]]
        text = bytes.fromhex(tag.decode("ascii")).hex()
    except ValueError:  # of an id, an address or a number in hex
        return None
    usable = [one for one in found if not (one.is_multicast or one.is_unspecified)]
    if not usable:
        return None
    where = tuple(f"{one}:{port}" for one in dict.fromkeys(usable))
    return Neighbour(peer, where, text, properties.get(b"o") == b"1")


class LanDiscovery:
    """Announces this peer once its run is known, and listens for others. Of the loop's thread."""

    def __init__(
        self,
        me: bytes,
        port: int,
        addresses: list[str],
        run: Callable[[], tuple[bytes, bool] | None],
        found: Callable[[Neighbour], None],
    ) -> None:
        """`addresses`: IPv4, of this machine. `run()`: its id and whether it is open, once known.
        `found` is called again when a neighbour changes."""
        self._me, self._port, self._addresses = peer_id(me), port, addresses
        self._run, self._found = run, found
        self._mdns: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """OSError if this machine cannot do multicast."""
        self._mdns = AsyncZeroconf(ip_version=IPVersion.V4Only)
        self._browser = AsyncServiceBrowser(
            self._mdns.zeroconf, [SERVICE], handlers=[self._changed]
        )
        self._spawn(self._announce())

    async def close(self) -> None:
        """Say goodbye. Idempotent."""
        mdns, self._mdns = self._mdns, None
        if mdns is None:
            return
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(TimeoutError, ZeroconfError, OSError):
            async with asyncio.timeout(CLOSE_S):
                if self._browser is not None:
                    await self._browser.async_cancel()
                await mdns.async_unregister_all_services()
        with suppress(TimeoutError, ZeroconfError, OSError):
            async with asyncio.timeout(CLOSE_S):
                await mdns.async_close()

    async def _announce(self) -> None:
        while (run := self._run()) is None:
            await asyncio.sleep(RUN_KNOWN_S)
        tag, is_open = run_tag(run[0]), run[1]
        label = self._me.removeprefix("peer:")
        info = AsyncServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=self._port,
            parsed_addresses=self._addresses,
            properties={"v": _VERSION, "r": tag, "o": "1" if is_open else "0"},
            server=f"decentral-{label[:16]}.local.",
        )
        mdns = self._mdns
        if mdns is not None:
            with suppress(ZeroconfError, OSError):  # a hint less for the others
                await (await mdns.async_register_service(info, cooperating_responders=True))

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        mine = name.lower() == f"{self._me.removeprefix('peer:')}.{SERVICE}"
        if state_change is ServiceStateChange.Removed or mine or len(self._tasks) >= MAX_PENDING:
            return
        self._spawn(self._ask(zeroconf, name))

    async def _ask(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(zeroconf, ANSWER_S * 1000):
                return
            addresses = info.parsed_addresses(IPVersion.V4Only)
        except (ZeroconfError, OSError, ValueError):  # a name that is none
            return
        neighbour = read(name, info.properties, addresses, info.port)
        if neighbour is not None:
            self._found(neighbour)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
