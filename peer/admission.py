"""The handshake on a fresh link: who may come in, and to which run. Sans-IO.

TLS has already proven both peer ids and gives both ends the same `exporter` bytes. Then:

    dialer                                        responder (the inbound side; of a relayed link,
      │                                           │ which both have dialled, the TLS client)
      │ ◀── offer: version, run, open?, chain, proof ── │  proves its membership first
      │ checks: our run? a member of it?                │
      │ ── present: run, hello, chain, proofs ────────▶ │  name and addresses go to members only
      │                                                 │ checks: a member? of this run?
      │ ◀───────────── welcome: hello ───────────────── │  admitted
    admitted

A proof is a signature over (its purpose, the signer, the other end, the exporter): it is worth
nothing on another link. Whoever says no has `verdict = Refused(…)`, and its `says` is what the
other end should be told (`Endpoint.Refuse`); the time limit is the endpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from decentral.errors import (
    ConfigError,
    ConnectError,
    CredentialError,
    DecentralError,
    ProtocolError,
    RefusedError,
    SelfJoinError,
    VersionMismatchError,
)
from decentral.peer import packing
from decentral.peer.credential import (
    MAX_CHAIN_BYTES,
    NOTHING_REVOKED,
    ROLES,
    Chain,
    Revoked,
    Role,
    pack_chain,
    run_id,
    run_label,
    unpack_chain,
    verify,
)
from decentral.peer.identity import Identity, verify_signature
from decentral.peer.joinword import MAX_ADDRESSES, Invite, split_address
from decentral.types import PeerId, raw_id, short

PROTOCOL_VERSION = 1
MAX_TOTAL_BYTES = 64 << 10
"""All that one end may send before it is admitted; native code holds it to the same."""
MAX_NAME_BYTES = 64
_MAX_ADDRESS_BYTES = 270
NEEDS_INVITE = "this run needs an invite or a credential"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a peer knows about its run."""

    authority: bytes
    """The run's public key; its hash is the run id."""
    open: bool = False
    """Anybody may join, with or without a chain."""
    chain: Chain = ()
    """This peer's own, if it has one."""
    revoked: Revoked = field(default_factory=lambda: NOTHING_REVOKED, hash=False)

    @property
    def run(self) -> bytes:
        """Run id, 32 bytes."""
        return run_id(self.authority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a peer introduces itself."""

    name: str
    addresses: tuple[str, ...] = ()
    """Where it can be dialled: ``HOST:PORT`` or ``[IPv6]:PORT``, best first."""
    fingerprint: bytes = b""
    """Digest of the recipe: 32 bytes, or empty. The core compares it, not admission."""

    def __post_init__(self) -> None:
        try:
            packing.text(self.name, "a peer's name", MAX_NAME_BYTES)
            packing.array(list(self.addresses), "a peer's addresses", 0, MAX_ADDRESSES)
        except ProtocolError as error:
            raise ConfigError(error.says) from None
        for address in self.addresses:
            split_address(address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Both ends agree. What the other end said about itself, and the run."""

    peer: PeerId
    name: str
    role: Role
    run: RunContext
    addresses: tuple[str, ...]
    fingerprint: bytes
    observed: str
    """This peer's address as the other end sees it ("" if it does not say)."""
    chain: Chain = ()
    """What the other end has shown; empty in an open run."""


@dataclass(frozen=True, slots=True)
class Refused:
    """This end says no."""

    error: DecentralError

    @property
    def says(self) -> str:
        """The sentence for the other end."""
        return self.error.says


Verdict: TypeAlias = Admitted | Refused | None


class Admission:
    """One end of the handshake on one link. Feed it messages, look at `verdict`."""

    def __init__(
        self,
        me: Identity,
        *,
        inbound: bool,
        peer: PeerId,
        exporter: bytes,
        hello: Hello,
        run: RunContext | None,
        now: float,
        invite: Invite | None = None,
        observed: str = "",
    ) -> None:
        """`run` is None for a joiner that has only an address; `observed` is the other end's
        address as seen here; `now` is Unix time."""
        self.verdict: Verdict = None
        self._me = me
        self.inbound = inbound
        self._peer = peer
        self._exporter = exporter
        self._hello = hello
        self._run = run
        self._now = now
        self._invite = invite
        try:
            split_address(observed)
            self._observed = observed
        except ConfigError:  # a form that the other end would not take: better nothing
            self._observed = ""
        self._bytes = 0
        self._role: Role = ROLES[0]
        self._chain: Chain = ()
        self._expects: Callable[[bytes], list[bytes]] = (
            self._on_present if inbound else self._on_offer
        )

    def start(self) -> list[bytes]:
        """What to send first (nothing, from the dialer)."""
        return self._guarded(self._start)

    def receive(self, payload: bytes) -> list[bytes]:
        """Take one message; what to send in return. Sets `verdict` when it is decided."""
        if self.verdict is not None:
            return []
        self._bytes += len(payload)
        if self._bytes > MAX_TOTAL_BYTES:
            return self._guarded(_too_much)
        return self._guarded(lambda: self._expects(payload))

    def _guarded(self, step: Callable[[], list[bytes]]) -> list[bytes]:
        try:
            return step()
        except DecentralError as error:
            error.peer = error.peer or self._peer
            error.phase = error.phase or "admission"
            self.verdict = Refused(error)
            return []

    # ---------------------------------------------------------------------- steps

    def _start(self) -> list[bytes]:
        if self._peer == self._me.peer_id:
            raise SelfJoinError("the address leads back to this very peer")
        if not self.inbound:
            return []
        if self._run is None:
            raise RefusedError("this peer is itself still looking for a run")
        return [
            packing.pack([
                "a/offer", PROTOCOL_VERSION, self._run.authority, self._run.open,
                pack_chain(self._run.chain), self._me.sign(self._proof("responder", mine=True)),
            ])
        ]  # fmt: skip

    def _on_offer(self, payload: bytes) -> list[bytes]:
        version, *fields = _fields(payload, "a/offer", None)
        if version != PROTOCOL_VERSION:
            raise VersionMismatchError(
                f"the other end speaks version {version!r:.20} of the admission protocol, "
                f"this peer version {PROTOCOL_VERSION}"
            )
        authority, is_open, chain, proof = packing.array(fields, "an offer", 4)
        authority = packing.binary(authority, "a run's key", 32)
        is_open = packing.flag(is_open, "an open flag")
        run = self._run
        if run is None:
            if not is_open:
                raise CredentialError(NEEDS_INVITE)
            run = RunContext(authority=authority, open=True)
        elif run.authority != authority:
            raise _foreign(self._peer, run_id(authority), run.run)
        self._role = self._check_member(run, chain, proof, "responder")
        self._run = run
        self._expects = self._on_welcome
        delegated = b""
        if self._invite is not None:
            delegated = self._invite.key.sign(self._proof("invite", mine=True))
        return [
            packing.pack([
                "a/present", run.run, self._pack_hello(), pack_chain(run.chain),
                self._me.sign(self._proof("admission", mine=True)), delegated,
            ])
        ]  # fmt: skip

    def _on_present(self, payload: bytes) -> list[bytes]:
        run = self._run
        assert run is not None  # _start refused otherwise
        wanted, hello, chain, proof, delegated = _fields(payload, "a/present", 5)
        if packing.binary(wanted, "a run id", 32) != run.run:
            raise _foreign(self._peer, wanted, run.run)
        other, observed = _unpack_hello(hello)
        role = self._check_member(run, chain, proof, "admission")
        if packing.binary(delegated, "an invite's proof", 0, 64):
            links = unpack_chain(chain)
            signer = links[-1].issuer if links else b""
            if not verify_signature(signer, self._proof("invite", mine=False), delegated):
                raise CredentialError("the invite's proof is wrong: it was not made for this link")
        self.verdict = self._admitted(run, role, other, observed)
        return [packing.pack(["a/welcome", self._pack_hello()])]

    def _on_welcome(self, payload: bytes) -> list[bytes]:
        assert self._run is not None  # set by _on_offer
        (hello,) = _fields(payload, "a/welcome", 1)
        other, observed = _unpack_hello(hello)
        self.verdict = self._admitted(self._run, self._role, other, observed)
        return []

    # ---------------------------------------------------------------------- parts

    def _check_member(self, run: RunContext, chain: object, proof: object, purpose: str) -> Role:
        """The other end's role, or a CredentialError."""
        other = raw_id(self._peer)
        links = unpack_chain(packing.binary(chain, "a chain", 1, MAX_CHAIN_BYTES))
        signature = packing.binary(proof, "a proof", 64)
        if not verify_signature(other, self._proof(purpose, mine=False), signature):
            raise CredentialError(f"{short(self._peer)} did not sign for this very link")
        if run.authority in run.revoked.get(other, ()):
            raise CredentialError(f"credential of {short(self._peer)}: revoked")
        self._chain = links
        if not links:
            if not run.open:
                raise CredentialError(
                    NEEDS_INVITE
                    if self.inbound
                    else f"{short(self._peer)} cannot show that it belongs to this run"
                )
            return ROLES[0]
        return verify(links, run.authority, other, self._now, run.revoked)

    def _proof(self, purpose: str, *, mine: bool) -> bytes:
        me, peer = self._me.public, raw_id(self._peer)
        signer, other = (me, peer) if mine else (peer, me)
        return f"decentral {purpose}\0".encode() + signer + other + self._exporter

    def _pack_hello(self) -> list[object]:
        hello = self._hello
        return [hello.name, list(hello.addresses), hello.fingerprint, self._observed]

    def _admitted(self, run: RunContext, role: Role, hello: Hello, observed: str) -> Admitted:
        return Admitted(
            peer=self._peer, name=hello.name, role=role, run=run, addresses=hello.addresses,
            fingerprint=hello.fingerprint, observed=observed, chain=self._chain,
        )  # fmt: skip


def _fields(payload: bytes, kind: str, count: int | None) -> list[Any]:
    """The fields of a message of the expected kind."""
    message = packing.unpack(payload, max_bytes=MAX_TOTAL_BYTES, max_items=64)
    if not isinstance(message, list) or not message or message[0] != kind:
        raise ProtocolError(f"the other end did not send {kind!r} when it was due")
    if len(message) < 2 or (count is not None and len(message) != count + 1):
        raise ProtocolError(f"{kind!r} has {len(message) - 1} fields")
    return message[1:]


def _unpack_hello(value: object) -> tuple[Hello, str]:
    name, addresses, fingerprint, observed = packing.array(value, "a hello", 4)
    listed = packing.array(addresses, "its addresses", 0, MAX_ADDRESSES)
    fingerprint = packing.binary(fingerprint, "its fingerprint", 0, 32)
    if len(fingerprint) not in (0, 32):
        raise ProtocolError("its fingerprint has neither 0 nor 32 bytes")
    hello = Hello(
        name=packing.text(name, "its name", MAX_NAME_BYTES),
        addresses=tuple(_address(a) for a in listed),
        fingerprint=fingerprint,
    )
    return hello, _address(observed) if observed != "" else ""


def _address(value: object) -> str:
    address = packing.text(value, "an address", _MAX_ADDRESS_BYTES)
    try:
        split_address(address)
    except ConfigError as error:
        raise ProtocolError(error.says) from None
    return address


def _too_much() -> list[bytes]:
    raise ProtocolError(f"the other end sent more than {MAX_TOTAL_BYTES} bytes before admission")


def _foreign(peer: PeerId, theirs: bytes, ours: bytes) -> ConnectError:
    return CredentialError(
        f"{short(peer)} is of run {run_label(theirs)}, not {run_label(ours)}",
        peer=peer,
        phase="admission",
    )
