"""This peer's papers: which run it belongs to, what proves it, and whom it knows there."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from decentral.errors import ConfigError, SelfJoinError
from decentral.peer.admission import Admission, Admitted, Hello, RunContext
from decentral.peer.credential import (
    ROLES,
    Chain,
    Role,
    RunAuthority,
    hit,
    load_chain,
    run_label,
    save_chain,
    verify,
)
from decentral.peer.files import write_atomic
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.joinword import Invite, JoinWord, mint_invite
from decentral.peer.revocation import MAX_FILE_BYTES, Revocations, Statement
from decentral.types import PeerId, peer_id, raw_id

LAN = "lan"
"""A join word of its own kind."""
MAX_CHAINS = 4096
"""Credentials kept of those that were linked, for whom a person may want to revoke."""


class MembershipCard:
    """Read from the home, the join words and the credential file; kept in the home."""

    def __init__(
        self,
        home: Home,
        identity: Identity,
        name: str,
        *,
        join: Sequence[str],
        credential: Path | None,
        open_run: bool,
        role: Role | None = None,
    ) -> None:
        """Raises ConfigError or CredentialError if the papers do not fit together."""
        self._home, self._me, self._name = home, identity, name
        self.addresses: tuple[str, ...] = ()
        """Where others may dial us, best first."""
        self.by_lan = LAN in join
        """Entries come from the local network."""
        self._words = [JoinWord.parse(word) for word in join if word != LAN]
        self._found: tuple[str, ...] = ()
        self._invite: Invite | None = next((w.invite for w in self._words if w.invite), None)
        self.context: RunContext | None = None
        self._revocations: Revocations | None = None
        self._chains: dict[PeerId, Chain] = {}
        self._roles: dict[PeerId, Role] = {}
        self.made_run = False
        self._book = home.read_address_book()
        now = time.time()
        kept, is_open = home.credential, home.path / "open"
        if credential is not None:
            chain = load_chain(credential)
            verify(chain, chain[0].issuer, identity.public, now)
            self.context = RunContext(authority=chain[0].issuer, chain=chain)
        elif kept.exists():
            chain = load_chain(kept)
            self.context = RunContext(authority=chain[0].issuer, chain=chain, open=is_open.exists())
        if self._invite is not None:
            self._invite.check(now)
            if self.context is not None and self.context.run != self._invite.run:
                raise ConfigError(
                    f"{home.path} belongs to run {run_label(self.context.run)}, and the join word "
                    f"is of run {run_label(self._invite.run)}: use another --home or --name"
                )
            if self.context is None:
                chain = self._invite.credential_for(identity.public, now=now)
                save_chain(kept, chain)
                came_with = next(word for word in self._words if word.invite)
                write_atomic(home.join, came_with.text.encode())
                self.context = RunContext(
                    authority=self._invite.authority, chain=chain, open=self._invite.open
                )
        if self.context is None and not join:
            authority = RunAuthority.load_or_create(home.authority_key)
            chain = authority.issue(identity.public, now=now)
            save_chain(kept, chain)
            if open_run:
                write_atomic(is_open, b"this run admits anyone\n")
            self.context = RunContext(authority=authority.public, chain=chain, open=open_run)
            self.made_run = True
        chain = self.context.chain if self.context is not None else ()
        if self._invite is not None and chain and chain[-1].issuer != self._invite.key.public:
            # We come back with a newer word than the one that our credential came by: the words'
            # addresses count, and the credential stands for itself.
            self._invite = None
        self._read_revocations()
        allowed: Role = ROLES[0]
        if self.context is not None and self.context.chain:
            context = self.context
            allowed = verify(
                context.chain, context.authority, identity.public, now, context.revoked
            )
        self.role = role or allowed
        """What this peer does in the run."""
        if ROLES.index(self.role) < ROLES.index(allowed):
            raise ConfigError(f"this peer's credential is to {allowed}: it cannot {self.role}")
        if self.role != ROLES[0] and self.made_run:
            raise ConfigError(f"who makes a run trains: to {self.role} takes a join word")

    @property
    def run(self) -> bytes | None:
        """Run id; None until somebody of an open run has told us."""
        return self.context.run if self.context else None

    def add_entries(self, addresses: Sequence[str]) -> None:
        """Where members were found that no join word names."""
        self._found = tuple(addresses)

    def entry_addresses(self) -> list[str]:
        """What the join words name; SelfJoinError if that is only ourselves."""
        named = [address for word in self._words for address in word.addresses]
        others = [address for address in named if address not in self.addresses]
        if named and not others:
            raise SelfJoinError("the join word leads back to this very peer", phase="join")
        return [*others, *self._found]

    def join_word(self, role: Role | None = None) -> str:
        """A word for newcomers: a fresh invite, or the one that we came with. `role`: what they may
        do at most, if that is less than what we may.

        The run's maker signs with the authority's key: chains are short, and the shorter a
        member's own is, the more generations it can invite.
        """
        assert self.context is not None and self.addresses
        if role is not None and ROLES.index(role) < ROLES.index(self.role):
            raise ConfigError(f"this peer's role is {self.role}: it cannot give {role}")
        signer, chain = self.signer()
        try:
            now, is_open = time.time(), self.context.open
            invite = mint_invite(signer, chain, now=now, role=role, open=is_open)
        except ConfigError:
            if role is not None:
                raise
            if self._home.join.exists():
                return JoinWord.parse(self._home.join.read_text()).at(*self.addresses).text
            if self.context.open:
                return JoinWord(addresses=self.addresses).text
            raise
        return JoinWord(addresses=self.addresses, invite=invite).text

    def signer(self) -> tuple[Identity, Chain]:
        """Who signs for this peer, and the chain that gives it the right (empty: the authority)."""
        assert self.context is not None
        if self._home.authority_key.exists():
            authority = RunAuthority.load_or_create(self._home.authority_key)
            if authority.run == self.context.run:
                return authority.key, ()
        return self._me, self.context.chain

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Admission:
        """One end of the handshake on a fresh link."""
        return Admission(
            self._me,
            inbound=inbound,
            peer=peer,
            exporter=exporter,
            hello=Hello(name=self._name, addresses=self.addresses),
            run=self.context,
            now=time.time(),
            invite=self._invite,
        )

    def admitted(self, other: Admitted) -> None:
        """Somebody let us in, or we them: remember the run and how to get there again."""
        if self.context is None:
            self.context = other.run
            self._read_revocations()
        self._roles[other.peer] = other.role
        self._chains.pop(other.peer, None)
        self._chains[other.peer] = other.chain
        if other.addresses:
            self._book[other.peer] = other.addresses

    # --------------------------------------------------------------------------- revocations

    @property
    def revocations(self) -> Revocations:
        assert self._revocations is not None, "the run is known"
        return self._revocations

    def _read_revocations(self) -> None:
        if self.context is None:
            return
        authority = self.context.authority
        data = self._home.read_revocations(MAX_FILE_BYTES)
        self._revocations = (
            Revocations(authority)
            if data is None
            else Revocations.load(data, authority, time.time())
        )
        self.context = replace(self.context, revoked=self._revocations.revoked)

    def add_revocations(self, packed: Sequence[bytes], now: float) -> list[Statement]:
        """What of it is new; from now on admission refuses whom it names. ProtocolError or
        CredentialError for what no honest peer passes on."""
        assert self.context is not None
        try:
            added = [self.revocations.add(one, now) for one in packed]
        finally:
            self.context = replace(self.context, revoked=self.revocations.revoked)
        return [one for one in added if one is not None]

    def keep_revocations(self) -> None:
        """Put them on disk."""
        self._home.write_revocations(self.revocations.pack())

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether it, or whoever let it in, has been revoked by somebody who may."""
        if self.context is None or not self.context.revoked:
            return False
        authority, revoked = self.context.authority, self.context.revoked
        chain = self.context.chain if peer == self._me.peer_id else self._chains.get(peer, ())
        by_authority = authority in revoked.get(raw_id(peer), ())
        return by_authority or hit(chain, authority, revoked)

    def trim(self, linked: Collection[PeerId]) -> None:
        """Forget the papers of those met longest ago, of nobody who is linked."""
        if len(self._chains) <= MAX_CHAINS:
            return
        spare = [peer for peer in self._chains if peer not in linked]
        for peer in spare[: max(0, len(self._chains) - MAX_CHAINS)]:
            del self._chains[peer], self._roles[peer]

    def role_of(self, peer: PeerId) -> Role:
        """What a linked peer may do."""
        return self._roles[peer]

    def met(self) -> list[PeerId]:
        """Whoever was linked to this process."""
        return list(self._chains)

    def stands_above(self, signer: bytes, peer: PeerId) -> bool:
        """Whether `signer` may revoke `peer`; True, too, for a peer that was never met."""
        chain = self._chains.get(peer)
        assert self.context is not None
        return (
            signer == self.context.authority
            or chain is None
            or any(link.issuer == signer for link in chain)
        )

    def invite_of(self, peer: PeerId) -> bytes | None:
        """The key of the invite that it came with; None if it was let in by name, or never met."""
        chain = self._chains.get(peer, ())
        if len(chain) < 2:
            return None
        key = chain[-2].subject
        by_a_peer = key == self._me.public or peer_id(key) in self._chains
        return None if by_a_peer else key

    def came_with(self, invite: bytes) -> int:
        """How many of those that were met have come with this invite, or through who did."""
        return sum(any(link.subject == invite for link in chain) for chain in self._chains.values())

    # --------------------------------------------------------------------------- address book

    def keep_address_book(self) -> None:
        """Put it on disk: only a hint, but a run that is stopped as a whole finds itself by it."""
        self._home.write_address_book(self._book)

    def address_book(self) -> dict[PeerId, tuple[str, ...]]:
        """Peers of this run that we have met, and where."""
        return dict(self._book)
