"""Which members keep which cell: a pure function of who is in the view.

    leased cell     1 worker, who computes its rounds, and copies − 1 who take the results
    other cells     `copies` members, of those who compute what it is made from

Every cell ranks all members by a hash of both (rendezvous hashing), and takes the first that still
have room: where a member dies, hardly anything moves but what it had. Nothing is negotiated: all
members see the same view, and whoever computes something twice does no harm.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from decentral.dataflow.program import Program
from decentral.dataflow.progress import kind_of
from decentral.types import PeerId

Leases = Mapping[str, tuple[PeerId, ...]]
"""Per cell who keeps it; of a leased cell the first one is the worker."""


class Assignment:
    """Of one program. Leases are remembered for the last view only."""

    def __init__(self, program: Program, copies: int) -> None:
        self._copies = copies
        self._leased = tuple(cell for cell in program.cells if program.leased(cell))
        self._kinds: dict[str, list[str]] = {}
        """Leased cells that are worked on at the same time, by kind: each is shared out evenly."""
        for cell in self._leased:
            self._kinds.setdefault(kind_of(cell), []).append(cell)
        others = (cell for cell in program.cells if not program.leased(cell))
        self._sources = {cell: _sources(program, cell) for cell in others}
        self._last: tuple[tuple[PeerId, ...], Leases] = ((), {})

    def leases(self, members: Sequence[PeerId]) -> Leases:
        """The same for the same set of members, in whatever order."""
        inside = tuple(sorted(members))
        if self._last[0] != inside:
            self._last = (inside, self._assign(inside))
        return self._last[1]

    def _assign(self, members: tuple[PeerId, ...]) -> Leases:
        copies = min(self._copies, len(members))
        kept: dict[str, tuple[PeerId, ...]] = dict.fromkeys(self._leased, ())
        for alike in self._kinds.values():
            room = -(-len(alike) // len(members))
            for _ in range(copies):  # all workers first: they are what takes time
                load: Counter[PeerId] = Counter()
                for cell in alike:
                    peer = _first(cell, members, kept[cell], load, room)
                    kept[cell] = (*kept[cell], peer)
                    load[peer] += 1
        load = Counter()
        room = -(-len(self._sources) * copies // len(members))
        for cell, sources in self._sources.items():
            near = {kept[source][0] for source in sources if source in self._leased}
            keepers: tuple[PeerId, ...] = ()
            while len(keepers) < copies:
                pool = [p for p in members if p in near and p not in keepers] or members
                keepers = (*keepers, _first(cell, pool, keepers, load, room))
            load.update(keepers)
            kept[cell] = keepers
        return kept


def _sources(program: Program, cell: str) -> tuple[str, ...]:
    """The cells that its rounds are made from."""
    rounds = {1, program.rounds(cell)} if program.rounds(cell) else ()
    return tuple({one.cell: None for r in sorted(rounds) for one in program.inputs(cell, r)})


def _first(
    cell: str,
    members: Sequence[PeerId],
    taken: Sequence[PeerId],
    load: Mapping[PeerId, int],
    room: int,
) -> PeerId:
    """The first in the cell's order that does not have it yet, and has room if any has."""
    free = [peer for peer in members if peer not in taken]
    return min(free, key=lambda peer: (load.get(peer, 0) >= room, rank(cell, peer)))


@lru_cache(maxsize=65536)
def rank(cell: str, peer: PeerId) -> bytes:
    """Where a peer stands in a cell's order: the least comes first."""
    return hashlib.sha256(f"{cell}\0{peer}".encode()).digest()
