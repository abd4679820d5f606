"""Links by peer: turns native events into admitted, unique links, and addresses into dials.

    dial(peer, addresses) ─┐                         ┌─▶ up(peer) … message(peer) … down(peer)
                           ├─▶ native link ─▶ Admission (both prove membership)
    somebody dials us ─────┘                         └─▶ refused: one sentence, both ends know

Two peers may dial each other at once. Of two links of one rank the one dialled by the lower peer id
stays; both ends see the same two ids, so both keep the same one. A link of a better rank (direct
beside relayed) stands by until both ends move to it (`moves.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from decentral import _native, errors, failpoints
from decentral.errors import ConnectError, DecentralError, RefusedError, SelfJoinError
from decentral.peer.admission import Admission, Admitted
from decentral.peer.joinword import split_address
from decentral.peer.reach.ways import RANK, Way
from decentral.peer.runtime.link import Link
from decentral.peer.runtime.moves import Moves, Standby
from decentral.types import PeerId, peer_id, raw_id

#: How native error kinds are called in Python.
ERRORS: dict[str, type[DecentralError]] = {
    "unreachable": errors.UnreachableError,
    "not-decentral": errors.NotDecentralError,
    "version-mismatch": errors.VersionMismatchError,
    "identity": errors.IdentityError,
    "self": errors.SelfJoinError,
    "refused": errors.RefusedError,
    "protocol": errors.ProtocolError,
    "mismatch": errors.ProtocolError,
    "config": errors.ConfigError,
}
#: A link that lost its twin waits this long for it before the peer counts as gone.
TWIN_GRACE_S = 1.0
#: Dials that crossed come up together: after so long another link is one that somebody needs.
CROSSED_S = 6.0


@dataclass(slots=True)
class _Dialling:
    """One attempt to reach a peer (None: whoever answers) under several addresses at once."""

    peer: PeerId | None
    left: set[int] = field(default_factory=set)
    failures: list[DecentralError] = field(default_factory=list)


CAME_IN = Way(kind="direct", how="inbound", address="")
PUNCHED_IN = Way(kind="punched", how="inbound", address="")


class LinkUser(Protocol):
    """Who is told; all calls come from `LinkTable.pump`, on the loop's thread."""

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Admission: ...
    def link_up(self, link: Link, admitted: Admitted) -> None: ...
    def link_down(self, peer: PeerId, closed: bool, error: DecentralError) -> None: ...
    def dial_failed(self, peer: PeerId | None, failures: list[DecentralError]) -> None: ...
    def message(self, peer: PeerId, payload: bytes) -> None: ...
    def probe_acked(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None: ...
    def blob(self, key: int, error: DecentralError | None) -> None: ...
    def blob_sent(self, key: int) -> None: ...


class WayUser(Protocol):
    """Who has ways tried, and is told what becomes of them."""

    def way_failed(self, attempt: int, error: DecentralError) -> None: ...
    def relay_ended(self, token: bytes) -> None: ...
    def better_link(self, link: Link) -> None: ...
    def link_moved(self, link: Link) -> None: ...


class LinkTable:
    """Owns every native link of this peer. Lives on the loop's thread."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        me: PeerId,
        user: LinkUser,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """`later(delay_s, function)` runs a function later on the loop."""
        self._endpoint, self._me, self._user, self._later = endpoint, me, user, later
        self._links: dict[PeerId, Link] = {}
        self._admissions: dict[int, tuple[Admission, PeerId]] = {}
        self._dial_of_link: dict[int, int] = {}
        self._dials: dict[int, _Dialling] = {}
        self._peer_of: dict[int, PeerId] = {}
        self._said: dict[int, str] = {}
        self._ways: dict[int, Way] = {}
        """By dial: what was dialled."""
        self._attempts: dict[int, int] = {}
        """By dial: its user's number for it, until that has been told how it ended."""
        self._asked: dict[int, Callable[[_native.Event], None]] = {}
        self._coming: dict[int, tuple[Way, str, bool]] = {}
        """By link that is being admitted: its way, and the address at its other end."""
        self.listening_port = 0
        self.ways: WayUser | None = None
        self.silent: Callable[[Link], bool] = lambda link: False
        """Whether nothing has been heard on a link that should say something each second: what is
        new is better than that."""
        self._ending: set[int] = set()
        """Links that are down, and whose twin is on its way in."""
        self.moves = Moves(endpoint, me, self._switch, user.message)

    # ------------------------------------------------------------------------------ outward

    def get(self, peer: PeerId) -> Link | None:
        return self._links.get(peer)

    def all(self) -> list[Link]:
        return list(self._links.values())

    def dial(self, peer: PeerId | None, addresses: Iterable[str], timeout_s: float = 5.0) -> None:
        """Try all addresses at once; the first admitted link wins. Idempotent per peer."""
        if peer == self._me or (peer and peer in self._links):
            return
        if peer and any(dialling.peer == peer for dialling in self._dials.values()):
            return
        if peer and self._twin_coming(peer):
            return  # it has dialled us, and shows its papers
        dialling = _Dialling(peer)
        for address in dict.fromkeys(addresses):
            try:
                host, port = split_address(address)
                number = self._endpoint.dial(
                    host,
                    port,
                    expected=raw_id(peer) if peer else None,
                    timeout_ms=int(timeout_s * 1000),
                )
            except DecentralError as error:
                dialling.failures.append(error)
                continue
            dialling.left.add(number)
            self._dials[number] = dialling
            self._ways[number] = Way(kind="direct", how="dialled", address=address)
        if not dialling.left:
            self._later(0, lambda: self._user.dial_failed(peer, dialling.failures))

    def dialling_entries(self) -> bool:
        """Whether an attempt to reach whoever answers is under way."""
        return any(dialling.peer is None for dialling in self._dials.values())

    def try_way(self, peer: PeerId, way: Way, attempt: int) -> None:
        """Try one way to a peer, linked or not; `way_failed(attempt)` or a link follows."""
        options: dict[str, Any] = {"carrier": True} if way.carrier else {}
        if way.sockets > 1 or way.spray:
            options |= {"sockets": way.sockets, "spray": way.spray}
        if way.relay_token:
            options |= {"relay_token": way.relay_token, "relay_side": way.relay_side}
        try:
            if way.how == "dialled back" and self._twin_coming(peer):
                raise ConnectError("it has come by itself", peer=peer, phase="dial")
            host, port = split_address(way.address)
            number = self._endpoint.dial(
                host,
                port,
                expected=raw_id(peer),
                timeout_ms=int(way.timeout_s * 1000),
                role=way.role,
                local_port=self.listening_port if way.from_listening_port else 0,
                **options,
            )
        except DecentralError as error:
            if self.ways is not None:
                self._later(0, partial(self.ways.way_failed, attempt, error))
            return
        self._ways[number], self._attempts[number] = way, attempt

    def asked(self, number: int, then: Callable[[_native.Event], None]) -> None:
        """The endpoint was asked for a probe or a knock under this number: who gets its answer."""
        self._asked[number] = then

    def send(self, peer: PeerId, payload: bytes, priority: int = 1) -> bool:
        link = self._links.get(peer)
        if link is None:
            return False
        self._endpoint.send(link.id, payload, priority)
        return True

    def close(self, peer: PeerId, says: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            self._said[link.id] = says
            self._endpoint.close_link(link.id, says)

    def refuse(self, peer: PeerId, says: str) -> None:
        """Close with a sentence that the other end gets to see."""
        link = self._links.get(peer)
        if link is not None:
            self._said[link.id] = says
            self._endpoint.refuse(link.id, says)

    # ------------------------------------------------------------------------------- inward

    def pump(self) -> None:
        """Handle what happened on the network since the last call."""
        events = self._endpoint.take_events()
        # Whoever comes in has little time: not to be spent behind what others have to say.
        events.sort(key=lambda one: one.type != "link-up" and one.link not in self._admissions)
        for event in events:
            match event.type:
                case "reflexive" | "knocked" | "dial-failed" if event.dial in self._asked:
                    self._asked.pop(event.dial)(event)
                case "message":
                    self._message(event)
                case "probe-ack":
                    peer = self._peer_of.get(event.link)
                    if peer is not None:
                        self._user.probe_acked(peer, event.seq, event.incarnation, event.progress)
                case "link-up":
                    self._handshake_done(event)
                case "link-down":
                    self._down(event)
                case "dial-failed":
                    self._dial_ended(event.dial, _error(event))
                case "relay-ended" if self.ways is not None:
                    self.ways.relay_ended(event.exporter)
                case "blob-sent":
                    self._user.blob_sent(event.seq)
                case "blob":
                    self._user.blob(event.seq, None)
                case "blob-failed":
                    self._user.blob(event.seq, _error(event))

    def _handshake_done(self, event: _native.Event) -> None:
        peer = peer_id(event.peer)
        if event.dial:
            self._dial_of_link[event.link] = event.dial
        if peer == self._me:
            says = "that address leads back to this very peer"
            self._dial_ended(event.dial, SelfJoinError(says, phase="dial"))
            self._endpoint.close_link(event.link, says)
            return
        if not event.inbound and self._needless(peer, self._way(event)):
            # Several addresses of one peer are dialled at once: the quickest has won already.
            dialling = self._dials.pop(event.dial, None)
            if dialling is not None:
                dialling.left.discard(event.dial)
            says = "another address of this peer was quicker"
            self._way_ended(event.dial, ConnectError(says, peer=peer, phase="dial"))
            self._endpoint.close_link(event.link, says)
            return
        try:
            failpoints.passing("admission")
        except RefusedError as error:
            self._refused(event, peer, error)
            return
        way = self._way(event)
        # The TLS client knows the other end half a round trip earlier. Where both have dialled a
        # relay, and a round trip is two, it is the one that proves itself first.
        responds = event.inbound != (way.kind == "relayed")
        admission = self._user.admission(peer, responds, event.exporter)
        self._admissions[event.link] = (admission, peer)
        self._coming[event.link] = (way, event.address, event.inbound)
        self._advance(event, peer, admission, admission.start())

    def _message(self, event: _native.Event) -> None:
        pending = self._admissions.get(event.link)
        if pending is not None:
            admission, peer = pending
            self._advance(event, peer, admission, admission.receive(event.data))
            return
        known = self._peer_of.get(event.link)
        if known is not None and not self.moves.takes(known, event.link, event.data):
            self._user.message(known, event.data)

    def _way(self, event: _native.Event) -> Way:
        """How a link that has just come up came about."""
        if event.dial in self._ways:
            return self._ways[event.dial]
        return PUNCHED_IN if event.carrier else CAME_IN

    def _needless(self, peer: PeerId, way: Way) -> bool:
        """Whether there is a link as good already, or soon."""
        current, waiting = self._links.get(peer), self.moves.get(peer)
        if current is not None and (current.id in self._ending or self.silent(current)):
            current = None
        known = [one.rank for one in (current, waiting and waiting.link) if one]
        known += [RANK[one.kind] for one in self._presenting_to(peer)]
        return any(rank <= RANK[way.kind] for rank in known)

    def _advance(
        self, event: _native.Event, peer: PeerId, admission: Admission, replies: list[bytes]
    ) -> None:
        for reply in replies:
            self._endpoint.send(event.link, reply, 0)
        verdict = admission.verdict
        if verdict is None:
            return
        del self._admissions[event.link]
        if not isinstance(verdict, Admitted):
            self._refused(event, peer, verdict.error)
            return
        self._endpoint.admit(event.link)
        way, remote, inbound = self._coming.pop(event.link)
        link = Link(event.link, peer, verdict.name, inbound, verdict.addresses, way, remote)
        self._peer_of[event.link] = peer
        dial = self._dial_of_link.get(event.link, 0)
        self._keep_one(link, verdict)
        self._dial_ended(dial, None)
        self._ways.pop(dial, None)
        self._attempts.pop(dial, None)

    def _refused(self, event: _native.Event, peer: PeerId, error: DecentralError) -> None:
        error.peer, error.phase = peer, error.phase or "admission"
        self._endpoint.refuse(event.link, error.says)
        self._dial_ended(self._dial_of_link.get(event.link, 0), error)

    def _keep_one(self, link: Link, admitted: Admitted) -> None:
        current = self._links.get(link.peer)
        if current is None:
            self._links[link.peer] = link
            self._user.link_up(link, admitted)
            return
        says = "two links to the same peer: the other one stays"
        if current.id in self._ending or self.silent(current):
            self._replace(current, link, admitted, "another link came while this one was silent")
            return
        if link.rank < current.rank:
            self.moves.stand_by(link, admitted, current)
            if self.ways is not None:
                self.ways.better_link(link)
            return
        crossed = link.since < current.since + CROSSED_S
        unlike = self._preferred(current) and not self._preferred(link)
        if link.rank > current.rank or (crossed and unlike):
            self._endpoint.close_link(link.id, says)
            self._peer_of.pop(link.id, None)
            return
        # It has restarted, or lost the old link; or this is another process with its identity:
        # which of the two stays is for the members to say, and they must get to hear it.
        self._replace(current, link, admitted, says)

    def _replace(self, current: Link, link: Link, admitted: Admitted, says: str) -> None:
        """What the old one carried last may be lost, so the user sees one link go and another
        come."""
        self._endpoint.close_link(current.id, says)
        self._peer_of.pop(current.id, None)  # what it still brings is nobody's
        standby = self.moves.lost(link.peer, current.id)
        if standby is not None:  # it stood by for a link that is gone; it is looked for again
            self._endpoint.close_link(standby.link.id, says)
            self._peer_of.pop(standby.link.id, None)
        del self._links[link.peer]
        self._user.link_down(link.peer, True, ConnectError(says, peer=link.peer, phase="link"))
        self._links[link.peer] = link
        self._user.link_up(link, admitted)

    def _switch(self, link: Link) -> None:
        self._links[link.peer] = link
        if self.ways is not None:
            self.ways.link_moved(link)

    def _preferred(self, link: Link) -> bool:
        return link.inbound == (link.peer < self._me)

    def _down(self, event: _native.Event) -> None:
        pending = self._admissions.pop(event.link, None)
        self._coming.pop(event.link, None)
        peer = self._peer_of.pop(event.link, None)
        error = _error(event)
        if pending is not None or peer is None:
            self._dial_ended(self._dial_of_link.pop(event.link, 0), error)
            return
        self._dial_of_link.pop(event.link, None)
        standby = self.moves.lost(peer, event.link)
        if standby is not None:
            self._take_over(peer, standby, error)
            return
        link = self._links.get(peer)
        if link is None or link.id != event.link:
            return  # the spare one of two
        error.says = self._said.pop(event.link, error.says)
        closed = event.error is not None and event.error[0] != "silent"
        if self._twin_coming(peer):
            self._ending.add(event.link)
            self._later(TWIN_GRACE_S, lambda: self._gone(peer, event.link, closed, error))
            return
        self._gone(peer, event.link, closed, error)

    def _take_over(self, peer: PeerId, standby: Standby, error: DecentralError) -> None:
        """The link in use died while a better one stood by."""
        del self._links[peer]
        self._user.link_down(peer, True, error)
        self._links[peer] = standby.link
        self._user.link_up(standby.link, standby.admitted)
        for payload in standby.early:
            self._user.message(peer, payload)

    def _presenting_to(self, peer: PeerId) -> list[Way]:
        return [
            self._coming[link][0]
            for link, (_, pending) in self._admissions.items()
            if pending == peer and self._dial_of_link.get(link)
        ]

    def _twin_coming(self, peer: PeerId) -> bool:
        return any(pending == peer for _, pending in self._admissions.values())

    def _gone(self, peer: PeerId, link_id: int, closed: bool, error: DecentralError) -> None:
        self._ending.discard(link_id)
        link = self._links.get(peer)
        if link is not None and link.id == link_id:
            del self._links[peer]
            self._user.link_down(peer, closed, error)

    def _way_ended(self, number: int, error: DecentralError) -> None:
        """A dial came to nothing: its user hears of it once."""
        self._ways.pop(number, None)
        attempt = self._attempts.pop(number, None)
        if attempt is not None and self.ways is not None:
            self.ways.way_failed(attempt, error)

    def _dial_ended(self, number: int, error: DecentralError | None) -> None:
        if error is not None:
            self._way_ended(number, error)
        dialling = self._dials.pop(number, None)
        if dialling is None:
            return
        dialling.left.discard(number)
        if error is None:  # this one won; the others, if they come up too, are spare
            for other in dialling.left:
                self._dials.pop(other, None)
            dialling.left.clear()
            return
        dialling.failures.append(error)
        if not dialling.left:
            self._user.dial_failed(dialling.peer, dialling.failures)


def _error(event: _native.Event) -> DecentralError:
    if event.error is None:
        return ConnectError("the link went down", phase="link")
    kind, phase, peer, text = event.error
    named = peer_id(peer) if any(peer) else None
    return ERRORS.get(kind, errors.ConnectError)(text, peer=named, phase=phase)
