"""Remember what pure functions of unchangeable arguments came to, by the arguments' identity.

Peers of one process (a simulation) apply the same entries to the same states; comparing those
field by field to find that out would take as long as doing it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from decentral.types import PeerId

P = ParamSpec("P")
R = TypeVar("R")
KEPT = 64


def shared(function: Callable[P, R]) -> Callable[P, R]:
    """The last results again where the very same objects come as arguments. Positional only."""
    known: dict[tuple[int, ...], tuple[tuple[Any, ...], R]] = {}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        key = tuple(map(id, args))
        found = known.get(key)
        if found is not None:
            return found[1]
        result = function(*args, **kwargs)
        # The arguments are kept, so that no other object can take their identity.
        known[key] = args, result
        if len(known) > KEPT:
            del known[next(iter(known))]
        return result

    return call


@shared
def as_set(peers: tuple[PeerId, ...]) -> frozenset[PeerId]:
    """For views: everybody asks who is in, most of them by the same tuple."""
    return frozenset(peers)
