"""Which peer may use which samples: a pure ledger that only committed entries change (I7).

    next ────────────▶ never granted yet
    returned           ranges that removed members gave back, sorted and merged
    grants[peer]       what a member may use now

Every sample id is in exactly one place: below `next` it is granted, returned or consumed. A
contribution names the ranges it used, the commit consumes them, so no id can count twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from decentral.peer.fields import bad, items, put_ranges, row, take_integer, take_peer, take_ranges
from decentral.types import Contribution, PeerId, Range

_ENDS = attrgetter("start", "stop")
"""Sorts like ranges themselves, much faster."""


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, and neighbours joined."""
    joined: list[Range] = []
    for one in sorted(ranges, key=_ENDS):
        if joined and one.start <= joined[-1].stop:
            joined[-1] = Range(joined[-1].start, max(joined[-1].stop, one.stop))
        else:
            joined.append(one)
    return tuple(joined)


def covers(outer: tuple[Range, ...], inner: tuple[Range, ...]) -> bool:
    """Whether every id of `inner`, whose ranges must not overlap, is in `outer`."""
    if len(inner) == 1:
        return any(big.start <= inner[0].start and inner[0].stop <= big.stop for big in outer)
    if sum(len(one) for one in inner) != sum(len(one) for one in merged(inner)):
        return False
    return all(
        any(big.start <= one.start and one.stop <= big.stop for big in outer)
        for one in merged(inner)
    )


def without(outer: tuple[Range, ...], inner: tuple[Range, ...]) -> tuple[Range, ...]:
    """`outer` minus `inner`; both sorted and merged."""
    left: list[Range] = []
    for big in outer:
        start = big.start
        for one in inner:
            if one.stop <= start or one.start >= big.stop:
                continue
            if one.start > start:
                left.append(Range(start, one.start))
            start = max(start, one.stop)
        if start < big.stop:
            left.append(Range(start, big.stop))
    return tuple(left)


def count(ranges: Iterable[Range]) -> int:
    return sum(len(one) for one in ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLedger:
    """Immutable: each operation returns the ledger after it."""

    share: int = 0
    """Samples that each member holds at the start of a round; 0: the data has no stable ids."""
    next: int = 0
    returned: tuple[Range, ...] = ()
    grants: tuple[tuple[PeerId, tuple[Range, ...]], ...] = ()
    """Sorted by peer."""

    def granted(self, peer: PeerId) -> tuple[Range, ...]:
        return next((ranges for one, ranges in self.grants if one == peer), ())

    def grant(self, peer: PeerId, samples: int) -> LeaseLedger:
        """Give `samples` more: returned ranges first, the lowest ids first, then new ones."""
        return self._give({peer: samples})

    def top_up(self, members: Iterable[PeerId]) -> LeaseLedger:
        """Bring every member up to its share, in the order given."""
        if not self.share:
            return self
        held = dict(self.grants)
        return self._give({peer: self.share - count(held.get(peer, ())) for peer in members})

    def _give(self, missing: dict[PeerId, int]) -> LeaseLedger:
        returned, following = list(self.returned), self.next
        grants = dict(self.grants)
        for peer, samples in missing.items():
            given: list[Range] = []
            while samples > 0 and returned:
                first = returned.pop(0)
                used = min(samples, len(first))
                given.append(Range(first.start, first.start + used))
                if used < len(first):
                    returned.insert(0, Range(first.start + used, first.stop))
                samples -= used
            if samples > 0:
                given.append(Range(following, following + samples))
                following += samples
            if given:
                grants[peer] = merged((*grants.get(peer, ()), *given))
        return replace(
            self, next=following, returned=tuple(returned), grants=tuple(sorted(grants.items()))
        )

    def allows(self, contribution: Contribution) -> bool:
        """Whether a contribution uses only what its peer was granted."""
        if not contribution.leases:
            return True
        return covers(self.granted(contribution.peer), contribution.leases)

    def consume(self, contributions: Iterable[Contribution]) -> LeaseLedger:
        """Count these samples. Raises ValueError for any that were not granted."""
        grants = dict(self.grants)
        for one in contributions:
            if one.leases:
                if not covers(grants.get(one.peer, ()), one.leases):
                    raise ValueError(f"{one.peer} used samples that were not leased to it")
                grants[one.peer] = without(grants[one.peer], merged(one.leases))
        left = tuple(sorted((peer, ranges) for peer, ranges in grants.items() if ranges))
        return replace(self, grants=left)

    def take_back(self, peer: PeerId) -> LeaseLedger:
        """A member is gone: what it held goes to others."""
        freed = self.give_back(self.granted(peer))
        return replace(freed, grants=tuple(one for one in self.grants if one[0] != peer))

    def give_back(self, ranges: Iterable[Range]) -> LeaseLedger:
        """Ranges to be granted again (of the removed, of rounds that were rolled back)."""
        return replace(self, returned=merged((*self.returned, *ranges)))

    def put(self) -> list[Any]:
        """As a msgpack value; `take` is its inverse."""
        grants = [[peer, put_ranges(ranges)] for peer, ranges in self.grants]
        return [self.share, self.next, put_ranges(self.returned), grants]

    @staticmethod
    def take(raw: Any) -> LeaseLedger:
        share, following, returned, grants = row(raw, 4)
        rows = [row(one, 2) for one in items(grants, 4096)]
        ledger = LeaseLedger(
            share=take_integer(share),
            next=take_integer(following),
            returned=take_ranges(returned),
            grants=tuple((take_peer(peer), take_ranges(ranges)) for peer, ranges in rows),
        )
        everything = [*ledger.returned, *(one for _, held in ledger.grants for one in held)]
        if count(everything) != count(merged(everything)):
            bad("a lease ledger grants a sample twice")
        return ledger
