"""The weighted butterfly: everybody owns a share, in proportion to what its link carries.

Everybody sends its contribution to each share straight to its owner, and each owner sends the sum
straight to everybody: direct reduce-scatter and all-gather. Two hops whatever the number of
members, one encoding per contribution, and a slow peer may own little or nothing: then it sends
the buffer once and receives it once, which nothing can beat. Four ranks, rank 3 slow:

    contributions   3 ─x3[0]─▶ 0    3 ─x3[1]─▶ 1    3 ─x3[2]─▶ 2      0, 1, 2 likewise
    finals          0 ─sum[0]▶ *    1 ─sum[1]▶ *    2 ─sum[2]▶ *

A share is cut into slots, and every lane alternates: contributions to slot k, finals of slot
k - LAG. With whole shares, finals would queue behind contributions; a peer whose contributions
are more than its finals would first leave its download idle, then its upload:

    lane 0 ─▶ 1     c0  c1  c2 f0  c3 f1  c4 f2 …       c: x0 for 1's share, f: sum of 0's share
"""

from __future__ import annotations

import itertools

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import cut, is_used, split
from decentral.collectives.schedules.shares import shares

MAX_SLOTS = 16
"""More slots overlap better, but each ends with a short chunk in every lane."""
MIN_SLOT_ELEMENTS = 1 << 17
"""A slot of the largest share is no smaller than what one frame carries (512 KiB of fp32)."""
MIN_PART_ELEMENTS = 1 << 14
"""Smaller shares are cut into fewer parts than there are slots before parts get smaller."""
LAG = 8
"""By how many slots finals follow contributions in a lane. What a lane sends waits for the finals
before it, and those for the slowest contribution anywhere: with a small lag, one lane that gets
less than its share of a slow link holds up all lanes between the fast."""


def plan(network: Network, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
    """Shares by `shares`; contributions are summed in the order of `turns`."""
    members = network.members
    check(members, rank, count)
    bounds, slots_of = slots(offsets(network, count, alignment), alignment)
    mine = turns(network, rank)
    segments: list[Segment] = []
    steps: list[tuple[Key, Step]] = []
    for owner in range(members):
        turn = 0 if owner == rank else turns(network, owner)[rank]
        for (start, end), slot in zip(
            itertools.pairwise(bounds[owner]), slots_of[owner], strict=True
        ):
            index = len(segments)
            segments.append(Segment(start, end - start, owner))
            if not is_used(segments[-1], count):
                continue
            if owner != rank:
                steps.append(((slot, 0, turn, index), Step(Kind.SEND_PARTIAL, owner, index)))
                steps.append(((slot + LAG, 1, turn, index), Step(Kind.RECV_FINAL, owner, index)))
                continue
            for peer, place in mine.items():
                steps.append(((slot, 0, place, index), Step(Kind.RECV_REDUCE, peer, index)))
                steps.append(((slot + LAG, 1, place, index), Step(Kind.SEND_FINAL, peer, index)))
    return Plan(tuple(segments), ordered(steps))


def turns(network: Network, owner: int) -> dict[int, int]:
    """In which order an owner adds up the others' contributions: fast members first.

    A contribution that arrives before its turn waits in memory, and its sender soon waits, too. So
    the slow come last; who is about as fast as others comes in rank order, starting after the
    owner, so that owners do not all begin with the same member.
    """
    rates = network.both_ways_bytes_s
    fastest = max(rates)

    def turn(peer: int) -> tuple[int, int]:
        slower = int((fastest / rates[peer]) ** 2).bit_length()  # in steps of √2, exact everywhere
        return slower, (peer - owner) % network.members

    others = (peer for peer in range(network.members) if peer != owner)
    return {peer: place for place, peer in enumerate(sorted(others, key=turn), start=1)}


def offsets(network: Network, count: int, alignment: int = ALIGNMENT) -> list[int]:
    """Rank r owns elements [offsets[r], offsets[r + 1])."""
    return cut(count, shares(network.both_ways_bytes_s), alignment)


def slots(cuts: list[int], alignment: int) -> tuple[list[list[int]], list[list[int]]]:
    """Cuts every share: for each, the offsets of its parts, and the slot of each part.

    The largest share has as many parts as there are slots; smaller ones have fewer, spread over
    the slots, so that parts do not get small.
    """
    sizes = [end - start for start, end in itertools.pairwise(cuts)]
    most = max(1, min(MAX_SLOTS, max(sizes) // MIN_SLOT_ELEMENTS))
    parts = [max(1, min(most, size // MIN_PART_ELEMENTS)) for size in sizes]
    bounds = [
        split(start, start + size, part, alignment)
        for start, size, part in zip(cuts, sizes, parts, strict=False)
    ]
    return bounds, [[number * most // part for number in range(part)] for part in parts]
