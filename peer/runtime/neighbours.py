"""What neighbours on the local network are good for: a way into the run, and back into it.

--join lan ──▶ wait for a neighbour of our run ──▶ it is an entry, as if a word had named it
later      ──▶ only while this peer is linked to nobody inside: after a move, or a restart
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from decentral.errors import ConfigError, DecentralError, UnreachableError
from decentral.peer.credential import run_label
from decentral.peer.joinword import split_address
from decentral.peer.runtime.mdns import LanDiscovery, Neighbour, run_tag

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

GATHER_S = 0.3
"""After the first neighbour: others of the same run are entries, too."""
MAX_ENTRIES = 8
MAX_KNOWN = 64
LOOK_S = 2.0


class Neighbours:
    """Of the loop's thread."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self._node, self._loop = node, loop
        self._known: dict[str, Neighbour] = {}
        self._waiting: Callable[[DecentralError | None], None] | None = None
        here = [split_address(address)[0] for address in node.reaching.own_addresses]
        public = [one for one in here if not one.startswith("127.")]
        self._discovery = LanDiscovery(
            node.identity.public, port, public or here, self._run, self._found
        )

    async def start(self) -> None:
        try:
            await self._discovery.start()
            self._loop.call_later(LOOK_S, self._look)
        except OSError as error:
            says = f"no discovery on this network: {error}"
            self._node.events.emit("fault", kind="lan", peer=None, says=says)

    async def close(self) -> None:
        await self._discovery.close()

    def wait_for_entry(
        self, timeout_s: float, then: Callable[[DecentralError | None], None]
    ) -> None:
        """Call `then` once the card has entries from this network, or with an error."""
        self._waiting = then
        self._loop.call_later(timeout_s, self._give_up, timeout_s)
        if self._known:
            self._loop.call_later(GATHER_S, self._enough)

    def _run(self) -> tuple[bytes, bool] | None:
        context = self._node.card.context
        return None if context is None else (context.run, context.open)

    def _found(self, neighbour: Neighbour) -> None:
        run = self._run()
        ours = neighbour.open if run is None else neighbour.tag == run_tag(run[0])
        known = neighbour.peer in self._known or len(self._known) < MAX_KNOWN
        if not ours or not known or self._node.closed:
            return
        first = not self._known
        self._known[neighbour.peer] = neighbour
        if self._waiting is None:
            self._dial()
        elif first:
            self._loop.call_later(GATHER_S, self._enough)

    def _look(self) -> None:
        """Neighbours are announced once; when this peer is alone can be any time later."""
        if not self._node.closed:
            self._dial()
            self._loop.call_later(LOOK_S, self._look)

    def _dial(self) -> None:
        node, run = self._node, self._run()
        if run is None or node.core is None or not (node.core.lost or not node.links.all()):
            return
        for one in self._known.values():
            ours = one.tag == run_tag(run[0])  # an open run's newcomer has seen other runs, too
            if ours and node.links.get(one.peer) is None and not node.card.is_revoked(one.peer):
                node.links.dial(one.peer, one.addresses)

    def _enough(self) -> None:
        then, self._waiting = self._waiting, None
        if then is None:
            return
        tags = {one.tag for one in self._known.values()}
        if len(tags) > 1:
            says = f"there are {len(tags)} open runs on this network: say which with a join word"
            then(ConfigError(says, phase="join"))
            return
        self._node.card.add_entries(
            [where for one in list(self._known.values())[:MAX_ENTRIES] for where in one.addresses]
        )
        then(None)

    def _give_up(self, timeout_s: float) -> None:
        then, self._waiting = self._waiting, None
        if then is not None:
            run = self._run()
            which = f"run {run_label(run[0])}" if run is not None else "an open run"
            says = f"no peer of {which} was found on this network within {timeout_s:.0f} s"
            then(UnreachableError(says, phase="join"))
