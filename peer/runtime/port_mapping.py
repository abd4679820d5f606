"""A port on the router: asked for, renewed, taken back.

    find ─┬─ PCP ──────┐   the first way that answers is asked for the port; the next one
          ├─ NAT-PMP ──┼─▶ only if it refuses: two mappings of one port would be in each
          └─ UPnP ─────┘   other's way
                  map ──▶ told(mapping) ──▶ half its life, at most RENEW_S ──▶ map again …

Not to get one is no failure of the peer: it is said once, and tried again now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from decentral.errors import PortMappingError
from decentral.peer.runtime.port_mapping_ways import Mapping, NatPmp, Pcp, Upnp, Way

RENEW_S = 120.0
"""At most: a router that has restarted has forgotten all, and says so to nobody who listens."""
RETRY_S = 15.0
MOST_RETRY_S = 600.0
UNMAP_S = 1.0
"""A peer that ends waits no longer than this for its router."""


async def map_port(
    port: int, wanted: int = 0, ways: Sequence[Way] | None = None
) -> tuple[Mapping, Way]:
    """Have TCP `port` mapped by whichever way answers first; `wanted`: the port outside, if free.

    PortMappingError, with what each way had to say, if none of them works.
    """
    failures: dict[str, str] = {}
    tried: list[Way] = [Pcp(), NatPmp(), Upnp()] if ways is None else list(ways)
    searches = {asyncio.create_task(way.find()): way for way in tried}
    try:
        while searches:
            done, _ = await asyncio.wait(searches, return_when=asyncio.FIRST_COMPLETED)
            for search in sorted(done, key=lambda one: tried.index(searches[one])):
                way = searches.pop(search)
                try:
                    await search
                    return await way.map(port, wanted or port), way
                except PortMappingError as error:
                    failures[way.how] = error.says
    finally:
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
    says = "; ".join(f"{way.how}: {failures[way.how]}" for way in tried)
    raise PortMappingError(f"no router maps a port for this peer ({says})", phase="port mapping")


class PortMapper:
    """Keeps one port mapped, from `start` to `close`. Lives on one asyncio loop."""

    def __init__(
        self,
        port: int,
        told: Callable[[Mapping | None, str], None],
        *,
        ways: Callable[[], Sequence[Way]] | None = None,
        renew_s: float = RENEW_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """`told(mapping, sentence)` is called whenever what is mapped changes, None if it is lost,
        and once if nothing can be mapped."""
        self._port, self._told, self._ways = port, told, ways
        self._renew_s, self._retry_s = renew_s, retry_s
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._way: Way | None = None
        self._until = 0.0
        """When the mapping ends unless it is renewed, on the loop's clock."""
        self.mapping: Mapping | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    def again(self) -> None:
        """The network has changed: look anew, now."""
        self._way, self._until = None, 0.0
        self._wake.set()

    async def close(self) -> None:
        """Take the mapping back, if the router does it at once. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        mapping, self.mapping = self.mapping, None
        if mapping is not None and self._way is not None:
            with suppress(PortMappingError, TimeoutError):
                await asyncio.wait_for(self._way.unmap(self._port, mapping), UNMAP_S)

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        retry_s, said = self._retry_s, ""
        while True:
            self._wake.clear()
            try:
                mapping = await self._map()
            except PortMappingError as error:
                if clock() >= self._until and (self.mapping is not None or not said):
                    self.mapping, said = None, error.says
                    self._told(None, said)
                wait_s, retry_s = retry_s, min(2 * retry_s, MOST_RETRY_S)
            else:
                changed = self.mapping is None or self.mapping.external != mapping.external
                self.mapping, said = mapping, mapping.says()
                self._until = clock() + mapping.lifetime_s
                if changed:
                    self._told(mapping, said)
                wait_s, retry_s = min(mapping.lifetime_s / 2, self._renew_s), self._retry_s
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    async def _map(self) -> Mapping:
        """The way that worked last, then all of them: the router may be another one."""
        wanted = int(self.mapping.external.rpartition(":")[2]) if self.mapping else self._port
        if self._way is not None:
            with suppress(PortMappingError):
                return await self._way.map(self._port, wanted)
        ways = self._ways() if self._ways is not None else None
        mapping, self._way = await map_port(self._port, wanted, ways)
        return mapping
