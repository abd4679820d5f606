"""Hierarchical: add up inside each site first, so that each site crosses the WAN as one peer.

Of every segment each site has a *delegate*. It adds up its site, exchanges with the segment's
*owner* (the delegate of the owner's site) over the WAN, and hands the result round its site:

    site 0:  1 ─x1─▶ 0 (owner)  ◀─x2+x3─ 2 ◀─x3─ 3  :site 1        contributions, LAN then WAN
    site 0:  1 ◀─sum─ 0         ─sum───▶ 2 ─sum─▶ 3 :site 1        finals, WAN then LAN

Delegates differ from segment to segment, so that members share the work. Each site sends
1 + (m - 2) w of the buffer over the WAN, for m sites and its share w; without sites it would be as
much for each member. Between sites this is the weighted butterfly: with the shares that `shares`
finds it never sends more per site than a ring of sites, in two hops instead of 2 (m - 1).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.butterfly import LAG, slots_for
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import cut, is_used, split
from decentral.collectives.schedules.shares import shares

# A transfer's key starts with slot + delay of its stage, for stages LAN in, WAN in, WAN out, LAN
# out: see butterfly.LAG.
_DELAYS = (0, 1, 1 + LAG, 2 + LAG)


@dataclass(frozen=True, slots=True)
class Layout:
    """Who owns what, and who speaks for a site."""

    groups: list[list[int]]
    """Ranks by site."""
    owners: list[int]
    """In the order of the buffer: each site's members one after the other."""
    offsets: list[int]
    """owners[i] owns elements [offsets[i], offsets[i + 1])."""

    def delegate(self, site: int, owner_site: int, place: int) -> int:
        """Who speaks for `site` about the part owned by member `place` of `owner_site`.

        In the owner's site that is the owner; elsewhere members take turns.
        """
        group = self.groups[site]
        turn = place if site == owner_site else place + owner_site
        return group[turn % len(group)]


def layout(network: Network, count: int, alignment: int = ALIGNMENT) -> Layout:
    """Sites get shares as butterfly peers would, their members equal parts of those."""
    groups = network.site_members()
    weights = shares([site_bytes_s(network, group) for group in groups])
    owners = [rank for group in groups for rank in group]
    parts = [
        weight / len(group) for group, weight in zip(groups, weights, strict=True) for _ in group
    ]
    return Layout(groups, owners, cut(count, parts, alignment))


def site_bytes_s(network: Network, group: list[int]) -> float:
    """What a site can send, and receive, at once: its shared link's rate or its members' sum."""
    site = network.sites[group[0]]
    both = []
    for rates, limits in (
        (network.up_bytes_s, network.site_up_bytes_s),
        (network.down_bytes_s, network.site_down_bytes_s),
    ):
        limit = float("inf") if limits is None else limits[site]
        both.append(min(limit, math.fsum(rates[rank] for rank in group)))
    return min(both)


def plan(network: Network, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
    """See the module. With one site or only sites of one, this is a butterfly."""
    check(network.members, rank, count)
    where = layout(network, count, alignment)
    site = next(number for number, group in enumerate(where.groups) if rank in group)
    segments: list[Segment] = []
    steps: list[tuple[Key, Step]] = []
    parts = slots_for(where.offsets)
    bounds = itertools.pairwise(where.offsets)
    for owner_site, group in enumerate(where.groups):
        for place, owner in enumerate(group):
            start, end = next(bounds)
            inner = split(start, end, parts, alignment) if end > start else [start, end]
            delegates = [
                where.delegate(each, owner_site, place) for each in range(len(where.groups))
            ]
            for slot, (a, b) in enumerate(itertools.pairwise(inner)):
                segments.append(Segment(a, b - a, owner))
                if is_used(segments[-1], count):
                    steps += _steps(where, rank, site, owner_site, delegates, slot, len(segments))
    return Plan(tuple(segments), ordered(steps))


def _steps(
    where: Layout,
    rank: int,
    site: int,
    owner_site: int,
    delegates: list[int],
    slot: int,
    number: int,
) -> list[tuple[Key, Step]]:
    """What `rank` of `site` does about the segment before `number`."""
    index = number - 1
    steps: list[tuple[Key, Step]] = []

    def add(stage: int, turn: int, kind: Kind, peer: int) -> None:
        steps.append(((slot + _DELAYS[stage], stage, turn, index), Step(kind, peer, index)))

    delegate, group, sites = delegates[site], where.groups[site], len(where.groups)
    first = group.index(delegate)
    if rank != delegate:
        turn = (group.index(rank) - first) % len(group)
        add(0, turn, Kind.SEND_PARTIAL, delegate)
        add(3, turn, Kind.RECV_FINAL, delegate)
        return steps
    for turn in range(1, len(group)):
        peer = group[(first + turn) % len(group)]
        add(0, turn, Kind.RECV_REDUCE, peer)
        add(3, turn, Kind.SEND_FINAL, peer)
    if site != owner_site:
        turn = (site - owner_site) % sites
        add(1, turn, Kind.SEND_PARTIAL, delegates[owner_site])
        add(2, turn, Kind.RECV_FINAL, delegates[owner_site])
        return steps
    for turn in range(1, sites):
        peer = delegates[(site + turn) % sites]
        add(1, turn, Kind.RECV_REDUCE, peer)
        add(2, turn, Kind.SEND_FINAL, peer)
    return steps
