"""What gossip says about a peer, as a field of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from decentral.peer.fields import (
    MAX_MEMBERS,
    MAX_U32,
    Kind,
    bad,
    items,
    row,
    take_peer,
)
from decentral.types import PeerId

MAX_NAME, MAX_ADDRESS = 128, 300
MAX_ACCUSERS = 8


@dataclass(frozen=True, slots=True)
class Update:
    """What gossip says about one peer. A higher (boot, incarnation, state) wins."""

    peer: PeerId
    boot_seq: int
    incarnation: int
    state: int
    """0 alive, 1 suspect, 2 dead, 3 left."""
    name: str
    address: str
    by: tuple[PeerId, ...] = ()
    """Who saw for itself that it does not answer; of a suspect only."""


def _put_updates(updates: tuple[Update, ...]) -> list[list[Any]]:
    return [
        [u.peer, u.boot_seq, u.incarnation, u.state, u.name, u.address, list(u.by)] for u in updates
    ]


def _take_updates(raw: Any) -> tuple[Update, ...]:
    # Checked in place: most of what a large mesh says is rows like these.
    found = []
    for one in items(raw, MAX_MEMBERS):
        peer, boot_seq, incarnation, state, name, address, by = row(one, 7)
        if not (
            type(boot_seq) is type(incarnation) is type(state) is int
            and 0 <= boot_seq <= MAX_U32
            and 0 <= incarnation <= MAX_U32
            and 0 <= state <= 3
        ):
            bad("gossip with a number that is out of range")
        if not (
            type(name) is type(address) is str
            and len(name) <= MAX_NAME
            and len(address) <= MAX_ADDRESS
        ):
            bad("gossip with a name or an address that is no short text")
        accusers = tuple(take_peer(one) for one in items(by, MAX_ACCUSERS)) if by != [] else ()
        found.append(Update(take_peer(peer), boot_seq, incarnation, state, name, address, accusers))
    return tuple(found)


Updates = Annotated[tuple[Update, ...], Kind(_take_updates, _put_updates)]
