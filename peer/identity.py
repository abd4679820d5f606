"""Who a peer is: an Ed25519 key. The peer id *is* the public key, so nobody hands out names."""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from decentral.errors import ConfigError
from decentral.peer.files import create_exclusive, read_private
from decentral.types import PeerId, peer_id

_MAX_FILE_BYTES = 4096


class Identity:
    """An Ed25519 key pair: a peer's, a run authority's or an invite's."""

    def __init__(self, seed: bytes) -> None:
        """From the 32-byte private seed (RFC 8032)."""
        if len(seed) != 32:
            raise ValueError(f"an Ed25519 seed has 32 bytes, not {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = bytes(seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.peer_id: PeerId = peer_id(self.public)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"  # never the seed: this may reach a log

    @property
    def seed(self) -> bytes:
        """The private key as 32 bytes, for the native endpoint. Secret."""
        return self._seed

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature (64 bytes)."""
        return self._key.sign(message)

    @classmethod
    def generate(cls) -> Identity:
        """A new key from the system's randomness."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file (PKCS #8 PEM). ConfigError if it is missing, loose or none of ours."""
        try:
            data = read_private(path, max_bytes=_MAX_FILE_BYTES)
        except FileNotFoundError:
            raise ConfigError(f"there is no key file {path}") from None
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(
                f"{path} is not a key file (PEM): restore it, or move it away for a new identity"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} holds a key of another kind than Ed25519")
        return cls(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    def save_new(self, path: Path) -> bool:
        """Write the key to a file that does not exist yet (0600); False if it does."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return create_exclusive(path, pem)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The key in the file, made first if there is none. Two starters get the same one."""
        if not path.exists():
            cls.generate().save_new(path)
        return cls.load(path)


def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Did the holder of `public` sign `message`? False, too, for malformed input."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
