"""Until a peer is in: whom it dials to get there, and when it gives up.

join words ──▶ all their addresses at once, again while only other newcomers have answered
address book ─▶ the members of the last view, again until the run is whole; alone: others too
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from decentral.errors import DecentralError, RefusedError
from decentral.peer.dialing import LOOK_AT
from decentral.peer.orders import MeshFailed
from decentral.peer.runtime.addresses import most_telling

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

#: How often addresses that did not answer are tried again while a run waits for its members.
REDIAL_S = 2.0
#: How often the entries of a run are tried while only other newcomers have answered.
KNOCK_S = 3.0


class WayIn:
    """Lives on the loop's thread."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._joining = False

    def join(self) -> None:
        """By the join words; fails for good if nobody admits us in time."""
        self._joining = True
        self._node.loop.call_later(self._node.config.join_timeout_s, self._timed_out)
        self._dial_entries()
        self._node.loop.call_later(KNOCK_S, self._knock)

    def is_in(self) -> None:
        self._joining = False

    def _dial_entries(self) -> None:
        self._node.links.dial(None, self._node.card.entry_addresses())

    def _knock(self) -> None:
        """Until some member is known: whoever answers first may be a newcomer too."""
        node = self._node
        if node.closed or node.joined:
            return
        if node.core is not None and node.core.lost and not node.links.dialling_entries():
            self._dial_entries()
        node.loop.call_later(KNOCK_S, self._knock)

    def redial(self) -> None:
        """Members of the last run that are not linked are tried until the run is whole again."""
        node = self._node
        if not node.closed and not node.joined:
            self._dial_book()
            node.loop.call_later(REDIAL_S, self.redial)

    def _dial_book(self) -> None:
        """The book knows everybody whom this peer ever met: too many to be dialled at once."""
        node = self._node
        book = node.card.address_book()
        away = [p for p in book if node.links.get(p) is None and not node.card.is_revoked(p)]
        state = node.core.replica.state if node.core is not None else None
        members = set(state.view.members) if state is not None else set()
        # Whoever is linked to somebody hears of the others from there.
        others = [peer for peer in away if peer not in members] if not node.links.all() else []
        some = random.sample(others, min(LOOK_AT, len(others)))
        for peer in (*members.intersection(away), *some):
            node.reaching.want(peer, book[peer])

    def link_down(self, error: DecentralError) -> None:
        if not self._joining or self._node.links.all():
            return
        if isinstance(error, RefusedError):
            self._node.tell(MeshFailed(error))
        else:  # our way in died: another address, or another member, may know more
            self._dial_entries()
            self._dial_book()

    def entries_failed(self, failures: list[DecentralError]) -> None:
        """Without a core we know nobody else. A member that comes back waits for the others: they
        may be on their way, too."""
        if self._alone():
            self._joining = False
            self._node.tell(MeshFailed(most_telling(failures)))

    def _timed_out(self) -> None:
        if self._alone():
            self._joining = False
            says = f"nobody admitted us within {self._node.config.join_timeout_s:.0f} s"
            self._node.tell(MeshFailed(RefusedError(says, phase="join")))

    def _alone(self) -> bool:
        return self._joining and not self._node.links.all() and self._node.core is None
