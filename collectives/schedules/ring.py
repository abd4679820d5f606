"""The pipelined ring: bandwidth-optimal among equals, with a link to one neighbour at each side.

Patarasuk, Yuan: Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.
"""

from __future__ import annotations

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Step
from decentral.collectives.schedules.order import check
from decentral.collectives.schedules.segments import even_segments


def ring(members: int, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
    """Everybody sends 2 (n - 1) / n of the buffer, to one neighbour only.

    Rank r owns segment r. Its sum is collected on a walk around the ring that starts at its
    successor and ends at r (reduce-scatter); the final value then makes the same walk
    (all-gather). Four ranks, where segment 3 goes:

        reduce-scatter      0 ──x0──▶ 1 ──x0+x1──▶ 2 ──x0+x1+x2──▶ 3   completes, scales, encodes
        all-gather          3 ──sum──▶ 0 ──sum──▶ 1 ──sum──▶ 2

    All segments walk at the same time, each one rank apart, so every link is busy all the time.
    """
    check(members, rank, count)
    after, before = (rank + 1) % members, (rank - 1) % members
    steps: list[Step] = []
    for turn in range(members - 1):
        steps.append(Step(Kind.SEND_PARTIAL, after, (rank - 1 - turn) % members))
        steps.append(Step(Kind.RECV_REDUCE, before, (rank - 2 - turn) % members))
    for turn in range(members - 1):
        steps.append(Step(Kind.SEND_FINAL, after, (rank - turn) % members))
        steps.append(Step(Kind.RECV_FINAL, before, (rank - 1 - turn) % members))
    return Plan(even_segments(members, count, alignment), tuple(steps))


def plan(network: Network, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
    """`ring` as a planner: of the network only the number of members matters."""
    return ring(network.members, rank, count, alignment)
