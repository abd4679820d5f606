"""Membership as a chain of signatures, so that anybody with the right can invite.

    authority ──signs──▶ inviter ──signs──▶ peer        at most MAX_DEPTH links
    (run id = SHA-256 of its public key)

The authority may be gone for good: whoever holds the run's id can check every chain. A chain is
public; only the key of its last subject makes it worth anything.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import textwrap
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, cast, get_args

from decentral.errors import ConfigError, CredentialError, DecentralError, ProtocolError
from decentral.peer import packing
from decentral.peer.files import disk_errors, write_atomic
from decentral.peer.identity import Identity, verify_signature
from decentral.types import peer_id, short

Role: TypeAlias = Literal["train", "relay", "observe"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Strongest first: nobody can give a stronger role than it has."""

MAX_DEPTH = 4
CLOCK_ERROR_S = 600
"""Tolerated difference between the issuer's clock and ours."""
MEMBER_VALID_S = 365 * 86_400
MAX_CHAIN_BYTES = 2048
_MAX_FILE_BYTES = 8192
_VERSION = 1
_CONTEXT = b"decentral credential v1\0"
_BEGIN = "-----BEGIN DECENTRAL CREDENTIAL-----"
_END = "-----END DECENTRAL CREDENTIAL-----"


def run_id(authority: bytes) -> bytes:
    """A run is named by its authority's public key (32 bytes)."""
    return hashlib.sha256(authority).digest()


def run_label(run: bytes) -> str:
    """The form of a run id shown to people."""
    return run.hex()[:8]


def span(seconds: float) -> str:
    """A length of time in one unit, rounded down: "3 h"."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One signed link: `issuer` says that `subject` belongs to `run`."""

    run: bytes
    """Run id, 32 bytes."""
    issuer: bytes
    """Public key of the signer."""
    subject: bytes
    """Public key of the one it is about."""
    role: Role
    can_invite: bool
    not_before: int
    """Unix seconds."""
    not_after: int
    """Unix seconds."""
    serial: bytes
    """16 random bytes, for revocation."""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: canonical, and usable for nothing else."""
        return _CONTEXT + packing.pack([
            self.run, self.issuer, self.subject, self.role, self.can_invite,
            self.not_before, self.not_after, self.serial,
        ])  # fmt: skip


Chain: TypeAlias = tuple[Credential, ...]
"""From the authority's own signature to the peer's credential."""
Revoked: TypeAlias = Mapping[bytes, AbstractSet[bytes]]
"""Public key or serial → who has revoked it (public keys). See `revocation.py`."""
NOTHING_REVOKED: Revoked = MappingProxyType({})


def issue(
    signer: Identity,
    run: bytes,
    subject: bytes,
    *,
    now: float,
    valid_s: float = MEMBER_VALID_S,
    role: Role = "train",
    can_invite: bool = False,
) -> Credential:
    """Sign a credential that is valid from now on."""
    unsigned = Credential(
        run=run, issuer=signer.public, subject=subject, role=role, can_invite=can_invite,
        not_before=int(now), not_after=int(now + valid_s), serial=secrets.token_bytes(16),
    )  # fmt: skip
    return replace(unsigned, signature=signer.sign(unsigned.signed_bytes()))


@lru_cache(maxsize=1024)
def _verify_shared(issuer: bytes, signed: bytes, signature: bytes) -> bool:
    """Of a credential that others were let in with: it comes with each of them."""
    return verify_signature(issuer, signed, signature)


def verify(
    chain: Chain,
    authority: bytes,
    subject: bytes,
    now: float,
    revoked: Revoked = NOTHING_REVOKED,
) -> Role:
    """Check that `chain` leads from `authority` to `subject`; the role it gives.

    Whatever in it is revoked by somebody above it takes all below with it. Raises CredentialError
    with a sentence about the first link that fails.
    """
    who = peer_id(subject)
    run = run_id(authority)
    if not chain:
        raise _no(who, "there is none")
    if len(chain) > MAX_DEPTH:
        raise _no(who, f"its chain has {len(chain)} links, more than {MAX_DEPTH}")
    issuer, role = authority, ROLES[0]
    for position, link in enumerate(chain):
        if link.run != run or (position == 0 and link.issuer != authority):
            raise _no(who, f"belongs to another run ({run_label(link.run)}, not {run_label(run)})")
        if link.issuer != issuer:
            raise _no(who, f"signed by {_name(link.issuer)}, not by {_name(issuer)} before it")
        if position > 0 and not chain[position - 1].can_invite:
            raise _no(who, f"signed by {_name(issuer)}, who may not invite")
        if ROLES.index(link.role) < ROLES.index(role):
            raise _no(who, f"signed by {_name(issuer)}, whose role {role} cannot give {link.role}")
        last = position == len(chain) - 1
        check = verify_signature if last else _verify_shared
        if not check(link.issuer, link.signed_bytes(), link.signature):
            raise _no(who, f"the signature of {_name(issuer)} is wrong")
        whose = "" if last else f"the one of its inviter {_name(link.subject)} "
        if now > link.not_after + CLOCK_ERROR_S:
            raise _no(who, f"{whose}expired {span(now - link.not_after)} ago")
        if now < link.not_before - CLOCK_ERROR_S:
            raise _no(
                who, f"{whose}is valid only in {span(link.not_before - now)}; check the clocks"
            )
        if hit(chain[: position + 1], authority, revoked):
            raise _no(who, f"{whose}revoked")
        issuer, role = link.subject, link.role
    if issuer != subject:
        raise _no(who, f"made out to {_name(issuer)}, not to {_name(subject)}")
    return role


def hit(chain: Chain, authority: bytes, revoked: Revoked) -> bool:
    """Whether somebody in this chain is revoked by the authority or by somebody above in it."""
    above = {authority}
    for link in chain:
        for named in (link.subject, link.serial):
            if not above.isdisjoint(revoked.get(named, ())):
                return True
        above.add(link.subject)
    return False


def _no(who: str, why: str) -> CredentialError:
    return CredentialError(f"credential of {short(who)}: {why}", peer=who, phase="admission")


def _name(public: bytes) -> str:
    return short(peer_id(public))


# ------------------------------------------------------------------------------ encoding


def pack_chain(chain: Chain) -> bytes:
    """The wire form: what a link repeats of the one before it (run, issuer) is left out."""
    authority = chain[0].issuer if chain else b""
    links = [
        [c.subject, c.role, c.can_invite, c.not_before, c.not_after, c.serial, c.signature]
        for c in chain
    ]
    return packing.pack([_VERSION, authority, links])


def unpack_chain(data: bytes) -> Chain:
    """Parse, but do not verify. CredentialError on anything that is no chain."""
    try:
        version, authority, links = packing.array(
            packing.unpack(data, max_bytes=MAX_CHAIN_BYTES, max_items=16), "a credential", 3
        )
        if packing.integer(version, "its version") != _VERSION:
            raise ProtocolError(f"it is of version {version}, this peer reads {_VERSION}")
        links = packing.array(links, "its chain", 0, MAX_DEPTH)
        authority = packing.binary(authority, "its authority", 32 if links else 0)
        run = run_id(authority)
        chain: list[Credential] = []
        for link in links:
            chain.append(_unpack_link(link, run, chain[-1].subject if chain else authority))
    except ProtocolError as error:
        raise CredentialError(
            f"a credential cannot be read: {error.says}", phase="admission"
        ) from None
    return tuple(chain)


def _unpack_link(value: object, run: bytes, issuer: bytes) -> Credential:
    subject, role, can_invite, not_before, not_after, serial, signature = packing.array(
        value, "a link", 7
    )
    if role not in ROLES:
        raise ProtocolError("a link's role is unknown")
    return Credential(
        run=run,
        issuer=issuer,
        subject=packing.binary(subject, "a subject", 32),
        role=cast(Role, role),
        can_invite=packing.flag(can_invite, "the right to invite"),
        not_before=packing.integer(not_before, "a start of validity", 0, 2**40),
        not_after=packing.integer(not_after, "an end of validity", 0, 2**40),
        serial=packing.binary(serial, "a serial", 16),
        signature=packing.binary(signature, "a signature", 64),
    )


def save_chain(path: Path, chain: Chain) -> None:
    """Write the file that `--credential` reads."""
    if not chain:
        raise ValueError("an empty chain proves nothing")
    body = textwrap.fill(base64.b64encode(pack_chain(chain)).decode("ascii"), 64)
    write_atomic(path, f"{_BEGIN}\n{body}\n{_END}\n".encode("ascii"))


def load_chain(path: Path) -> Chain:
    """Read a credential file. ConfigError, with the path, if it cannot be one.

    The run it belongs to is `chain[0].run`; `verify` says whether it holds.
    """
    try:
        with disk_errors("read the credential", path), path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        lines = data.decode("ascii").split()  # the two marks have spaces: they split in three
        if len(data) > _MAX_FILE_BYTES or lines[:3] != _BEGIN.split() or lines[-3:] != _END.split():
            raise ValueError("it does not start and end as one")
        chain = unpack_chain(base64.b64decode("".join(lines[3:-3]), validate=True))
        if not chain:
            raise ValueError("it is empty")
    except (ValueError, DecentralError) as error:
        why = error.says if isinstance(error, DecentralError) else str(error)
        raise ConfigError(f"{path} is not a credential file: {why}") from None
    return chain


# ------------------------------------------------------------------------------ authority


class RunAuthority:
    """The key that makes a run. Needed to start one and to sign for new members, never to go on."""

    def __init__(self, key: Identity) -> None:
        self.key = key
        self.public = key.public
        self.run = run_id(key.public)

    @classmethod
    def load_or_create(cls, path: Path) -> RunAuthority:
        """From a key file (0600), made first if there is none."""
        return cls(Identity.load_or_create(path))

    def issue(
        self,
        subject: bytes,
        *,
        now: float,
        valid_s: float = MEMBER_VALID_S,
        role: Role = "train",
        can_invite: bool = True,
    ) -> Chain:
        """A chain of one link for a public key."""
        return (
            issue(
                self.key, self.run, subject,
                now=now, valid_s=valid_s, role=role, can_invite=can_invite,
            ),
        )  # fmt: skip
