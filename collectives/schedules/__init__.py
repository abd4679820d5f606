"""Schedules: who sends what to whom. Pure planners that every member runs for itself.

`SCHEDULES` has the all-reduces by name. The one-way operations (reduce-scatter, all-gather,
broadcast) have a module each; they take their segments from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Plan
from decentral.collectives.schedules import butterfly, hierarchical, ring, tree


class Planner(Protocol):
    """A pure function: the same plan for the same arguments, on every machine."""

    def __call__(self, network: Network, rank: int, count: int, alignment: int = ALIGNMENT) -> Plan:
        """What `rank` does in an all-reduce of `count` elements, cut in whole blocks of
        `alignment` elements. ValueError for a rank or a count that cannot be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """An all-reduce by name."""

    name: str
    says: str
    """What it is good for, for people."""
    plan: Planner
    encodes_once: bool
    """No partial sum is ever encoded, only contributions and finals. Coarse codecs (sign,
    ternary) need that."""

    def permits(self, *, rides_ring: bool) -> bool:
        """Whether it may carry a codec; `rides_ring` is the codec's: partial sums survive it."""
        return rides_ring or self.encodes_once


def _by_name(schedules: Iterable[Schedule]) -> dict[str, Schedule]:
    return {schedule.name: schedule for schedule in schedules}


# In the order of preference where several should take as long: fewer lanes, fewer surprises.
SCHEDULES: dict[str, Schedule] = _by_name(
    [
        Schedule(
            name="ring",
            says="among equals, with few links: everybody talks to two neighbours",
            plan=ring.plan,
            encodes_once=False,
        ),
        Schedule(
            name="butterfly",
            says="for unequal links, and for small buffers: two hops, slow peers own little",
            plan=butterfly.plan,
            encodes_once=True,
        ),
        Schedule(
            name="tree",
            says="for small buffers and very many peers: few messages, 2 log n hops",
            plan=tree.plan,
            encodes_once=False,
        ),
        Schedule(
            name="hierarchical",
            says="for several members behind each uplink: sites cross the WAN as one peer",
            plan=hierarchical.plan,
            encodes_once=False,
        ),
    ]
)
