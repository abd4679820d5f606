"""Broadcast: one rank's buffer to everybody, by a tree or by spreading.

    tree     every member sends what it gets to d others. d = 1 is a chain: everybody sends the
             buffer once, n - 1 hops; d = n - 1 a star: one hop, the root sends it n - 1 times
    spread   the root sends each member another part, which that one sends to all the others:
             two hops, nobody sends more than the buffer (van de Geijn's scatter + all-gather)

Small buffers take a wide tree, large ones are spread, or go down a chain if hops are cheap.
Members with fast uplinks stand near the root, and get the larger parts to send on.
"""

from __future__ import annotations

import itertools

from decentral.collectives.network import MESSAGE_S, Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.order import Key, check, ordered
from decentral.collectives.schedules.segments import cut, is_used

BYTES_PER_ELEMENT = 4
"""What the choice assumes."""
CHUNK_BYTES = 512 << 10
"""What a hop of a pipeline takes longer by."""


def plan(
    network: Network, rank: int, count: int, alignment: int = ALIGNMENT, *, root: int = 0
) -> Plan:
    """The buffer of `root` to all, in the way that should be the quickest."""
    members = network.members
    ways = [(tree_s(network, root, count, degree), degree) for degree in degrees(members)]
    quickest_s, degree = min(ways, default=(0.0, 1))
    if spread_s(network, root, count, alignment) < quickest_s:
        return spread(network, rank, count, alignment, root=root)
    return tree(network, rank, count, root=root, degree=degree)


def degrees(members: int) -> list[int]:
    """The trees to choose from: chain, binary, … , star."""
    powers = itertools.takewhile(lambda degree: degree < members - 1, (1 << i for i in range(32)))
    return [*powers, members - 1] if members > 1 else []


def tree(network: Network, rank: int, count: int, *, root: int, degree: int) -> Plan:
    """A heap: the member at position p sends to those at degree · p + 1 … degree · p + degree."""
    check(network.members, rank, count)
    places = order(network, root)
    mine = places.index(rank)
    steps: list[Step] = []
    if mine > 0:
        steps.append(Step(Kind.RECV_FINAL, places[(mine - 1) // degree], 0))
    below = places[degree * mine + 1 : degree * mine + degree + 1]
    steps += [Step(Kind.SEND_FINAL, peer, 0) for peer in below]
    return Plan((Segment(0, count, root),), tuple(steps))


def spread(network: Network, rank: int, count: int, alignment: int, *, root: int) -> Plan:
    """Part i goes from the root to member i first, and from there to all but the root."""
    members = network.members
    check(members, rank, count)
    cuts = _parts(network, root, count, alignment)
    segments = tuple(Segment(a, b - a, root) for a, b in itertools.pairwise(cuts))
    steps: list[tuple[Key, Step]] = []
    for carrier, segment in enumerate(segments):
        if carrier == root or not is_used(segment, count):
            continue
        if rank == root:
            steps.append(((0, 0, carrier), Step(Kind.SEND_FINAL, carrier, carrier)))
            continue
        if rank != carrier:
            turn = (rank - carrier) % members
            steps.append(((1, turn, carrier), Step(Kind.RECV_FINAL, carrier, carrier)))
            continue
        steps.append(((0, 0, carrier), Step(Kind.RECV_FINAL, root, carrier)))
        for turn in range(1, members):
            peer = (rank + turn) % members
            if peer != root:
                steps.append(((1, turn, carrier), Step(Kind.SEND_FINAL, peer, carrier)))
    return Plan(segments, ordered(steps))


def order(network: Network, root: int) -> list[int]:
    """The root, then the others by falling uplink (equals by rank)."""
    others = (rank for rank in range(network.members) if rank != root)
    return [root, *sorted(others, key=lambda rank: -network.up_bytes_s[rank])]


def tree_s(network: Network, root: int, count: int, degree: int) -> float:
    """Seconds that `tree` takes."""
    places, total = order(network, root), count * BYTES_PER_ELEMENT
    busiest = total / min(network.down_bytes_s)
    for place, rank in enumerate(places):
        children = max(0, min(degree, len(places) - 1 - degree * place))
        busiest = max(busiest, children * total / network.up_bytes_s[rank])
    depth, place = 0, len(places) - 1
    while place > 0:
        depth, place = depth + 1, (place - 1) // degree
    chunk_s = min(total, CHUNK_BYTES) * degree / min(network.both_ways_bytes_s)
    hop_s = float(network.rtt.max()) / 2 + degree * MESSAGE_S
    return busiest + depth * hop_s + (depth - 1) * chunk_s


def spread_s(network: Network, root: int, count: int, alignment: int) -> float:
    """Seconds that `spread` takes."""
    cuts, total = _parts(network, root, count, alignment), count * BYTES_PER_ELEMENT
    busiest = max(total / network.up_bytes_s[root], total / min(network.down_bytes_s))
    for rank, (a, b) in enumerate(itertools.pairwise(cuts)):
        sends = (network.members - 2) * (b - a) * BYTES_PER_ELEMENT
        busiest = max(busiest, sends / network.up_bytes_s[rank])
    return busiest + float(network.rtt.max()) + 2 * network.members * MESSAGE_S


def _parts(network: Network, root: int, count: int, alignment: int) -> list[int]:
    """Parts in proportion to uplinks; the root's is empty."""
    weights = [0.0 if rank == root else up for rank, up in enumerate(network.up_bytes_s)]
    return cut(count, weights if network.members > 1 else [1.0], alignment)
