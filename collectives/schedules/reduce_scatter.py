"""Reduce-scatter: rank r ends with the sum of segment r. The first half of a butterfly.

Everybody sends its contribution to a segment straight to the owner: one hop, one encoding. A
member sends all but its own segment and receives n - 1 contributions to it; no schedule moves
less, and cuts are the caller's, so a slow member can be given a small segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from decentral.collectives.network import Network
from decentral.collectives.plan import Kind, Plan, Segment, Step
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import is_used


def plan(network: Network, rank: int, cuts: Sequence[int]) -> Plan:
    """Rank r owns elements [cuts[r], cuts[r + 1]); `cuts` starts with 0, ends with the count.

    Contributions are summed in rank order, starting after the owner.
    """
    segments = owned(network.members, rank, cuts)
    steps: list[tuple[Key, Step]] = []
    for owner, segment in enumerate(segments):
        if not is_used(segment, cuts[-1]):
            continue
        if owner != rank:
            turn = (rank - owner) % network.members
            steps.append(((turn, owner), Step(Kind.SEND_PARTIAL, owner, owner)))
            continue
        for turn in range(1, network.members):
            peer = (rank + turn) % network.members
            steps.append(((turn, owner), Step(Kind.RECV_REDUCE, peer, owner)))
    return Plan(segments, ordered(steps))


def owned(members: int, rank: int, cuts: Sequence[int]) -> tuple[Segment, ...]:
    """One segment per rank from its cuts. ValueError if they do not fit."""
    if len(cuts) != members + 1 or cuts[0] != 0 or any(b < a for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"{members} members need {members + 1} ascending cuts from 0")
    check(members, rank, cuts[-1])
    return tuple(Segment(a, b - a, owner) for owner, (a, b) in enumerate(itertools.pairwise(cuts)))
