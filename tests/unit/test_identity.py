"""Keys: made once, private, and the same after every restart."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError, DiskError
from decentral.peer.identity import Identity, verify_signature
from decentral.types import peer_id, raw_id


def test_peer_id_is_the_public_key() -> None:
    me = Identity(bytes(32))
    # RFC 8032: the public key of the all-zero seed.
    assert me.public.hex() == "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    assert me.peer_id.startswith("peer:") and len(me.peer_id) == 57
    assert raw_id(me.peer_id) == me.public
    assert "seed" not in repr(me) and bytes(32).hex() not in repr(me)


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_convert_both_ways(raw: bytes) -> None:
    assert raw_id(peer_id(raw)) == raw


@given(st.text(max_size=80))
def test_anything_else_is_no_peer_id(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert peer_id(raw_id(text)) == text


def test_a_peer_id_has_one_spelling() -> None:
    good = peer_id(bytes(range(32)))
    last = "abcdefghijklmnopqrstuvwxyz234567"
    twin = good[:-1] + last[last.index(good[-1]) ^ 1]  # differs in bits that decoding drops
    for bad in (good.upper(), good[5:], good + "=", twin, "peer:" + good):
        with pytest.raises(ValueError, match="not a peer id"):
            raw_id(bad)


def test_signatures() -> None:
    me, other = Identity.generate(), Identity.generate()
    signature = me.sign(b"message")
    assert verify_signature(me.public, b"message", signature)
    assert not verify_signature(me.public, b"another", signature)
    assert not verify_signature(other.public, b"message", signature)
    assert not verify_signature(b"short", b"message", signature)
    assert not verify_signature(me.public, b"message", b"short")


def test_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    before = os.umask(0)
    try:
        me = Identity.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path).seed == me.seed
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    me = Identity.load_or_create(path)
    assert not Identity.generate().save_new(path)
    assert Identity.load(path).seed == me.seed
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_loose_key_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 32, b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"x"])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a key file"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    other = Ed448PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="another kind than Ed25519"):
        Identity.load(path)


def test_missing_places_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no key file"):
        Identity.load(tmp_path / "none")
    with pytest.raises(DiskError, match=r"cannot create .*No such file"):
        Identity.load_or_create(tmp_path / "no directory" / "identity.key")
