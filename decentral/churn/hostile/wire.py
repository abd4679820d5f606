"""The wire as an attacker has it: Python's TLS with a key of ours, and frames made by hand.

    Wire.dial(address) ──▶ TLS 1.3, a self-signed Ed25519 certificate ──▶ admit(papers) ──▶ frames

What `native/FORMAT.md` calls the exporter is derived from the secret that TLS logs for whoever asks
(RFC 8446, 7.5): Python has no call for it, and without it no proof of admission can be made.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from decentral.errors import ConnectError
from decentral.peer.admission import Admission, Admitted, Hello, RunContext
from decentral.peer.calls.messages import is_call
from decentral.peer.identity import Identity
from decentral.peer.joinword import JoinWord, split_address
from decentral.peer.reach.talk import is_reach
from decentral.peer.revocation import is_revocation
from decentral.peer.runtime.moves import MOVE, MOVED
from decentral.peer.transfer import is_transfer
from decentral.types import PeerId, peer_id

HEADER = struct.Struct("<HBBIQQQQIIQ")
MAGIC = 0xDC01
MESSAGE, PROBE, PROBE_ACK, REFUSE, BULK_WANTED, OP_READY, OP_ABORT = range(1, 8)
BULK_HELLO, CHUNK, BLOB = 16, 17, 18
SLICE = 16 << 10
PATIENCE_S = 5.0
ALPN = ["decentral/1", "decentral-refuse"]
BULK_ALPN = ["decentral-bulk/1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A header's fields, and the payload."""

    type: int
    payload: bytes = b""
    flags: int = 0
    length: int | None = None
    """What the header says; None: the truth."""
    run: int = 0
    lineage: int = 0
    epoch: int = 0
    round: int = 0
    attempt: int = 0
    tag: int = 0
    sequence: int = 0

    def encode(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return (
            HEADER.pack(
                *(MAGIC, self.type, self.flags, length, self.run, self.lineage),
                *(self.epoch, self.round, self.attempt, self.tag, self.sequence),
            )
            + self.payload
        )


def of_core(payload: bytes) -> bool:
    """Whether it is a message of the log's machine: other parts of a peer have their own on the
    same links."""
    return not (
        is_transfer(payload)
        or is_call(payload)
        or is_reach(payload)
        or is_revocation(payload)
        or payload in (MOVE, MOVED)
    )


def message_frames(payload: bytes, priority: int = 1) -> bytes:
    """A message of the layer above, in slices."""
    slices = [payload[at : at + SLICE] for at in range(0, len(payload), SLICE)] or [b""]
    return b"".join(
        Frame(type=MESSAGE, payload=one, tag=priority, flags=int(number + 1 < len(slices))).encode()
        for number, one in enumerate(slices)
    )


class Papers:
    """An identity with its TLS context, and what a join word makes of it."""

    def __init__(self, folder: Path, word: str = "", name: str = "mallory") -> None:
        self.identity = Identity.generate()
        self.name = name
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._files = _certificate(self.identity, self._folder)
        self.invite = JoinWord.parse(word).invite if word else None
        self.run: RunContext | None = None
        if self.invite is not None:
            chain = self.invite.credential_for(self.identity.public, now=time.time())
            self.run = RunContext(authority=self.invite.authority, chain=chain)

    def context(self, alpn: list[str], keylog: Path | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(*self._files)
        context.set_alpn_protocols(alpn)
        if keylog is not None:
            context.keylog_filename = str(keylog)
        return context

    def keylog(self) -> Path:
        """A new file for the secrets of one connection."""
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".keys")
        os.close(handle)
        return Path(name)


def _certificate(identity: Identity, folder: Path) -> tuple[str, str]:
    """Files with a self-signed Ed25519 certificate and its key."""
    key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, None)
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(certificate), str(secret)


class Wire:
    """One TLS connection to a peer, with its first `decentral` steps at hand."""

    def __init__(self, papers: Papers, address: str, alpn: list[str] = ALPN) -> None:
        host, port = split_address(address)
        keylog = papers.keylog()
        try:
            plain = socket.create_connection((host, port), PATIENCE_S)
            try:
                context = papers.context(alpn, keylog)
                self.socket = context.wrap_socket(plain, server_hostname="peer")
            except BaseException:
                plain.close()
                raise
            self.exporter = _exporter(keylog.read_text(), self.socket)
        finally:
            keylog.unlink()
        self.papers = papers
        self.peer: PeerId = _peer_of(self.socket)
        self._buffer = bytearray()
        self.last = Frame(type=0)
        """The frame that came last: its run, lineage and epoch are the peer's."""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """OSError once the other end has had enough."""
        self.socket.sendall(data)

    def frames(self, patience_s: float = PATIENCE_S) -> Iterator[Frame]:
        """What comes, until the end of the connection or of our patience."""
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            while len(self._buffer) >= HEADER.size:
                fields = HEADER.unpack_from(self._buffer)
                end = HEADER.size + fields[3]
                if len(self._buffer) < end:
                    break
                payload = bytes(self._buffer[HEADER.size : end])
                del self._buffer[:end]
                self.last = Frame(
                    type=fields[1], flags=fields[2], payload=payload, run=fields[4],
                    lineage=fields[5], epoch=fields[6], round=fields[7], attempt=fields[8],
                    tag=fields[9], sequence=fields[10],
                )  # fmt: skip
                yield self.last
            self.socket.settimeout(min(left, 1.0))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            self._buffer += data

    def messages(self, patience_s: float = PATIENCE_S) -> Iterator[bytes]:
        """Whole messages of the layer above; heartbeats are answered meanwhile."""
        partial: dict[int, bytes] = {}
        for frame in self.frames(patience_s):
            if frame.type == PROBE:
                ack = Frame(
                    type=PROBE_ACK, payload=frame.payload, flags=frame.flags, attempt=1,
                    sequence=frame.sequence,
                )  # fmt: skip
                self.send(ack.encode())
            elif frame.type == REFUSE:
                raise ConnectError(frame.payload.decode(errors="replace"), phase="refused")
            elif frame.type == MESSAGE:
                whole = partial.pop(frame.tag, b"") + frame.payload
                if frame.flags & 1:
                    partial[frame.tag] = whole
                else:
                    yield whole

    def admit(self) -> Admitted:
        """The handshake of admission as a guest with papers makes it. ConnectError: refused."""
        admission = Admission(
            self.papers.identity,
            inbound=False,
            peer=self.peer,
            exporter=self.exporter,
            hello=Hello(name=self.papers.name),
            run=self.papers.run,
            now=time.time(),
            invite=self.papers.invite,
        )
        for payload in self.messages():
            for answer in admission.receive(payload):
                self.send(message_frames(answer, 0))
            if isinstance(admission.verdict, Admitted):
                return admission.verdict
            if admission.verdict is not None:
                raise ConnectError(admission.verdict.says, phase="admission")
        raise ConnectError("the connection ended before admission", phase="admission")

    def ended(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether the other end closes the connection in time."""
        until = time.monotonic() + patience_s
        with contextlib.suppress(OSError):
            for _ in self.frames(patience_s):
                pass
        return time.monotonic() < until


def _peer_of(tls: ssl.SSLSocket) -> PeerId:
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    public = certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return peer_id(public)


def _exporter(log: str, tls: ssl.SSLSocket) -> bytes:
    """EXPORTER-Channel-Binding with an empty context, 32 bytes (RFC 9266)."""
    secret = next(
        line.split()[2] for line in log.splitlines() if line.startswith("EXPORTER_SECRET")
    )
    cipher = (tls.cipher() or ("",))[0]
    algorithm: HashAlgorithm = SHA384() if cipher.endswith("SHA384") else SHA256()
    empty = hashlib.new(algorithm.name, b"").digest()
    size = algorithm.digest_size
    derived = _expand(bytes.fromhex(secret), b"EXPORTER-Channel-Binding", empty, size, algorithm)
    return _expand(derived, b"exporter", empty, 32, algorithm)


def _expand(
    secret: bytes, label: bytes, context: bytes, length: int, algorithm: HashAlgorithm
) -> bytes:
    """HKDF-Expand-Label."""
    full = b"tls13 " + label
    info = struct.pack(">H", length) + bytes([len(full)]) + full + bytes([len(context)]) + context
    return HKDFExpand(algorithm, length, info).derive(secret)
