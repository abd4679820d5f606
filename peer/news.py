"""What gossip says about a peer, as a field of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from decentral.peer.fields import (
    MAX_MEMBERS,
    Kind,
    bad,
    items,
    row,
    take_integer,
    take_peer,
    text_of,
)
from decentral.types import PeerId


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


_name, _address = text_of(128), text_of(300)


def _put_updates(updates: tuple[Update, ...]) -> list[list[Any]]:
    return [[u.peer, u.boot_seq, u.incarnation, u.state, u.name, u.address] for u in updates]


def _take_updates(raw: Any) -> tuple[Update, ...]:
    found = []
    for one in items(raw, MAX_MEMBERS):
        peer, boot_seq, incarnation, state, name, address = row(one, 6)
        if take_integer(state) > 3:
            bad("gossip of an unknown state")
        take_integer(boot_seq)
        take_integer(incarnation)
        found.append(
            Update(take_peer(peer), boot_seq, incarnation, state, _name(name), _address(address))
        )
    return tuple(found)


Updates = Annotated[tuple[Update, ...], Kind(_take_updates, _put_updates)]
