"""Whom to ask for the next piece of a state: who is up, honest and awake, and who owes what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from decentral.types import PeerId


@dataclass(slots=True)
class Holder:
    """A peer that should hold the state."""

    up: bool = True
    missing: bool = False
    """It says that it does not hold the state."""
    liar: bool = False
    """It sent something that cannot be right: never asked again."""
    stalls: int = 0
    """Since it last gave something."""
    rests_until: float = 0.0
    """Not asked before; 0: it does not rest."""
    heard_at: float = 0.0
    """When something last came, or when it last owed nothing."""
    owes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Key → (tensor, chunk) that it was asked for."""

    @property
    def may_help(self) -> bool:
        return self.up and not (self.missing or self.liar)


class Holders:
    """The table of a fetch's holders."""

    def __init__(self, peers: Iterable[PeerId], window: int, stall_s: float) -> None:
        """`window`: what one may owe at a time; `stall_s`: how long it may owe in silence."""
        self._table = {peer: Holder() for peer in peers}
        self._window, self._stall_s = window, stall_s

    def __getitem__(self, peer: PeerId) -> Holder:
        return self._table[peer]

    def get(self, peer: PeerId) -> Holder | None:
        return self._table.get(peer)

    def peers(self, *, pinned: bool = False) -> list[PeerId]:
        """All, or those that may have pinned the state for us."""
        return [p for p, h in self._table.items() if not pinned or (h.up and not h.missing)]

    def owner(self, key: int) -> PeerId | None:
        """Who owes the blob `key`."""
        return next((peer for peer, h in self._table.items() if key in h.owes), None)

    def up(self, peer: PeerId, now: float) -> bool:
        """A link came up; all is forgiven but a lie. Is the peer of use?"""
        before = self._table.get(peer)
        liar = before is not None and before.liar
        self._table[peer] = Holder(liar=liar, heard_at=now)
        return not liar

    def hope(self) -> bool:
        """Could anybody still help, now or after coming back?"""
        return any(h.may_help or not (h.up or h.liar) for h in self._table.values())

    def pick(self, now: float) -> PeerId | None:
        """Whom to ask next, if anybody.

        Those that stalled come last: else two silent ones could keep a chunk between them.
        """
        ready = (
            (holder.stalls, len(holder.owes), order, peer)
            for order, (peer, holder) in enumerate(self._table.items())
            if holder.may_help and holder.rests_until <= now and len(holder.owes) < self._window
        )
        peer = min(ready, default=(0, 0, 0, None))[3]
        if peer is not None and not self._table[peer].owes:
            self._table[peer].heard_at = now  # its time to answer starts here
        return peer

    def rest(self, peer: PeerId, now: float) -> None:
        """It let us down: leave it alone for a while, longer each time."""
        holder = self._table[peer]
        holder.stalls += 1
        holder.heard_at = now
        holder.rests_until = now + self._stall_s * min(1.0, 2 ** min(holder.stalls, 4) / 10)

    def stalled(self, now: float, asked: PeerId | None) -> list[PeerId]:
        """Who owes something (`asked`: the manifest) and has been silent for too long."""
        for holder in self._table.values():
            if holder.rests_until <= now:
                holder.rests_until = 0.0
        return [
            peer
            for peer, holder in self._table.items()
            if (holder.owes or peer == asked) and now >= holder.heard_at + self._stall_s
        ]

    def timers(self, asked: PeerId | None) -> list[float]:
        """When somebody may have stalled, or is rested."""
        times = []
        for peer, holder in self._table.items():
            if holder.owes or peer == asked:
                times.append(holder.heard_at + self._stall_s)
            if holder.rests_until and holder.may_help:
                times.append(holder.rests_until)
        return times
