"""The double binary tree: about 2 log2 n hops, and nearly the ring's bandwidth.

Sanders, Speck, Träff: Two-tree algorithms for full bandwidth broadcast, reduction and scan, 2009.

One binary tree keeps its leaves idle: half of all ranks only ever send their own part. So there
are two, each for half of the buffer, and whoever is an inner node of one is a leaf of the other.
Sums climb a tree, its root completes them, finals come down. Seven ranks:

    tree 0        3               tree 1        2           (tree 1 is tree 0, each rank
              1       5                     0       4        played by its predecessor)
            0   2   4   6                 6   1   3   5

Chunks climb and come down one after the other, so both halves flow all the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import cut, is_used


@dataclass(frozen=True, slots=True)
class Node:
    """A rank's place in one tree."""

    parent: int | None
    children: tuple[int, ...]
    depth: int
    """Hops to the root."""


def node(members: int, rank: int, tree: int) -> Node:
    """The place of `rank` in tree 0 or 1."""
    place = _place(members, rank, tree)
    parent = _parent(members, place)
    depth, above = 0, parent
    while above is not None:
        depth, above = depth + 1, _parent(members, above)
    low = place & -place
    # The left child roots the places just below; the right one those above, as far as there are
    # members (then some smaller subtree's root takes its place).
    children = [place - low // 2] if low > 1 else []
    step = low // 2
    while step > 0 and place + step > members:
        step //= 2
    if step > 0:
        children.append(place + step)
    return Node(
        None if parent is None else _rank(members, parent, tree),
        tuple(_rank(members, child, tree) for child in children),
        depth,
    )


def plan(network: Network, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
    """Two segments, one per tree, owned by the trees' roots. The network's numbers play no part."""
    members = network.members
    check(members, rank, count)
    cuts = cut(count, [1.0, 1.0], alignment)
    segments = tuple(Segment(cuts[t], cuts[t + 1] - cuts[t], root(members, t)) for t in (0, 1))
    steps: list[tuple[Key, Step]] = []
    for index, segment in enumerate(segments):
        if not is_used(segment, count):
            continue
        mine = node(members, rank, index)
        # First all that climbs, deepest first; then all that comes down.
        for number, child in enumerate(mine.children):
            below = mine.depth + 1
            steps.append(((0, -below, index, number), Step(Kind.RECV_REDUCE, child, index)))
            steps.append(((1, below, index, number), Step(Kind.SEND_FINAL, child, index)))
        if mine.parent is not None:
            steps.append(((0, -mine.depth, index), Step(Kind.SEND_PARTIAL, mine.parent, index)))
            steps.append(((1, mine.depth, index), Step(Kind.RECV_FINAL, mine.parent, index)))
    return Plan(segments, ordered(steps))


def root(members: int, tree: int) -> int:
    """The rank at the top of a tree."""
    return _rank(members, 1 << (members.bit_length() - 1), tree)


# Places 1 … n lie in order from left to right; a place's height is the number of its trailing
# zeros, so odd places are the leaves. Tree 1 swaps odd and even: by mirroring where n is even, by
# shifting where it is odd (one rank is then a leaf in both).


def _place(members: int, rank: int, tree: int) -> int:
    if tree == 0:
        return rank + 1
    return members - rank if members % 2 == 0 else (rank + 1) % members + 1


def _rank(members: int, place: int, tree: int) -> int:
    if tree == 0:
        return place - 1
    return members - place if members % 2 == 0 else (place - 2) % members


def _parent(members: int, place: int) -> int | None:
    low = place & -place
    while low < members:
        place = (place ^ low) | (low << 1)
        if place <= members:
            return place
        low <<= 1
    return None
