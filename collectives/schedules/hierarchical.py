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
from collections.abc import Iterator
from dataclasses import dataclass

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.butterfly import LAG, slots
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import cut, is_used
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
    bounds, slots_of = slots(where.offsets, alignment)
    segments: list[Segment] = []
    steps: list[tuple[Key, Step]] = []
    places = ((s, place) for s, group in enumerate(where.groups) for place in range(len(group)))
    for number, (owner_site, place) in enumerate(places):
        for (start, end), slot in zip(
            itertools.pairwise(bounds[number]), slots_of[number], strict=True
        ):
            segments.append(Segment(start, end - start, where.owners[number]))
            if is_used(segments[-1], count):
                index = len(segments) - 1
                for stage, turn, kind, peer in _roles(where, rank, site, owner_site, place):
                    key = (slot + _DELAYS[stage], stage, turn, index)
                    steps.append((key, Step(kind, peer, index)))
    return Plan(tuple(segments), ordered(steps))


def _roles(
    where: Layout, rank: int, site: int, owner_site: int, place: int
) -> Iterator[tuple[int, int, Kind, int]]:
    """What `rank` of `site` does about a part owned by member `place` of `owner_site`:
    (stage, turn within it, kind, peer)."""
    delegate, group = where.delegate(site, owner_site, place), where.groups[site]
    first = group.index(delegate)
    if rank != delegate:
        turn = (group.index(rank) - first) % len(group)
        yield 0, turn, Kind.SEND_PARTIAL, delegate
        yield 3, turn, Kind.RECV_FINAL, delegate
        return
    for turn in range(1, len(group)):
        peer = group[(first + turn) % len(group)]
        yield 0, turn, Kind.RECV_REDUCE, peer
        yield 3, turn, Kind.SEND_FINAL, peer
    sites = len(where.groups)
    if site != owner_site:
        owner, turn = where.groups[owner_site][place], (site - owner_site) % sites
        yield 1, turn, Kind.SEND_PARTIAL, owner
        yield 2, turn, Kind.RECV_FINAL, owner
        return
    for turn in range(1, sites):
        peer = where.delegate((site + turn) % sites, owner_site, place)
        yield 1, turn, Kind.RECV_REDUCE, peer
        yield 2, turn, Kind.SEND_FINAL, peer
