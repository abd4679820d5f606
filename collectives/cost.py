"""How long would each schedule take here? Closed forms; `choose` picks the quickest.

Every estimate has the same three parts (the alpha-beta model over a measured network):

    start      members tell each other that they are ready: half the longest RTT, and a message
               per neighbour
    path       what the first chunk needs along the longest chain of hops: half an RTT, a message
               and the chunk's own bytes per hop
    bandwidth  what the busiest link (a member's up or down, or a site's) has to carry, less the
               chunk already counted

For the ring, where every chunk walks through all members, path and bandwidth exclude each other:
either links are always busy, or everybody waits for the next chunk. What is left out (loss, cross
traffic, congestion control, processors) is the measurement's business: bandwidths are goodputs.
Also left out: credits that are too few for a long fat pipe, and peers that share a link unevenly.

Estimates are plain IEEE arithmetic, maxima and exact sums (math.fsum): all members that know the
same network choose the same schedule. Source of the model: Thakur, Rabenseifner, Gropp:
Optimization of collective communication operations in MPICH, 2005.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from decentral.collectives import loads
from decentral.collectives.loads import Payload
from decentral.collectives.network import Network
from decentral.collectives.schedules import SCHEDULES, tree

__all__ = ["Choice", "Encoding", "Payload", "choose", "estimate_s"]


NEAR = 1.2
"""Estimates this close are equal: on equal links the butterfly's many lanes take up to a fifth
longer than the model, which knows nothing of how unevenly TCP shares a link."""
CROWD, SMALL_BYTES, NEAR_RTT_S = 8, 128 << 10, 0.002
"""Among more members than this and near ones, a small sum takes the tree: it needs streams between
few of them, and those between all must be made anew whenever somebody comes or goes, which the
model does not count."""
COARSE_BYTES = 1.0
"""Codecs of fewer bytes per value round so much that encoding once is worth that fifth."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The schedule to use, and why."""

    schedule: str
    seconds: dict[str, float]
    """Estimate by schedule, of all that were allowed."""

    def __str__(self) -> str:
        parts = sorted(self.seconds.items(), key=lambda item: item[1])
        return f"{self.schedule} (" + ", ".join(f"{n} {_pretty(s)}" for n, s in parts) + ")"


class Encoding(Protocol):
    """What of a codec matters here."""

    @property
    def rides_ring(self) -> bool:
        """Partial sums survive it; without, only schedules that encode no partial sums may."""
        ...

    @property
    def bytes_per_value(self) -> float:
        """Encoded size of an element of contributions and partial sums."""
        ...

    @property
    def final_bytes_per_value(self) -> float:
        """Encoded size of an element of final values."""
        ...


def choose(
    network: Network,
    count: int,
    codec: Encoding | None = None,
    allowed: Collection[str] | None = None,
    **payload: Any,
) -> Choice:
    """The quickest of the allowed schedules for `count` elements; of those within `NEAR` of it the
    first in `SCHEDULES`, or with a coarse codec one that encodes once; in a crowd the tree, where
    little time is lost by it. No codec: fp32. `payload`: further fields of `Payload`.

    ValueError if nothing is left, or a name is unknown.
    """
    unknown = set(allowed or ()) - set(SCHEDULES)
    if unknown:
        raise ValueError(f"no schedule {sorted(unknown)}: there are {', '.join(SCHEDULES)}")
    names = list(SCHEDULES) if allowed is None else [n for n in SCHEDULES if n in allowed]
    if codec is not None:
        names = [n for n in names if SCHEDULES[n].permits(rides_ring=codec.rides_ring)]
        payload["bytes_per_value"] = codec.bytes_per_value
        if codec.bytes_per_value < COARSE_BYTES:
            names.sort(key=lambda name: not SCHEDULES[name].encodes_once)
        payload["final_bytes_per_value"] = codec.final_bytes_per_value
    if not names:
        raise ValueError("no allowed schedule may carry this codec: it needs the butterfly")
    what = Payload(count=count, **payload)
    seconds = {name: estimate_s(name, network, what) for name in names}
    small = count * what.bytes_per_value <= SMALL_BYTES
    near_all = float(network.rtt.max()) <= NEAR_RTT_S
    if network.members > CROWD and small and near_all and "tree" in seconds:
        return Choice("tree", seconds)
    near = NEAR * min(seconds.values())
    return Choice(next(name for name in names if seconds[name] <= near), seconds)


def estimate_s(schedule: str, network: Network, payload: Payload) -> float:
    """Seconds that an all-reduce should take. KeyError for a schedule that is not there."""
    estimate = _ESTIMATES[schedule]
    return 0.0 if network.members == 1 else estimate(network, payload)


def _ring(network: Network, payload: Payload) -> float:
    members = network.members
    load = loads.ring(network, payload)
    hops = np.diagonal(np.roll(network.rtt, -1, axis=1)) / 2  # from each rank to the next
    segment = -(-payload.count // members)
    blocks = -(-payload.count // payload.alignment)
    if blocks < members:  # blocks are not cut: some walk, others have nothing to do
        segment = min(payload.count, payload.alignment)
    part = min(segment, payload.chunk_elements)
    chunk_s = _chunk_s(network, payload, part)
    hop_s = [float(delay) + payload.message_s * 2 + chunk_s for delay in hops]
    # Twice around, less the two hops that no segment needs (the cheapest, to be careful).
    walk_s = 2 * loads.total(hop_s) - 2 * min(hop_s)
    fill_s = max(hop_s) if members > 1 else 0.0
    busy_s = load.busiest_s(network)
    return _start_s(network, payload, 2) + max(busy_s + fill_s, walk_s)


def _tree(network: Network, payload: Payload) -> float:
    members, rtt = network.members, network.rtt
    halves = [-(-payload.count // 2), payload.count // 2]
    if payload.count <= payload.alignment:
        halves = [payload.count]
    longest_s = 0.0
    for number, half in enumerate(halves):
        chunk = min(half, payload.chunk_elements)
        nodes = [tree.node(members, rank, number) for rank in range(members)]
        climb_s = [0.0] * members
        for rank in sorted(range(members), key=lambda rank: -nodes[rank].depth):
            parent = nodes[rank].parent
            if parent is not None:
                sizes = (chunk * payload.bytes_per_value, chunk * payload.final_bytes)
                # Two children share the parent's link both ways.
                share = len(nodes[parent].children)
                rates = network.up_bytes_s, network.down_bytes_s
                slow = [min(rates[way][rank], rates[1 - way][parent] / share) for way in (0, 1)]
                hop_s = float(rtt[rank, parent]) + 4 * payload.message_s
                hop_s += sizes[0] / slow[0] + sizes[1] / min(slow)
                climb_s[parent] = max(climb_s[parent], climb_s[rank] + hop_s)
        longest_s = max(longest_s, *climb_s)
    load = loads.tree(network, payload)
    chunks = max(1, -(-halves[0] // payload.chunk_elements))
    rest = (chunks - 1) / chunks
    return _start_s(network, payload, 4) + longest_s + load.busiest_s(network) * rest


def _butterfly(network: Network, payload: Payload) -> float:
    load = loads.butterfly(network, payload)
    hops_s = float(network.rtt.max())
    neighbours = network.members - 1
    return _start_s(network, payload, neighbours) + hops_s + load.busiest_s(network)


def _hierarchical(network: Network, payload: Payload) -> float:
    load = loads.hierarchical(network, payload)
    rtt, sites = network.rtt, np.asarray(network.sites)
    same = sites[:, None] == sites[None, :]
    lan_s = float(np.where(same, rtt, 0).max())
    wan_s = float(np.where(same, 0, rtt).max())
    neighbours = int(load.messages_up.max())
    start_s = _start_s(network, payload, min(neighbours, network.members - 1))
    return start_s + lan_s + wan_s + load.busiest_s(network)


def _start_s(network: Network, payload: Payload, neighbours: int) -> float:
    return float(network.rtt.max()) / 2 + neighbours * payload.message_s


def _chunk_s(network: Network, payload: Payload, elements: int) -> float:
    each = max(payload.bytes_per_value, payload.final_bytes)
    return elements * each / min(network.both_ways_bytes_s)


def _pretty(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


_ESTIMATES: dict[str, Callable[[Network, Payload], float]] = {
    "ring": _ring,
    "tree": _tree,
    "butterfly": _butterfly,
    "hierarchical": _hierarchical,
}
