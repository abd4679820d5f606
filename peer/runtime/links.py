"""Links by peer: turns native events into admitted, unique links, and addresses into dials.

    dial(peer, addresses) ─┐                         ┌─▶ up(peer) … message(peer) … down(peer)
                           ├─▶ native link ─▶ Admission (both prove membership)
    somebody dials us ─────┘                         └─▶ refused: one sentence, both ends know

Two peers may dial each other at once. Of two links the one dialled by the lower peer id stays; both
ends see the same two ids, so both keep the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from decentral import _native, errors
from decentral.errors import ConnectError, DecentralError, SelfJoinError
from decentral.peer.admission import Admission, Admitted
from decentral.peer.joinword import split_address
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
    "config": errors.ConfigError,
}
#: A link that lost its twin waits this long for it before the peer counts as gone.
TWIN_GRACE_S = 1.0


@dataclass(slots=True)
class Link:
    """One admitted link."""

    id: int
    peer: PeerId
    name: str
    inbound: bool
    addresses: tuple[str, ...]
    """Where the other end says (and we saw) that it can be dialled."""


@dataclass(slots=True)
class _Dialling:
    """One attempt to reach a peer (None: whoever answers) under several addresses at once."""

    peer: PeerId | None
    left: set[int] = field(default_factory=set)
    failures: list[DecentralError] = field(default_factory=list)


class LinkUser(Protocol):
    """Who is told; all calls come from `LinkTable.pump`, on the loop's thread."""

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Admission: ...
    def link_up(self, link: Link, admitted: Admitted) -> None: ...
    def link_down(self, peer: PeerId, closed: bool, error: DecentralError) -> None: ...
    def dial_failed(self, peer: PeerId | None, failures: list[DecentralError]) -> None: ...
    def message(self, peer: PeerId, payload: bytes) -> None: ...
    def probe_acked(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None: ...
    def blob(self, key: int, error: str | None) -> None: ...


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
        if not dialling.left:
            self._later(0, lambda: self._user.dial_failed(peer, dialling.failures))

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
        for event in self._endpoint.take_events():
            match event.type:
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
                case "blob":
                    self._user.blob(event.seq, None)
                case "blob-failed":
                    error = event.error
                    self._user.blob(event.seq, error[3] if error else "it failed")

    def _handshake_done(self, event: _native.Event) -> None:
        peer = peer_id(event.peer)
        if event.dial:
            self._dial_of_link[event.link] = event.dial
        if peer == self._me:
            says = "that address leads back to this very peer"
            self._dial_ended(event.dial, SelfJoinError(says, phase="dial"))
            self._endpoint.close_link(event.link, says)
            return
        if not event.inbound and (peer in self._links or self._presenting_to(peer)):
            # Several addresses of one peer are dialled at once: the quickest has won already.
            dialling = self._dials.pop(event.dial, None)
            if dialling is not None:
                dialling.left.discard(event.dial)
            self._endpoint.close_link(event.link, "another address of this peer was quicker")
            return
        admission = self._user.admission(peer, event.inbound, event.exporter)
        self._admissions[event.link] = (admission, peer)
        self._advance(event, peer, admission, admission.start())

    def _message(self, event: _native.Event) -> None:
        pending = self._admissions.get(event.link)
        if pending is not None:
            admission, peer = pending
            self._advance(event, peer, admission, admission.receive(event.data))
        elif (known := self._peer_of.get(event.link)) is not None:
            self._user.message(known, event.data)

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
            error = verdict.error
            error.peer, error.phase = peer, error.phase or "admission"
            self._endpoint.refuse(event.link, error.says)
            self._dial_ended(self._dial_of_link.get(event.link, 0), error)
            return
        self._endpoint.admit(event.link)
        link = Link(event.link, peer, verdict.name, event.inbound, verdict.addresses)
        self._peer_of[event.link] = peer
        self._keep_one(link, verdict)
        self._dial_ended(self._dial_of_link.get(event.link, 0), None)

    def _keep_one(self, link: Link, admitted: Admitted) -> None:
        current = self._links.get(link.peer)
        if current is None:
            self._links[link.peer] = link
            self._user.link_up(link, admitted)
            return
        says = "two links to the same peer: the other one stays"
        if self._preferred(current) and not self._preferred(link):
            self._endpoint.close_link(link.id, says)
            return
        # Also if the same end dialled both: it has restarted, or lost the old link. What the old
        # one carried last may be lost, so the user sees one link go and another come.
        self._endpoint.close_link(current.id, says)
        del self._links[link.peer]
        self._user.link_down(link.peer, True, ConnectError(says, peer=link.peer, phase="link"))
        self._links[link.peer] = link
        self._user.link_up(link, admitted)

    def _preferred(self, link: Link) -> bool:
        return link.inbound == (link.peer < self._me)

    def _down(self, event: _native.Event) -> None:
        pending = self._admissions.pop(event.link, None)
        peer = self._peer_of.pop(event.link, None)
        error = _error(event)
        if pending is not None or peer is None:
            self._dial_ended(self._dial_of_link.pop(event.link, 0), error)
            return
        self._dial_of_link.pop(event.link, None)
        link = self._links.get(peer)
        if link is None or link.id != event.link:
            return  # the spare one of two
        error.says = self._said.pop(event.link, error.says)
        closed = event.error is not None and event.error[0] != "silent"
        if self._twin_coming(peer):
            self._later(TWIN_GRACE_S, lambda: self._gone(peer, event.link, closed, error))
            return
        self._gone(peer, event.link, closed, error)

    def _presenting_to(self, peer: PeerId) -> bool:
        return any(
            pending == peer and self._dial_of_link.get(link)
            for link, (_, pending) in self._admissions.items()
        )

    def _twin_coming(self, peer: PeerId) -> bool:
        return any(pending == peer for _, pending in self._admissions.values())

    def _gone(self, peer: PeerId, link_id: int, closed: bool, error: DecentralError) -> None:
        link = self._links.get(peer)
        if link is not None and link.id == link_id:
            del self._links[peer]
            self._user.link_down(peer, closed, error)

    def _dial_ended(self, number: int, error: DecentralError | None) -> None:
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
