"""Whom a member wants links to: everybody, or in a crowd the leaders and a few on a ring.

    up to full_mesh_up_to members   everybody
    more                            the first few (at most LEADERS) living members in rank order,
                                    who want links to all, and neighbours on a ring of ids,
                                    Chord-like: whoever comes first after id + ½, id + ¼, …

Every relation holds both ways, so that whoever came later, and was told of all who were there,
can dial. A change of the view moves few links: fingers go by id, not by rank.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from decentral.peer.sharing import as_set
from decentral.types import PeerId

LEADERS = 8
_RING = 1 << 60
_DIGITS = {digit: value for value, digit in enumerate("abcdefghijklmnopqrstuvwxyz234567")}


@lru_cache(maxsize=8192)
def place(peer: PeerId) -> int:
    """Where on the ring a peer is: the first 60 bits of its id, which is a hash."""
    at = 0
    for digit in peer[5:17]:
        at = at << 5 | _DIGITS[digit]
    return at


@lru_cache(maxsize=4)
def _ring(members: tuple[PeerId, ...]) -> tuple[list[tuple[int, PeerId]], list[int]]:
    ring = sorted((place(peer), peer) for peer in members)
    return ring, [at for at, _ in ring]


def neighbours(members: Sequence[PeerId], me: PeerId) -> set[PeerId]:
    """Those that our fingers on the ring point to, and those whose fingers point to us."""
    ring, places = _ring(tuple(members))
    mine, size = place(me), len(ring)

    def first_from(at: int) -> int:
        return bisect_left(places, at % _RING) % size

    here = first_from(mine)
    gap = (mine - places[here - 1]) % _RING
    found = {ring[here - 1][1], ring[(here + 1) % size][1]}
    for level in range(1, size.bit_length() + 1):
        step = _RING >> level
        found.add(ring[first_from(mine + step)][1])
        # Whose finger of this length lands between our predecessor and us?
        at = first_from(mine - step - gap + 1)
        while (mine - step - places[at]) % _RING < gap:
            found.add(ring[at][1])
            at = (at + 1) % size
            if len(found) >= size:
                break
    found.discard(me)
    return found


def leaders(
    members: Sequence[PeerId], gone: set[PeerId], count: int = LEADERS
) -> tuple[PeerId, ...]:
    """The first of the living in rank order: the coordinator, and who would follow it."""
    found: list[PeerId] = []
    for peer in members:
        if peer not in gone:
            found.append(peer)
            if len(found) == count:
                break
    return tuple(found)


class Neighbourhood:
    """Of one peer, in the view that it has looked at last."""

    def __init__(self, me: PeerId, full_mesh_up_to: int) -> None:
        self._me = me
        self._full_mesh_up_to = full_mesh_up_to
        self._count = max(2, min(LEADERS, full_mesh_up_to // 4))
        self._members: tuple[PeerId, ...] = ()
        self.inside: frozenset[PeerId] = frozenset()
        """The view's members."""
        self.partial = False
        """It is a crowd: not everybody is linked to everybody."""
        self.leaders: tuple[PeerId, ...] = ()
        """In a crowd, the first living members."""
        self.links: tuple[PeerId, ...] = ()
        """Those that we should be linked to, in rank order."""

    def look(self, members: tuple[PeerId, ...], gone: set[PeerId]) -> bool:
        """Whether anything is different from what it was."""
        crowd = len(members) > self._full_mesh_up_to
        first = leaders(members, gone, self._count) if crowd else ()
        if members is self._members and first == self.leaders:
            return False
        self._members, self.leaders, self.partial = members, first, bool(first)
        self.inside = as_set(members)
        if not first or self._me in first:
            self.links = tuple(peer for peer in members if peer != self._me)
        else:
            around = members if self._me in self.inside else (*members, self._me)
            near = neighbours(around, self._me) | set(first)
            self.links = tuple(peer for peer in members if peer in near)
        return True
