"""How news about peers spreads: to everybody in a small mesh, infectiously in a large one."""

from __future__ import annotations

from collections.abc import Callable

from decentral.peer.context import Context
from decentral.peer.messages import Gossip, Update
from decentral.types import PeerId

SMALL = 32
"""With up to so many links news goes to all at once; above, to some, who pass it on."""
FANOUT = 6
BURST_S = 0.1
"""What comes in a burst goes out together."""


class Spreading:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._pending: dict[PeerId, int] = {}
        """Peer → how often its news has been passed on."""
        self._flush_at = 0.0

    def add(self, peer: PeerId) -> None:
        self._pending[peer] = 0

    def next_timer(self) -> float:
        return self._flush_at if self._pending else float("inf")

    def flush(self, update: Callable[[PeerId], Update]) -> None:
        if not self.ctx.links:
            self._pending = {}
        if not self._pending or self.ctx.now < self._flush_at:
            return
        self._flush_at = self.ctx.now + BURST_S
        linked = sorted(self.ctx.links)
        news = Gossip(tuple(update(peer) for peer in self._pending))
        if len(linked) <= SMALL:
            self.ctx.send_all(linked, news, urgent=False)
            self._pending = {}
            return
        self.ctx.send_all(self.ctx.rng.sample(linked, FANOUT), news, urgent=False)
        times = 2 * len(linked).bit_length()
        self._pending = {p: n + 1 for p, n in self._pending.items() if n + 1 < times}
