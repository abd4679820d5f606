"""What SWIM keeps per peer, and per probe that is under way."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from decentral.peer.fields import MANY_STARTS, MAX_MEMBERS, no_leap
from decentral.peer.news import MAX_ACCUSERS, Update
from decentral.types import PeerId

ALIVE, SUSPECT, DEAD, LEFT = range(4)
STATES = ("alive", "suspect", "dead", "left")


@dataclass(slots=True)
class Member:
    """What we believe about one peer."""

    name: str = ""
    address: str = ""
    state: int = ALIVE
    boot_seq: int = 0
    incarnation: int = 0
    suspect_since: float = 0.0
    deadline: float = float("inf")
    witnesses: frozenset[PeerId] = frozenset()
    """Of a suspect: who has seen for itself that it does not answer."""
    via: PeerId = ""
    """Who has reached it for us last: the first to be asked again."""
    by_closing: bool = False
    refused: bool = False
    progress: int = -1
    progress_at: float = 0.0

    def update(self, peer: PeerId) -> Update:
        """What gossip says about it."""
        by = tuple(sorted(self.witnesses)[:MAX_ACCUSERS]) if self.state == SUSPECT else ()
        return Update(
            peer, self.boot_seq, self.incarnation, self.state, self.name, self.address, by
        )

    def suspected(self) -> int:
        """The incarnation that a probe is to refute; 0: none."""
        return max(1, self.incarnation) if self.state in (SUSPECT, DEAD) else 0

    def check(self, boot_seq: int, incarnation: int) -> None:
        """Refuse what is said of it if that leaps ahead of all that is known."""
        no_leap(boot_seq, self.boot_seq, "start", MANY_STARTS)
        no_leap(incarnation, self.incarnation, "incarnation")

    def key(self) -> tuple[int, int, int]:
        return self.boot_seq, self.incarnation, self.state


NOBODY = Member()
"""What is known of a peer that nothing is known of."""


def dialable(
    mine: tuple[PeerId, str, str], members: Mapping[PeerId, Member], wanted: Set[PeerId]
) -> tuple[tuple[PeerId, str, str], ...]:
    """(peer, name, address) of ourselves and of whoever has an address, those we want first: no
    more than a record may hold."""
    rows = [(peer, one.name, one.address) for peer, one in members.items()]
    rows.sort(key=lambda row: row[0] not in wanted)
    return tuple(row for row in (mine, *rows) if row[2])[:MAX_MEMBERS]


@dataclass(slots=True)
class Asked:
    """A probe under way: for ourselves, or for another peer (`on_behalf`)."""

    target: PeerId
    deadline: float
    indirect: bool = False
    heard_helper: bool = False
    helpers: set[PeerId] = field(default_factory=set)
    """Who has been asked to probe it for us."""
    on_behalf: tuple[PeerId, int] | None = None
