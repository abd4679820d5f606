"""How news about peers spreads: to everybody in a small mesh, infectiously in a large one.

    noticed by us alone ──▶ told at once
    noticed by everybody at once (a link closed, a suspect answered, a suspect's time is up)
        ──▶ waits a random moment ──▶ told
                 └─ enough others have said the same meanwhile ──▶ dropped

One death in a mesh of n peers thus costs a few times n messages, not n².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from decentral.peer.context import Context
from decentral.peer.messages import Gossip, Update
from decentral.types import PeerId

SMALL = 64
"""With up to so many links news goes to all at once; above, to some, who pass it on."""
FANOUT = 4
ROUNDS = 3
"""What is passed on goes to FANOUT links, so many times."""
BURST_S = 0.1
CROWD_BURST_S = 0.2
"""What comes in a burst goes out together."""
WAIT_S = 0.004
"""News that others have too waits for up to so long per link: the first voices come soon after
each other in a mesh of any size."""
MOST_WAIT_S = 0.15
MOST_UPDATES = 64
"""News about so many peers per message; the rest waits for the next burst."""


@dataclass(slots=True)
class _News:
    due: float
    enough: int
    """So many others that say the same make it no news."""
    told: int = 0
    said_by: set[PeerId] = field(default_factory=set)


class Spreading:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.pending: dict[PeerId, _News] = {}
        self._flush_at = 0.0
        self._due = float("inf")

    def add(self, peer: PeerId, *, enough: int = 0) -> None:
        """Tell what is believed of `peer`; `enough`: unless so many others soon say the same."""
        due = self.ctx.now
        if enough:
            most_s = min(WAIT_S * len(self.ctx.links), MOST_WAIT_S)
            due += most_s * self.ctx.rng.random()
        self.pending[peer] = _News(due, enough)
        self._due = min(self._due, due)

    def heard(self, peer: PeerId, sender: PeerId) -> None:
        """`sender` believes of `peer` what we believe."""
        news = self.pending.get(peer)
        if news is not None and news.enough and not news.told:
            news.said_by.add(sender)
            if len(news.said_by) >= news.enough:
                del self.pending[peer]

    def next_timer(self) -> float:
        return max(self._due, self._flush_at) if self.pending else float("inf")

    def flush(self, update: Callable[[PeerId], Update], *, infectious: bool) -> None:
        now = self.ctx.now
        if not self.ctx.links:
            self.pending.clear()
            return
        if now < self._flush_at or now < self._due:
            return
        ripe = [peer for peer, news in self.pending.items() if news.due <= now][:MOST_UPDATES]
        if ripe:
            self._flush_at = now + (CROWD_BURST_S if infectious else BURST_S)
            self._tell(ripe, Gossip(tuple(update(peer) for peer in ripe)), infectious)
        self._due = min((news.due for news in self.pending.values()), default=float("inf"))

    def _tell(self, peers: list[PeerId], gossip: Gossip, infectious: bool) -> None:
        linked = sorted(self.ctx.links)
        if not infectious or len(linked) <= FANOUT:
            self.ctx.send_all(linked, gossip, urgent=False)
            for peer in peers:
                del self.pending[peer]
            return
        self.ctx.send_all(self.ctx.rng.sample(linked, FANOUT), gossip, urgent=False)
        for peer in peers:
            news = self.pending[peer]
            news.told += 1
            if news.told >= ROUNDS:
                del self.pending[peer]
