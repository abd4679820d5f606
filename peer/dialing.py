"""Whom to dial, and when again: patience doubles while nobody answers. Whoever has been away for
long is tried less often: a run remembers everybody it ever met."""

from __future__ import annotations

from decentral.peer.context import Context
from decentral.peer.protocol import Dial
from decentral.types import PeerId

FIRST_S = 0.5
BRIEF_S = 0.5
MOST_S = 10.0
AWAY_SHARE = 0.25
"""Patience may grow to this share of the time that a peer has not answered for."""
LOOK_AT = 16
"""So many of those that one has only heard of, or met long ago, are tried at once."""
UNANSWERED_S = 3.0
"""A dial of which nothing is heard for so long is tried again."""


class Dialling:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.addresses: dict[PeerId, str] = {}
        self._due: dict[PeerId, float] = {}
        self._wait_s: dict[PeerId, float] = {}
        self._since: dict[PeerId, float] = {}
        """When it was first dialled in vain."""
        self._soonest: float | None = None
        """Of `_due`; None: not known any more."""

    def want(self, peer: PeerId, patience_s: float) -> None:
        """Dial within `patience_s` unless that is planned already."""
        if peer not in self._due:
            self._set(peer, self.ctx.now + patience_s)

    def broken(self, peer: PeerId, lived_s: float) -> None:
        """The link has just broken: try at once, unless it had only just come. Two processes with
        one identity, whose links replace each other's, must leave one time to say whose it is."""
        if lived_s < BRIEF_S:
            self._set(peer, self.ctx.now + self.ctx.jitter(FIRST_S))
            return
        self._wait_s[peer] = FIRST_S
        self._since.pop(peer, None)
        self._dial(peer)

    def failed(self, peer: PeerId) -> None:
        if peer in self._due:
            wait_s = self._wait_s.get(peer, FIRST_S)
            self._set(peer, min(self._due[peer], self.ctx.now + self.ctx.jitter(wait_s)))

    def enough(self, peer: PeerId) -> None:
        """It is linked, or has left."""
        if self._due.pop(peer, None) is not None:
            self._soonest = None
        self._wait_s.pop(peer, None)
        self._since.pop(peer, None)

    def next_timer(self) -> float:
        if self._soonest is None:
            self._soonest = min(self._due.values(), default=float("inf"))
        return self._soonest

    def tick(self) -> None:
        if self.ctx.now < self.next_timer():
            return
        for peer in [one for one, at in self._due.items() if self.ctx.now >= at]:
            del self._due[peer]
            self._soonest = None
            if peer not in self.ctx.links:
                self._dial(peer)

    def _set(self, peer: PeerId, at: float) -> None:
        self._due[peer] = at
        self._soonest = None

    def _dial(self, peer: PeerId) -> None:
        away_s = self.ctx.now - self._since.setdefault(peer, self.ctx.now)
        most_s = max(MOST_S, AWAY_SHARE * away_s)
        wait_s = min(2 * self._wait_s.get(peer, FIRST_S / 2), most_s)
        self._wait_s[peer] = wait_s
        self._set(peer, self.ctx.now + self.ctx.jitter(wait_s + UNANSWERED_S))
        address = self.addresses.get(peer, "")
        if address:
            self.ctx.out.append(Dial(peer, (address,)))
