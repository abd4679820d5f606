"""A better link beside the one in use stands by until both ends can move to it.

    lower id, once it is quiet                   the other end
      │ ── l/move, the last word on the old ────▶ │
      │                                           │ once it is quiet too
      │ ◀── l/moved, the last word on the old ─── │ sends on the new link from now on
      │ once it is quiet: closes the old link

Quiet: no collective is under way, and no bulk data. Nothing is lost or overtaken: what the new link
brings before the old one's last word waits for it. If the old link dies first, the user sees one
link go and another come, as at any reconnect. If either dies amid a move, both do: what it had not
brought yet must not be missing in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from decentral import _native
from decentral.peer import packing
from decentral.peer.admission import Admitted
from decentral.peer.runtime.link import Link
from decentral.types import PeerId

MOVE = packing.pack(["l/move"])
MOVED = packing.pack(["l/moved"])
LAST = 2
"""The priority of a last word: everything said before goes first."""
MAX_EARLY_BYTES = 8 << 20


@dataclass(slots=True)
class Standby:
    link: Link
    admitted: Admitted
    old: int
    """The number of the link in use."""
    early: list[bytes] = field(default_factory=list)
    early_bytes: int = 0
    asked: bool = False
    """The other end sends on it already, and waits for us to do so."""
    moving: bool = False
    """We send on it already."""


class Moves:
    """By peer, the link that stands by."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        me: PeerId,
        switch: Callable[[Link], None],
        deliver: Callable[[PeerId, bytes], None],
    ) -> None:
        """`switch(link)`: send on this one from now on."""
        self._endpoint, self._me, self._switch, self._deliver = endpoint, me, switch, deliver
        self._waiting: dict[PeerId, Standby] = {}
        self._retired: dict[PeerId, int] = {}
        """Old links that carry no messages any more, but perhaps bulk data."""
        self._closed: set[int] = set()
        """Links that we have closed; what they still bring is nobody's."""
        self._asked: set[int] = set()
        """Links whose last word came before there was one to move to."""
        self._spoilt: set[int] = set()
        """Links beside which one stood by, and died: the other end may move to that yet."""

    def get(self, peer: PeerId) -> Standby | None:
        return self._waiting.get(peer)

    def stand_by(self, link: Link, admitted: Admitted, old: Link) -> None:
        peer = link.peer
        if peer in self._waiting:  # the other end may be moving to that one by now
            self._close(link.id, "another link stands by already")
            return
        # Asked: the other end had this one earlier, and has moved.
        self._waiting[peer] = Standby(link, admitted, old.id, asked=old.id in self._asked)

    def pending(self, peer: PeerId) -> bool:
        """Whether something waits for a quiet moment."""
        return peer in self._waiting or peer in self._retired

    def old(self, peer: PeerId) -> int:
        """The link whose bulk data must rest first; 0: none."""
        one = self._waiting.get(peer)
        return self._retired.get(peer, 0) if one is None else one.old

    def quiet(self, peer: PeerId) -> None:
        """Nothing is under way with this peer: do what has waited for that."""
        one = self._waiting.get(peer)
        if one is None:
            if (old := self._retired.pop(peer, 0)) != 0:
                self._close(old, "a better link has taken its place")
        elif one.asked:
            self._endpoint.send(one.old, MOVED, LAST)
            self._switch(one.link)
            self._finish(peer)
        elif not one.moving and self._me < peer:
            self._endpoint.send(one.old, MOVE, LAST)
            one.moving = True
            self._switch(one.link)

    def takes(self, peer: PeerId, link: int, payload: bytes) -> bool:
        """Whether this message is about moving, or has to wait for a move."""
        one = self._waiting.get(peer)
        if link in self._closed:
            return True
        if one is not None and link == one.link.id:
            self._keep(one, payload)
            return True
        if payload == MOVE and link in self._spoilt:
            self._close(link, "the better link has gone")  # so both ends see that it did
            return True
        if one is None or link != one.old:
            if payload == MOVE:
                self._asked.add(link)
            return payload in (MOVE, MOVED)
        if payload == MOVE:
            one.asked = not one.moving
        elif payload == MOVED and one.moving:
            self._retired[peer] = one.old
            self._finish(peer)
        return payload in (MOVE, MOVED)

    def _keep(self, one: Standby, payload: bytes) -> None:
        one.early_bytes += len(payload)
        if one.early_bytes <= MAX_EARLY_BYTES:
            one.early.append(payload)
        else:
            one.early.clear()
            self._endpoint.close_link(one.link.id, "it says too much before its turn")

    def _finish(self, peer: PeerId) -> None:
        for payload in self._waiting.pop(peer).early:
            self._deliver(peer, payload)

    def _close(self, link: int, says: str) -> None:
        self._closed.add(link)
        self._endpoint.close_link(link, says)

    def lost(self, peer: PeerId, link: int) -> Standby | None:
        """A link went down. The standby, if it has to take over now."""
        for known in (self._closed, self._asked, self._spoilt):
            known.discard(link)
        if self._retired.get(peer) == link:
            del self._retired[peer]
        one = self._waiting.get(peer)
        if one is None or link not in (one.old, one.link.id):
            return None
        del self._waiting[peer]
        if one.moving:  # either may have had the only copy of something: both ends have to see it
            says = "the link that was to take its place, or to give it, has died"
            self._close(one.link.id if link == one.old else one.old, says)
            return None
        if link == one.old:
            return one
        self._spoilt.add(one.old)
        return None
