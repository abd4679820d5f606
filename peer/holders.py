"""Whom to ask for the next piece of a state: who is up, honest and awake, and who owes what.

How much a holder may owe follows what it delivers. A chunk that comes almost as quickly as the
quickest one did finds no queue: one more may be owed. Where chunks wait for one another the pipe
is full, and one fewer may.

    took   ──┬───────────┬──────────────▶
          quickest   + QUEUE_S   + 2 QUEUE_S
             window + 1    stays    window − 1

So a fast source, and one far away, gets as much as it can carry, and a slow one owes little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from decentral.types import PeerId

QUEUE_S = 0.2
"""How long a chunk may wait behind others at a holder: enough to keep its line busy."""
FIRST_WINDOW = 4


@dataclass(slots=True)
class Debt:
    """A chunk that was asked for."""

    tensor: int
    index: int
    size: int
    at: float


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
    owes: dict[int, Debt] = field(default_factory=dict)
    """By key, the oldest first."""
    window: int = FIRST_WINDOW
    """Chunks that it may owe at a time."""
    quickest_s: float = 0.0
    """From asking to arrival, at its best; 0: nothing has come yet."""
    rate: float = 0.0
    """Bytes per second lately; 0: not known."""
    measured_at: float = 0.0
    measured_bytes: int = 0

    @property
    def may_help(self) -> bool:
        return self.up and not (self.missing or self.liar)

    def asked(self, key: int, debt: Debt) -> None:
        if not self.owes:
            self.measured_at, self.measured_bytes = debt.at, 0
        self.owes[key] = debt

    def delivered(self, debt: Debt, now: float, largest: int) -> None:
        """A chunk has come: learn from how long it took. The window stays within `largest`."""
        took = now - debt.at
        self.quickest_s = min(self.quickest_s or took, took)
        if took < self.quickest_s + QUEUE_S:
            self.window = min(self.window + 1, largest)
        elif took > self.quickest_s + 2 * QUEUE_S:
            self.window = max(self.window - 1, min(2, largest))
        self.measured_bytes += debt.size
        since = now - self.measured_at
        if since >= QUEUE_S or not self.rate:
            rate = self.measured_bytes / max(since, 1e-6)
            self.rate = rate if not self.rate else (self.rate + rate) / 2
            self.measured_at, self.measured_bytes = now, 0

    def due_s(self, now: float, more_bytes: int = 0) -> float:
        """When everything that it owes will be here, from now; a guess.

        Of who has not delivered yet nothing is known but how long that has been so: it is given as
        long again, and not called slow for having been asked just now.
        """
        owed = sum(debt.size for debt in self.owes.values()) + more_bytes
        if not self.rate:
            oldest = next(iter(self.owes.values()), None)
            if oldest is not None:
                return now - oldest.at
            return self.quickest_s if not owed else float("inf")
        return max(owed / self.rate, self.quickest_s if more_bytes else 0.0)


class Holders:
    """The table of a fetch's holders."""

    def __init__(self, peers: Iterable[PeerId], window: int, stall_s: float) -> None:
        """`window`: what one may owe at most; `stall_s`: how long it may owe in silence."""
        self._window, self._stall_s = window, stall_s
        self._table = {peer: self._fresh() for peer in peers}

    def _fresh(self, liar: bool = False, now: float = 0.0) -> Holder:
        return Holder(liar=liar, heard_at=now, window=min(FIRST_WINDOW, self._window))

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
        self._table[peer] = self._fresh(liar, now)
        return not liar

    def hope(self) -> bool:
        """Could anybody still help, now or after coming back?"""
        return any(h.may_help or not (h.up or h.liar) for h in self._table.values())

    def help_at_hand(self) -> bool:
        """Could anybody help who is there now?"""
        return any(holder.may_help for holder in self._table.values())

    def pick(self, now: float) -> PeerId | None:
        """Whom to ask next, if anybody.

        Those that stalled come last: else two silent ones could keep a chunk between them.
        """
        ready = (
            (holder.stalls, len(holder.owes) / holder.window, order, peer)
            for order, (peer, holder) in enumerate(self._table.items())
            if holder.may_help and holder.rests_until <= now and len(holder.owes) < holder.window
        )
        peer = min(ready, default=(0, 0.0, 0, None))[3]
        if peer is not None and not self._table[peer].owes:
            self._table[peer].heard_at = now  # its time to answer starts here
        return peer

    def late(self, now: float) -> tuple[PeerId, int, PeerId] | None:
        """Near the end: (who owes a chunk for too long, its key, who would bring it sooner).

        The chunk is the last that the slowest owes: it has begun the others. Only an idle holder
        takes over, and only if that is clearly sooner, so that chunks do not wander.
        """
        idle = [
            (holder.due_s(now, 1), peer)
            for peer, holder in self._table.items()
            if holder.may_help and holder.rests_until <= now and not holder.owes
            if holder.rate and not holder.stalls
        ]
        owing = [(h.due_s(now), peer) for peer, h in self._table.items() if h.owes]
        if not idle or not owing:
            return None
        due_s, slow = max(owing)
        debts = self._table[slow].owes
        key = next(reversed(debts))
        sooner = min(idle)[1]
        if 2 * self._table[sooner].due_s(now, debts[key].size) > due_s:
            return None
        return slow, key, sooner

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
