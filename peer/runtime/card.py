"""This peer's papers: which run it belongs to, what proves it, and whom it knows there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from decentral.errors import ConfigError, SelfJoinError
from decentral.peer.admission import Admission, Admitted, Hello, RunContext
from decentral.peer.credential import RunAuthority, load_chain, run_label, save_chain, verify
from decentral.peer.files import write_atomic
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.joinword import Invite, JoinWord, mint_invite
from decentral.types import PeerId


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
    ) -> None:
        """Raises ConfigError or CredentialError if the papers do not fit together."""
        self._home, self._me, self._name = home, identity, name
        self.addresses: tuple[str, ...] = ()
        self._words = [JoinWord.parse(word) for word in join]
        self._invite: Invite | None = next((w.invite for w in self._words if w.invite), None)
        self.context: RunContext | None = None
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
        if self.context is None and not self._words:
            authority = RunAuthority.load_or_create(home.authority_key)
            chain = authority.issue(identity.public, now=now)
            save_chain(kept, chain)
            if open_run:
                write_atomic(is_open, b"this run admits anyone\n")
            self.context = RunContext(authority=authority.public, chain=chain, open=open_run)
            self.made_run = True

    @property
    def run(self) -> bytes | None:
        """Run id; None until somebody of an open run has told us."""
        return self.context.run if self.context else None

    def entry_addresses(self) -> list[str]:
        """What the join words name; SelfJoinError if that is only ourselves."""
        named = [address for word in self._words for address in word.addresses]
        others = [address for address in named if address not in self.addresses]
        if named and not others:
            raise SelfJoinError("the join word leads back to this very peer", phase="join")
        return others

    def join_word(self) -> str:
        """A word for newcomers: a fresh invite, or the one that we came with.

        The run's maker signs with the authority's key: chains are short, and the shorter a
        member's own is, the more generations it can invite.
        """
        assert self.context is not None and self.addresses
        signer, chain = self._me, self.context.chain
        if self._home.authority_key.exists():
            authority = RunAuthority.load_or_create(self._home.authority_key)
            if authority.run == self.context.run:
                signer, chain = authority.key, ()
        try:
            invite = mint_invite(signer, chain, now=time.time(), open=self.context.open)
        except ConfigError:
            if self._home.join.exists():
                return JoinWord.parse(self._home.join.read_text()).at(*self.addresses).text
            if self.context.open:
                return JoinWord(addresses=self.addresses).text
            raise
        return JoinWord(addresses=self.addresses, invite=invite).text

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
        if other.addresses:
            self._book[other.peer] = other.addresses
            self._home.write_address_book(self._book)

    # --------------------------------------------------------------------------- address book

    def address_book(self) -> dict[PeerId, tuple[str, ...]]:
        """Peers of this run that we have met, and where."""
        return dict(self._book)
