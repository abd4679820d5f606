"""What each link carries in each schedule: exact counts of elements, by rank and by site.

Closed forms in integers, so that 4,096 members cost milliseconds and all machines count alike. The
tests compare them with what the plans really send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decentral.collectives.network import MESSAGE_S, Network
from decentral.collectives.plan import ALIGNMENT
from decentral.collectives.schedules import butterfly as butterfly_plan
from decentral.collectives.schedules import hierarchical as hierarchical_plan
from decentral.collectives.schedules import tree as tree_plan
from decentral.collectives.schedules.segments import cut, even_segments

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What is reduced, and what it weighs on the wire."""

    count: int
    """Elements."""
    bytes_per_value: float = 4.0
    """Encoded size of an element in contributions and partial sums."""
    final_bytes_per_value: float | None = None
    """… in final values; None: the same."""
    alignment: int = ALIGNMENT
    """Segments are whole blocks of this many elements."""
    chunk_elements: int = 1 << 17
    """What a frame carries at most."""
    message_s: float = MESSAGE_S
    """What each message costs at each end."""

    @property
    def final_bytes(self) -> float:
        final = self.final_bytes_per_value
        return self.bytes_per_value if final is None else final

    def chunks(self, elements: Counts) -> Counts:
        """Frames per segment."""
        return -(-elements // self.chunk_elements)


@dataclass(frozen=True, slots=True)
class Flow:
    """What passes some links one way: arrays of equal length, one entry per link."""

    partial: Counts
    """Elements of contributions and partial sums."""
    final: Counts
    """Elements of final values."""

    def bytes(self, payload: Payload) -> NDArray[np.float64]:
        return self.partial * payload.bytes_per_value + self.final * payload.final_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a schedule makes members, by rank, and sites, by number, send and receive."""

    up: Flow
    down: Flow
    messages_up: Counts
    messages_down: Counts
    site_up: Flow
    """To other sites."""
    site_down: Flow
    payload: Payload = field(repr=False)

    def busiest_s(self, network: Network) -> float:
        """How long the busiest link needs."""
        longest = 0.0
        for flow, rates, messages in (
            (self.up, network.up_bytes_s, self.messages_up),
            (self.down, network.down_bytes_s, self.messages_down),
            (self.site_up, network.site_up_bytes_s, 0),
            (self.site_down, network.site_down_bytes_s, 0),
        ):
            if rates is not None:
                busy = flow.bytes(self.payload) / np.asarray(rates, np.float64)
                longest = max(longest, float((busy + messages * self.payload.message_s).max()))
        return longest


def ring(network: Network, payload: Payload) -> Load:
    """Everybody sends all parts but one twice, to the next rank."""
    parts = even_segments(network.members, payload.count, payload.alignment)
    own = np.array([part.count for part in parts], np.int64)
    chunks = payload.chunks(own)
    after = np.roll(own, -1)
    up = Flow(payload.count - own, payload.count - after)
    messages = 2 * chunks.sum() - chunks - np.roll(chunks, -1)
    ranks = np.arange(network.members)
    return _of_edges(network, payload, ranks, np.roll(ranks, -1), up, messages)


def tree(network: Network, payload: Payload) -> Load:
    """Each half goes up its tree and down again."""
    members = network.members
    cuts = cut(payload.count, [1.0, 1.0], payload.alignment)
    below, above, halves = [], [], []
    for number in (0, 1):
        for rank in range(members):
            parent = tree_plan.node(members, rank, number).parent
            if parent is not None:
                below.append(rank)
                above.append(parent)
                halves.append(cuts[number + 1] - cuts[number])
    half, none = np.array(halves, np.int64), np.zeros(len(halves), np.int64)
    senders, receivers = np.array(below + above), np.array(above + below)
    flow = Flow(np.concatenate([half, none]), np.concatenate([none, half]))
    return _of_edges(network, payload, senders, receivers, flow, payload.chunks(_both(half)))


def butterfly(network: Network, payload: Payload) -> Load:
    """Contributions to n - 1 owners, finals to n - 1 others."""
    members, count = network.members, payload.count
    own = _parts(butterfly_plan.offsets(network, count, payload.alignment))
    chunks = payload.chunks(own)
    others = members - 1
    up, down = Flow(count - own, others * own), Flow(others * own, count - own)
    messages = chunks.sum() - chunks + others * chunks
    sizes, owned = _by_site(network, np.ones(members, np.int64)), _by_site(network, own)
    given, taken = sizes * (count - owned), owned * (members - sizes)
    return Load(
        up=up,
        down=down,
        messages_up=messages,
        messages_down=messages,
        site_up=Flow(given, taken),
        site_down=Flow(taken, given),
        payload=payload,
    )


def hierarchical(network: Network, payload: Payload) -> Load:
    """Inside a site to its delegates, between sites a butterfly of delegates."""
    where = hierarchical_plan.layout(network, payload.count, payload.alignment)
    members, sites = network.members, len(where.groups)
    owners = np.array(where.owners)
    parts = _parts(where.offsets)
    chunks = payload.chunks(parts)
    owner_site = np.concatenate([np.full(len(g), i) for i, g in enumerate(where.groups)])
    place = np.concatenate([np.arange(len(g)) for g in where.groups])
    spoken, spoken_chunks, size = (np.zeros(members, np.int64) for _ in range(3))
    for site, group in enumerate(where.groups):
        turn = np.where(owner_site == site, place, place + owner_site) % len(group)
        delegates = np.array(group)[turn]
        np.add.at(spoken, delegates, parts)
        np.add.at(spoken_chunks, delegates, chunks)
        size[group] = len(group)
    own, own_chunks = np.zeros(members, np.int64), np.zeros(members, np.int64)
    own[owners], own_chunks[owners] = parts, chunks
    # To the own delegates; to the owners' sites. And back: round the own site; to other sites.
    given, passed = payload.count - spoken, spoken - own
    spread, returned = (size - 1) * spoken, (sites - 1) * own
    messages = chunks.sum() - own_chunks + (size - 1) * spoken_chunks + (sites - 1) * own_chunks
    return Load(
        up=Flow(given + passed, spread + returned),
        down=Flow(spread + returned, given + passed),
        messages_up=messages,
        messages_down=messages,
        site_up=Flow(_by_site(network, passed), _by_site(network, returned)),
        site_down=Flow(_by_site(network, returned), _by_site(network, passed)),
        payload=payload,
    )


def total(values: Iterable[float]) -> float:
    """The exact sum, rounded once: the same whatever the order and the machine."""
    return math.fsum(values)


def _of_edges(
    network: Network,
    payload: Payload,
    senders: Counts,
    receivers: Counts,
    flow: Flow,
    messages: Counts,
) -> Load:
    """Adds up by rank and site what single edges carry."""
    sites = np.array(network.sites)
    crosses = sites[senders] != sites[receivers]

    def by(ends: Counts, size: int, of: NDArray[np.bool_] | None = None) -> Flow:
        sums = []
        for amounts in (flow.partial, flow.final):
            result = np.zeros(size, np.int64)
            np.add.at(result, ends, amounts if of is None else np.where(of, amounts, 0))
            sums.append(result)
        return Flow(*sums)

    def count(ends: Counts) -> Counts:
        result = np.zeros(network.members, np.int64)
        np.add.at(result, ends, messages)
        return result

    last = max(network.sites) + 1
    return Load(
        up=by(senders, network.members),
        down=by(receivers, network.members),
        messages_up=count(senders),
        messages_down=count(receivers),
        site_up=by(sites[senders], last, crosses),
        site_down=by(sites[receivers], last, crosses),
        payload=payload,
    )


def _parts(offsets: list[int]) -> Counts:
    ends = np.array(offsets, np.int64)
    return ends[1:] - ends[:-1]


def _by_site(network: Network, amounts: Counts) -> Counts:
    result = np.zeros(max(network.sites) + 1, np.int64)
    np.add.at(result, np.array(network.sites), amounts)
    return result


def _both(array: Counts) -> Counts:
    return np.concatenate([array, array])
