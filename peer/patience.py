"""How long a round of one tag waits for whoever has not contributed yet.

    nobody is missing ───────────────────────────────────────┐
    K are ready, and the grace of the others is over ────────┼─▶ it begins
    only newcomers are missing, and have had their moment ───┘
    half are ready, and the stragglers' grace is over ─────────▶ those are told to close
    … and none of them shows progress ─────────────────────────▶ they are hung, and due to go

A time is looked at when it is over (`look_at`), not when something happens to be heard.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from math import inf

from decentral.peer.context import Context
from decentral.peer.evictions import Evictions
from decentral.peer.membership import Membership
from decentral.types import PeerId

MIN_GRACE_S = 1.0
NEWCOMERS_S = 1.0
"""Once all others have contributed, whoever is new and has nothing yet is waited for so long."""


class Patience:
    def __init__(self, ctx: Context, membership: Membership, evictions: Evictions) -> None:
        self.ctx = ctx
        self.membership = membership
        self.evictions = evictions
        self.look_at = inf
        """When to look again; asked for by `come`."""
        self._since = 0.0
        """When the round began; 0: none that we know of."""
        self._half_at: float | None = None
        """Since when half have contributed, and so on."""
        self._enough_at: float | None = None
        self._only_new_at: float | None = None
        self._told: set[PeerId] = set()

    def new_round(self) -> None:
        self._since = self.ctx.now
        self._half_at = self._enough_at = self._only_new_at = None
        self._told.clear()

    def look(self) -> None:
        """A new look at everything: what was to be looked at is looked at now."""
        self._since = self._since or self.ctx.now
        self.look_at = inf

    def come(self, at: float) -> bool:
        """Whether that moment has come; if not, we look again then."""
        if self.ctx.now < at:
            self.look_at = min(self.look_at, at)
            return False
        return True

    def over(
        self, ready: Sequence[PeerId], missing: Sequence[PeerId], newcomers: Set[PeerId]
    ) -> bool:
        """Whether the round may begin with those who are ready."""
        return (
            not missing
            or self._enough(len(ready), len(missing))
            or self._only_new(ready, missing, newcomers)
        )

    def _enough(self, ready: int, missing: int) -> bool:
        """K are there, and those who were almost as quick have had their grace."""
        least = self.ctx.config.min_contributors
        if not least or ready < min(least, ready + missing):
            self._enough_at = None
            return False
        if self._enough_at is None:
            self._enough_at = self.ctx.now
        return self.come(self._enough_at + self.ctx.config.grace_s)

    def _only_new(
        self, ready: Sequence[PeerId], missing: Sequence[PeerId], newcomers: Set[PeerId]
    ) -> bool:
        """All but newcomers have contributed, and these have had their time."""
        if not ready or not set(missing) <= newcomers:
            self._only_new_at = None
            return False
        if self._only_new_at is None:
            self._only_new_at = self.ctx.now
        return self.come(self._only_new_at + NEWCOMERS_S)

    def to_hurry(
        self, ready: Sequence[PeerId], missing: Sequence[PeerId], newcomers: Set[PeerId]
    ) -> list[PeerId]:
        """Who is to be told, once, that all others wait for it. Who hangs is due to go."""
        if self._half_at is None and len(ready) >= len(missing):
            self._half_at = self.ctx.now
        if self._late() or (ready and set(missing) <= newcomers):
            hurried = [peer for peer in missing if peer not in self._told]
        else:
            hurried = []
        self._told |= set(hurried)
        self._note_hung(missing)
        return hurried

    def _late(self) -> bool:
        half_at = self._half_at
        if half_at is None:
            return False
        grace_s = self.ctx.config.straggler_grace * (half_at - self._since)
        return self.come(half_at + max(MIN_GRACE_S, grace_s))

    def _note_hung(self, missing: Sequence[PeerId]) -> None:
        """Nobody goes while one of those who are missing makes progress."""
        evictions, hung = self.evictions, {}
        for peer in missing:
            patience_s = evictions.patience_s(peer)
            if self._half_at is None or self.ctx.now <= self._half_at + patience_s:
                return
            if peer not in evictions.stuck and self.membership.stalled_s(peer) <= patience_s:
                return
            hung[peer] = f"no progress for {patience_s:.0f} s while all others wait"
        evictions.due.update(hung)
