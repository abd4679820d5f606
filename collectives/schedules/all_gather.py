"""All-gather: rank r's segment r goes to everybody.

    direct   everybody sends its segment to all others: one hop, n - 1 times its segment
    ring     segments walk around: n - 1 hops, and nobody sends more than the buffer once

Direct is never slower while segments suit the uplinks; with one large segment among small ones its
owner would send it n - 1 times, while in the ring the others carry it on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from decentral.collectives.network import MESSAGE_S, Network
from decentral.collectives.plan import Kind, Plan, Step
from decentral.collectives.schedules.order import Key, ordered
from decentral.collectives.schedules.reduce_scatter import owned
from decentral.collectives.schedules.segments import is_used

BYTES_PER_ELEMENT = 4
"""What the choice between the two assumes."""


def plan(network: Network, rank: int, cuts: Sequence[int]) -> Plan:
    """Rank r's part is elements [cuts[r], cuts[r + 1]); the quicker of the two ways."""
    way = direct if direct_s(network, cuts) <= ring_s(network, cuts) else ring
    return way(network, rank, cuts)


def direct(network: Network, rank: int, cuts: Sequence[int]) -> Plan:
    segments = owned(network.members, rank, cuts)
    steps: list[tuple[Key, Step]] = []
    for owner, segment in enumerate(segments):
        if not is_used(segment, cuts[-1]):
            continue
        if owner != rank:
            turn = (rank - owner) % network.members
            steps.append(((turn, owner), Step(Kind.RECV_FINAL, owner, owner)))
            continue
        for turn in range(1, network.members):
            peer = (rank + turn) % network.members
            steps.append(((turn, owner), Step(Kind.SEND_FINAL, peer, owner)))
    return Plan(segments, ordered(steps))


def ring(network: Network, rank: int, cuts: Sequence[int]) -> Plan:
    members = network.members
    segments = owned(members, rank, cuts)
    after, before = (rank + 1) % members, (rank - 1) % members
    steps: list[Step] = []
    for turn in range(members - 1):
        mine, theirs = (rank - turn) % members, (rank - 1 - turn) % members
        if is_used(segments[mine], cuts[-1]):
            steps.append(Step(Kind.SEND_FINAL, after, mine))
        if is_used(segments[theirs], cuts[-1]):
            steps.append(Step(Kind.RECV_FINAL, before, theirs))
    return Plan(segments, tuple(steps))


def direct_s(network: Network, cuts: Sequence[int]) -> float:
    """Seconds that `direct` takes."""
    others, total = network.members - 1, cuts[-1] * BYTES_PER_ELEMENT
    busiest = max(
        max(others * own / up, (total - own) / down) for own, up, down in _loads(network, cuts)
    )
    return busiest + float(network.rtt.max()) / 2 + others * MESSAGE_S


def ring_s(network: Network, cuts: Sequence[int]) -> float:
    """Seconds that `ring` takes: whoever precedes a small segment's owner sends nearly all."""
    hops = network.members - 1
    total = cuts[-1] * BYTES_PER_ELEMENT
    slowest = min(network.both_ways_bytes_s)
    smallest = min(own for own, _, _ in _loads(network, cuts))
    return (total - smallest) / slowest + hops * (float(network.rtt.max()) / 2 + MESSAGE_S)


def _loads(network: Network, cuts: Sequence[int]) -> list[tuple[int, float, float]]:
    """By rank: (bytes of its segment, up, down)."""
    own = [(b - a) * BYTES_PER_ELEMENT for a, b in itertools.pairwise(cuts)]
    return list(zip(own, network.up_bytes_s, network.down_bytes_s, strict=True))
