"""Taking membership back: signed statements that every peer keeps and passes on. Sans-IO.

    authority ──▶ A ──▶ invite ──▶ B        "A: B is out"           counts: A stands above B
        └───────▶ C                         "C: B is out"           counts for nothing
                                            "authority: A is out"   B and its invite are out, too

A statement names a key or a credential's serial. It works on whatever hangs below its issuer in a
chain, and on nothing else (`credential.verify`), so a statement by a rogue member can hurt only
those whom it let in itself; and one by somebody who is out himself is superfluous, and dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from decentral.errors import CredentialError, DecentralError, ProtocolError, StateError
from decentral.peer import packing
from decentral.peer.credential import (
    CLOCK_ERROR_S,
    MAX_CHAIN_BYTES,
    Chain,
    hit,
    pack_chain,
    run_id,
    run_label,
    unpack_chain,
    verify,
)
from decentral.peer.identity import Identity, verify_signature
from decentral.types import peer_id, short

MAX_REASON_BYTES = 200
MAX_STATEMENT_BYTES = MAX_CHAIN_BYTES + 512
MAX_PER_MESSAGE = 32
MAX_BY_AUTHORITY = 4096
MAX_BY_OTHERS = 1024
"""Members could fill the list; then the authority, whose own place is kept, revokes them, and
what they said is dropped."""
MAX_FILE_BYTES = (MAX_BY_AUTHORITY + MAX_BY_OTHERS) * (MAX_STATEMENT_BYTES + 3) + 64
_VERSION = 1
_CONTEXT = b"decentral revocation v1\0"
_HAVE, _TELL = "rv/have", "rv/tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`issuer` says that `target` is no member any more, nor whom it invited."""

    run: bytes
    chain: Chain
    """The issuer's own, to show that it may invite; empty: it is the authority."""
    issuer: bytes
    target: bytes
    """A public key (32 bytes) or the serial of a credential (16)."""
    at: int
    """Unix seconds."""
    reason: str = ""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        return _CONTEXT + packing.pack([self.run, self.issuer, self.target, self.at, self.reason])

    def pack(self) -> bytes:
        chain = pack_chain(self.chain) if self.chain else b""
        return packing.pack([
            _VERSION, self.run, chain, self.issuer, self.target, self.at, self.reason,
            self.signature,
        ])  # fmt: skip


def state(
    signer: Identity, chain: Chain, run: bytes, target: bytes, *, now: float, reason: str = ""
) -> Statement:
    """Sign a statement. `chain` is the signer's own, empty for the authority."""
    unsigned = Statement(
        run=run, chain=chain, issuer=signer.public, target=target, at=int(now), reason=reason
    )
    return replace(unsigned, signature=signer.sign(unsigned.signed_bytes()))


def unpack(data: bytes) -> Statement:
    """Parse, but do not verify. ProtocolError on anything that is no statement."""
    fields = packing.unpack(data, max_bytes=MAX_STATEMENT_BYTES, max_items=16)
    version, run, chain, issuer, target, at, reason, signature = packing.array(
        fields, "a revocation", 8
    )
    if packing.integer(version, "its version") != _VERSION:
        raise ProtocolError(f"a revocation of version {version}, this peer reads {_VERSION}")
    target = packing.binary(target, "a target", 16, 32)
    if len(target) not in (16, 32):
        raise ProtocolError("a revocation's target is neither a key nor a serial")
    packed = packing.binary(chain, "its issuer's chain", 0, MAX_CHAIN_BYTES)
    try:
        links = unpack_chain(packed) if packed else ()
    except CredentialError as error:
        raise ProtocolError(error.says) from None
    return Statement(
        run=packing.binary(run, "a run id", 32),
        chain=links,
        issuer=packing.binary(issuer, "an issuer", 32),
        target=target,
        at=packing.integer(at, "a time", 0, 2**40),
        reason=packing.text(reason, "a reason", MAX_REASON_BYTES),
        signature=packing.binary(signature, "a signature", 64),
    )


def check(statement: Statement, authority: bytes, now: float) -> None:
    """CredentialError unless the issuer belongs to the run, may invite, and has signed this."""
    who = peer_id(statement.issuer)
    if statement.run != run_id(authority):
        raise _no(who, f"it is of run {run_label(statement.run)}")
    if not verify_signature(statement.issuer, statement.signed_bytes(), statement.signature):
        raise _no(who, "the signature is wrong")
    if statement.at > now + CLOCK_ERROR_S:
        raise _no(who, "it is of the future; check the clocks")
    if statement.issuer != authority:
        # At the time when it was said: what holds then does not lapse with its issuer.
        verify(statement.chain, authority, statement.issuer, statement.at)
        if not statement.chain[-1].can_invite:
            raise _no(who, "its issuer may not invite, so it can revoke nobody")


def _no(who: str, why: str) -> CredentialError:
    return CredentialError(f"revocation by {short(who)}: {why}", peer=who, phase="revocation")


class Revocations:
    """All statements that a peer knows about its run."""

    def __init__(self, authority: bytes) -> None:
        self._authority = authority
        self._known: dict[tuple[bytes, bytes], bytes] = {}
        """(target, issuer) → the packed statement."""
        self._chains: dict[bytes, Chain] = {}
        """Of the issuers that are not the authority."""
        self.revoked: Mapping[bytes, frozenset[bytes]] = {}
        """Target → who says so; never changed in place."""

    def __len__(self) -> int:
        return len(self._known)

    def add(self, packed: bytes, now: float) -> Statement | None:
        """Take one in; None if it tells nothing new, or there is no room for it.

        Raises ProtocolError or CredentialError for what no honest peer passes on.
        """
        if len(packed) > MAX_STATEMENT_BYTES:
            raise ProtocolError(f"a revocation of {len(packed)} bytes")
        statement = unpack(packed)
        key = (statement.target, statement.issuer)
        if key in self._known:
            return None
        check(statement, self._authority, now)
        if statement.issuer != self._authority:
            others = sum(issuer != self._authority for _, issuer in self._known)
            if others >= MAX_BY_OTHERS or hit(statement.chain, self._authority, self.revoked):
                return None
            self._chains[statement.issuer] = statement.chain
        elif len(self._known) >= MAX_BY_AUTHORITY + MAX_BY_OTHERS:
            return None
        self._known[key] = statement.pack()
        by = self.revoked.get(statement.target, frozenset())
        self.revoked = {**self.revoked, statement.target: by | {statement.issuer}}
        self._drop_superfluous()
        return statement

    def _drop_superfluous(self) -> None:
        out = {
            issuer
            for issuer, chain in self._chains.items()
            if hit(chain, self._authority, self.revoked)
        }
        if not out:
            return
        for issuer in out:
            del self._chains[issuer]
        self._known = {key: packed for key, packed in self._known.items() if key[1] not in out}
        left: dict[bytes, frozenset[bytes]] = {}
        for target, issuer in self._known:
            left[target] = left.get(target, frozenset()) | {issuer}
        self.revoked = left

    def digest(self) -> bytes:
        """Equal (32 bytes) where two peers know the same."""
        return hashlib.sha256(b"".join(t + i for t, i in sorted(self._known))).digest()

    def messages(self) -> list[bytes]:
        """All of it, for another peer."""
        return tell(self._known.values())

    # ------------------------------------------------------------------------------ on disk

    def pack(self) -> bytes:
        return packing.pack([_VERSION, list(self._known.values())])

    @classmethod
    def load(cls, data: bytes, authority: bytes, now: float) -> Revocations:
        """From a file. StateError if it is damaged: nobody is let in again for want of a list."""
        made = cls(authority)
        most = MAX_BY_AUTHORITY + MAX_BY_OTHERS
        try:
            version, known = packing.array(
                packing.unpack(data, max_bytes=MAX_FILE_BYTES, max_items=most), "its list", 2
            )
            if packing.integer(version, "its version") != _VERSION:
                raise ProtocolError(f"it is of version {version}, this peer reads {_VERSION}")
            for one in packing.array(known, "its statements", 0, most):
                packed = packing.binary(one, "a statement", 1, MAX_STATEMENT_BYTES)
                if unpack(packed).run == run_id(authority):  # else of a run that was left
                    made.add(packed, now)
        except DecentralError as error:
            raise StateError(
                f"the list of revoked keys is damaged ({error.says}): remove the file "
                "`revocations` from the home, and the others will tell it again",
                phase="start",
            ) from None
        return made


# -------------------------------------------------------------------------------- messages


def is_revocation(payload: bytes) -> bool:
    """Is this control message one of ours? (An array whose first item is a string "rv/…".)"""
    return (
        len(payload) >= 5
        and payload[0] & 0xF0 == 0x90  # msgpack: a short array …
        and payload[1] & 0xE0 == 0xA0  # … that starts with a short string
        and payload[2:5] == b"rv/"
    )


def have(digest: bytes) -> bytes:
    """First on a link: what this peer knows, in short."""
    return packing.pack([_HAVE, digest])


def tell(statements: Iterable[bytes]) -> list[bytes]:
    """Packed statements as messages."""
    every = list(statements)
    return [
        packing.pack([_TELL, every[at : at + MAX_PER_MESSAGE]])
        for at in range(0, len(every), MAX_PER_MESSAGE)
    ]


def read(payload: bytes) -> bytes | list[bytes]:
    """A digest, or packed statements. ProtocolError if it is neither."""
    limit = MAX_PER_MESSAGE * (MAX_STATEMENT_BYTES + 3) + 64
    kind, value = packing.array(
        packing.unpack(payload, max_bytes=limit, max_items=MAX_PER_MESSAGE), "a message", 2
    )
    if kind == _HAVE:
        return packing.binary(value, "a digest", 32)
    if kind != _TELL:
        raise ProtocolError("a message about revocations of unknown kind")
    return [
        packing.binary(one, "a statement", 1, MAX_STATEMENT_BYTES)
        for one in packing.array(value, "its statements", 1, MAX_PER_MESSAGE)
    ]
