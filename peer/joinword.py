"""The one word that a newcomer needs: where to dial, and the right to come in.

    198.51.100.7:4242,peer.example.org:4242#AZ0x…
    └──────── addresses ──────────────────┘ └ invite: base64url of msgpack + 4 bytes of SHA-256

Only [A-Za-z0-9:.,#_-], and the # never first, so every shell takes it as one plain word. IPv6
addresses (brackets) travel inside the invite; a word that has no other says ``invite:PORT``.

The invite holds a *delegated* key, not a password: a chain says that this key may sign members
in, and the joiner signs its own credential with it. Nothing secret crosses the wire.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
import secrets
from dataclasses import dataclass, field, replace

from decentral.errors import ConfigError, CredentialError, DecentralError, ProtocolError
from decentral.peer import packing
from decentral.peer.credential import (
    MAX_CHAIN_BYTES,
    MAX_DEPTH,
    MEMBER_VALID_S,
    ROLES,
    Chain,
    Role,
    issue,
    pack_chain,
    run_id,
    unpack_chain,
    verify,
)
from decentral.peer.identity import Identity

INVITE_VALID_S = 30 * 86_400
MAX_ADDRESSES = 16
MAX_WORD_CHARS = 4096
_VERSION = 1
_CHECK_BYTES = 4
_IN_INVITE = "invite"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` as (host, port), brackets gone. ConfigError if neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ConfigError(f"{address[:80]!r} is not HOST:PORT (a port is 1 to 65535)")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            raise ConfigError(f"{address[:80]!r} is not [IPv6]:PORT") from None
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{address[:80]!r} is not HOST:PORT (the host looks wrong)")
    return host, int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """The right to make one's own credential, for as many joiners as hold the word."""

    seed: bytes = field(repr=False)
    """Private key that the chain delegates to. Secret: whoever holds it can join."""
    chain: Chain
    """From the authority to the invite's key."""
    open: bool = False
    """The run admits anybody: then a member without a chain is a member too."""

    @property
    def authority(self) -> bytes:
        return self.chain[0].issuer

    @property
    def run(self) -> bytes:
        return run_id(self.authority)

    @property
    def key(self) -> Identity:
        return Identity(self.seed)

    def check(self, now: float) -> Role:
        """CredentialError if the invite is stale or forged; else the role it can give."""
        try:
            return verify(self.chain, self.authority, self.key.public, now)
        except CredentialError as error:
            why = error.says.partition(": ")[2]
            raise CredentialError(f"the invite does not hold: {why}", phase="admission") from None

    def credential_for(
        self, joiner: bytes, *, now: float, valid_s: float = MEMBER_VALID_S
    ) -> Chain:
        """The joiner's own chain: the invite's, and one more link that the invite's key signs."""
        role = self.check(now)
        link = issue(
            self.key, self.run, joiner, now=now, valid_s=valid_s, role=role, can_invite=True
        )
        return (*self.chain, link)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWord:
    """A parsed join word. Addresses are in dialling order; IPv6 ones come last."""

    addresses: tuple[str, ...]
    """``HOST:PORT`` or ``[IPv6]:PORT``; at least one."""
    invite: Invite | None = None

    def __post_init__(self) -> None:
        ordered = sorted(dict.fromkeys(self.addresses), key=_in_brackets)
        if not 1 <= len(ordered) <= MAX_ADDRESSES:
            raise ConfigError(f"a join word has 1 to {MAX_ADDRESSES} addresses, not {len(ordered)}")
        for address in ordered:
            if split_address(address)[0] == _IN_INVITE:
                raise ConfigError(f"{address!r} is not an address: {_IN_INVITE!r} is reserved")
        if self.invite is None and _in_brackets(ordered[-1]):
            raise ConfigError("IPv6 addresses need an invite to travel in")
        object.__setattr__(self, "addresses", tuple(ordered))

    @property
    def text(self) -> str:
        """The word, as printed and pasted."""
        if self.invite is None:
            return ",".join(self.addresses)
        plain = [a for a in self.addresses if not _in_brackets(a)]
        inside = [a for a in self.addresses if _in_brackets(a)]
        front = plain or [f"{_IN_INVITE}:{split_address(inside[0])[1]}"]
        invite = self.invite
        blob = packing.pack([_VERSION, invite.seed, pack_chain(invite.chain), inside, invite.open])
        blob += hashlib.sha256(blob).digest()[:_CHECK_BYTES]
        encoded = base64.urlsafe_b64encode(blob).decode("ascii").rstrip("=")
        return ",".join(front) + "#" + encoded

    def at(self, *addresses: str) -> JoinWord:
        """The same invite with other addresses: how a member passes on the word it came with."""
        return replace(self, addresses=addresses)

    @classmethod
    def parse(cls, text: str) -> JoinWord:
        """Read a word as a person pasted it. ConfigError with a sentence if it is none."""
        word = text.strip()
        if len(word) > MAX_WORD_CHARS:
            raise ConfigError(f"a join word has at most {MAX_WORD_CHARS} characters")
        front, mark, encoded = word.partition("#")
        if not front:
            raise ConfigError("a join word starts with HOST:PORT")
        if front.count(",") >= MAX_ADDRESSES:
            raise ConfigError(f"a join word has at most {MAX_ADDRESSES} addresses")
        addresses = tuple(front.split(","))
        for address in addresses:
            split_address(address)
        if not mark:
            return cls(addresses=addresses)
        invite, inside = _decode_invite(encoded)
        plain = tuple(a for a in addresses if split_address(a)[0] != _IN_INVITE)
        return cls(addresses=plain + inside, invite=invite)


def _in_brackets(address: str) -> bool:
    return address.startswith("[")


def _decode_invite(encoded: str) -> tuple[Invite, tuple[str, ...]]:
    short_or_wrong = ConfigError("the join word is cut short or mistyped: copy the whole word")
    try:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", encoded):
            raise short_or_wrong
        blob = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        raise short_or_wrong from None
    body, check = blob[:-_CHECK_BYTES], blob[-_CHECK_BYTES:]
    if not body or hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
        raise short_or_wrong
    try:
        fields = packing.unpack(body, max_bytes=MAX_WORD_CHARS, max_items=MAX_ADDRESSES)
        version = fields[0] if isinstance(fields, list) and fields else None
        if version != _VERSION:
            raise ConfigError(
                f"the join word is of version {version!r:.20}, this peer reads version {_VERSION}"
            )
        _, seed, chain_bytes, inside, is_open = packing.array(fields, "an invite", 5)
        chain = unpack_chain(packing.binary(chain_bytes, "its chain", 1, MAX_CHAIN_BYTES))
        invite = Invite(
            seed=packing.binary(seed, "its key", 32),
            chain=chain,
            open=packing.flag(is_open, "its open flag"),
        )
        if not chain or chain[-1].subject != invite.key.public:
            raise ProtocolError("its chain is not about its key")
        addresses = tuple(
            packing.text(a, "an address", 64)
            for a in packing.array(inside, "its addresses", 0, MAX_ADDRESSES)
        )
        for address in addresses:
            if not _in_brackets(address):
                raise ProtocolError("an address inside it is not [IPv6]:PORT")
            split_address(address)
    except ConfigError:
        raise
    except DecentralError as error:
        raise ConfigError(f"the join word's invite cannot be used: {error.says}") from None
    return invite, addresses


def mint_invite(
    signer: Identity,
    chain: Chain,
    *,
    now: float,
    expires_s: float = INVITE_VALID_S,
    role: Role | None = None,
    open: bool = False,
) -> Invite:
    """A new multi-use invite, signed by a member that may invite; goes into a `JoinWord`.

    `chain` is the signer's own, empty if it is the run's authority itself. ConfigError if the
    signer may not invite, or if its chain is too long for a guest: then it passes on the invite
    that it came with (`JoinWord.at`).
    """
    run = chain[0].run if chain else run_id(signer.public)
    strongest: Role = ROLES[0]
    if chain:
        strongest = verify(chain, chain[0].issuer, signer.public, now)
        if not chain[-1].can_invite:
            raise ConfigError("this peer's credential does not allow it to invite")
    if len(chain) + 2 > MAX_DEPTH:
        raise ConfigError(
            "this peer was invited through too many others to sign a new invite: "
            "pass on the invite it joined with"
        )
    seed = secrets.token_bytes(32)
    link = issue(
        signer, run, Identity(seed).public,
        now=now, valid_s=expires_s, role=role or strongest, can_invite=True,
    )  # fmt: skip
    return Invite(seed=seed, chain=(*chain, link), open=open)
