"""Revocations on the wire and on the disk: told on every link, kept in the home, acted upon.

    link up ──▶ rv/have (digest) ──▶ the other end's differs? ──▶ rv/tell (all it knows)
    news    ──▶ kept (fsync) ──▶ rv/tell to all other links ──▶ links close, views change

Every peer passes each statement on once; who was away hears of it on its first link.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decentral.errors import (
    ConfigError,
    CredentialError,
    DecentralError,
    DiskError,
    ProtocolError,
    RefusedError,
)
from decentral.peer import protocol, revocation
from decentral.peer.revocation import Statement
from decentral.peer.roles import forbidden
from decentral.peer.transfer import is_transfer
from decentral.types import PeerId, peer_id, raw_id, short

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

MIN_PREFIX = 4
MAX_REFUSALS = 64
REVOKED = "this peer's credential is revoked"
"""What a peer is told whose links are closed."""


class Revoking:
    """A node's. Lives on the loop's thread."""

    def __init__(self, node: Node) -> None:
        self._node, self._card, self._me, self._links = node, node.card, node.identity, node.links
        self._refusals: set[str] = set()

    # ------------------------------------------------------------------------------ others

    def link_up(self, peer: PeerId) -> bool:
        """Compare notes; False if it was revoked while it shook hands: then the link closes."""
        self._links.send(peer, revocation.have(self._card.revocations.digest()))
        self._card.trim({link.peer for link in self._links.all()})
        if self._card.is_revoked(peer):
            self._links.refuse(peer, REVOKED)
            return False
        return True

    def dial_failed(self, failures: Sequence[DecentralError]) -> None:
        """A member that was revoked while it was away hears of it as refusals: say each once."""
        for one in failures:
            if isinstance(one, RefusedError) and one.says not in self._refusals:
                if len(self._refusals) < MAX_REFUSALS:
                    self._refusals.add(one.says)
                self._node.events.emit("fault", kind="refused", peer=one.peer, says=one.says)

    def takes(self, peer: PeerId, payload: bytes) -> bool:
        """Whether this message is about credentials, or against its sender's: then it ends here."""
        if revocation.is_revocation(payload):
            self.message(peer, payload)
            return True
        try:
            says = "" if is_transfer(payload) else forbidden(self._card.role_of(peer), payload)
        except ProtocolError as error:
            says = error.says
        if says:
            called = self._names().get(peer) or short(peer)
            self._node.events.emit("fault", kind="role", peer=peer, says=f"{called}: {says}")
            self._links.refuse(peer, says)
        return bool(says)

    def message(self, peer: PeerId, payload: bytes) -> None:
        try:
            said = revocation.read(payload)
            if isinstance(said, bytes):
                if said != self._card.revocations.digest():
                    for message in self._card.revocations.messages():
                        self._links.send(peer, message)
                return
            news = self._card.add_revocations(said, time.time())
        except (ProtocolError, CredentialError) as error:
            self._links.close(peer, error.says)
            return
        self._tell_on(news, peer)

    def _tell_on(self, news: list[Statement], heard_from: PeerId | None) -> None:
        if not news:
            return
        try:
            self._card.keep_revocations()
        except DiskError as error:  # it holds until this process ends, and the others know it
            self._node.events.emit("fault", kind="revocations", peer=None, says=error.says)
        for message in revocation.tell(one.pack() for one in news):
            for link in self._links.all():
                if link.peer != heard_from:
                    self._links.send(link.peer, message)
        self._act(news)

    def _act(self, news: list[Statement]) -> None:
        """Who is out is out now: without links, and soon not in the view."""
        node, names = self._node, self._names()
        for one in news:
            peer = peer_id(one.target) if len(one.target) == 32 else None
            node.events.emit("fault", kind="revoked", peer=peer, says=in_words(one, names))
        for link in self._links.all():
            if self._card.is_revoked(link.peer):
                self._links.refuse(link.peer, REVOKED)
        inside = node.view.members if node.view is not None else ()
        out = [peer for peer in inside if peer != node.me and self._card.is_revoked(peer)]
        if node.core is not None and out:
            node.core.evictions.revoke(out, "is revoked")
            node.feed(protocol.Tick())
        if self._card.is_revoked(node.me):
            says = "this peer's credential is revoked: it may take part in this run no longer"
            node.fail(CredentialError(says, peer=node.me, phase="admission"))

    def _names(self) -> Mapping[PeerId, str]:
        return self._node.core.status().names if self._node.core is not None else {}

    # --------------------------------------------------------------------------- a person

    def by_command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``decentral revoke``: sign, keep, tell. ConfigError if this peer cannot."""
        if self._card.run is None:
            raise ConfigError("this peer is in no run yet: it can revoke nobody")
        names = self._names()
        who, reason = request.get("peer"), request.get("reason", "")
        if type(who) is not str or type(reason) is not str:
            raise ConfigError("revoke takes a peer (id, name or serial) and a reason (texts)")
        if len(reason.encode()) > revocation.MAX_REASON_BYTES or not (
            reason.isprintable() or not reason
        ):
            raise ConfigError(
                f"a reason is at most {revocation.MAX_REASON_BYTES} bytes of printable text"
            )
        target, peer = self._find(who, names)
        if peer == self._me.peer_id:
            raise ConfigError("that is this very peer: `decentral leave` ends its membership")
        signer, chain = self._card.signer()
        targets = [target]
        invite = self._card.invite_of(peer) if peer is not None else None
        if request.get("with_invite"):
            if invite is None:
                raise ConfigError(f"{who} did not come with an invite that this peer has seen")
            targets.append(invite)
        if peer is not None and not self._card.stands_above(signer.public, peer):
            raise ConfigError(
                f"{names.get(peer) or short(peer)} was not invited by this peer: only the run's "
                "maker and those who invited it can revoke it"
            )
        now = time.time()
        statements = [
            revocation.state(signer, chain, self._card.run, one, now=now, reason=reason)
            for one in targets
        ]
        try:
            news = self._card.add_revocations([one.pack() for one in statements], now)
        except CredentialError as error:
            raise ConfigError(f"this peer cannot revoke anybody: {error.says}") from None
        if not news:
            raise ConfigError(f"{who} is revoked already, or the list of revocations is full")
        shares = 0 if invite is None else self._card.came_with(invite) - 1
        self._tell_on(news, None)
        return {
            "peer": peer or "",
            "revoked": [one.target.hex() for one in news],
            "told": len(self._links.all()),
            "by_invite": invite is not None,
            "shares_invite_with": max(0, shares),
        }

    def _find(self, who: str, names: Mapping[PeerId, str]) -> tuple[bytes, PeerId | None]:
        """(target, the peer if it is one) for an id, its beginning, a name or a serial."""
        try:
            return raw_id(who), who
        except ValueError:
            pass
        if len(who) == 32:
            try:
                return bytes.fromhex(who), None
            except ValueError:
                pass
        known = {*names, *self._card.met()}
        found = {peer for peer in known if names.get(peer) == who}
        if not found and len(who) >= MIN_PREFIX:
            found = {peer for peer in known if peer.startswith(who) or short(peer).startswith(who)}
        if len(found) != 1:
            how = "no peer" if not found else f"{len(found)} peers"
            raise ConfigError(f"{how} known here as {who!r}: give the whole id (decentral status)")
        peer = found.pop()
        return raw_id(peer), peer


def in_words(statement: Statement, names: Mapping[PeerId, str]) -> str:
    """One sentence for a person."""
    if len(statement.target) == 32:
        peer = peer_id(statement.target)
        what = names.get(peer) or short(peer)
    else:
        what = f"the credential {statement.target.hex()}"
    by = peer_id(statement.issuer)
    because = f": {statement.reason}" if statement.reason else ""
    return f"{what} and all that it invited are revoked by {names.get(by) or short(by)}{because}"
