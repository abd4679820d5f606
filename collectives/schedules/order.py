"""One total order over all transfers; a rank's plan is that order, restricted to its own.

Every transfer (a send and its receive) has a key that both its ends compute alike. Where keys
respect what depends on what (a sum leaves after its parts came in), doing the transfers one after
the other by key is an execution, so no set of such plans can hang, and both ends of every lane
agree on its order. That is all the proof that tree, butterfly and hierarchical need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from decentral.collectives.plan import Step

Key: TypeAlias = tuple[int, ...]


def ordered(steps: Iterable[tuple[Key, Step]]) -> tuple[Step, ...]:
    return tuple(step for _, step in sorted(steps, key=lambda keyed: keyed[0]))


def check(members: int, rank: int, count: int) -> None:
    """ValueError for arguments that have no plan."""
    if not 0 <= rank < members or count < 0:
        raise ValueError(f"no plan for rank {rank} of {members} members and {count} elements")
