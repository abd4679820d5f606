"""Chains of credentials: every way in which one may fail has its own sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError, CredentialError
from decentral.peer import packing
from decentral.peer.credential import (
    CLOCK_ERROR_S,
    MAX_CHAIN_BYTES,
    Chain,
    RunAuthority,
    issue,
    load_chain,
    pack_chain,
    run_id,
    run_label,
    save_chain,
    span,
    unpack_chain,
    verify,
)
from decentral.peer.identity import Identity
from decentral.types import short

NOW = 1_800_000_000.0
HOUR = 3600
AUTHORITY = RunAuthority(Identity(b"a" * 32))
INVITER, PEER, OTHER = (Identity(c * 32) for c in (b"i", b"p", b"o"))


def chain_to(peer: Identity, *inviters: Identity, **last: object) -> Chain:
    """authority → inviters… → peer."""
    chain: Chain = ()
    signer = AUTHORITY.key
    for subject in inviters:
        link = issue(signer, AUTHORITY.run, subject.public, now=NOW, can_invite=True)
        chain, signer = (*chain, link), subject
    options = {"now": NOW, **last}
    return (*chain, issue(signer, AUTHORITY.run, peer.public, **options))  # type: ignore[arg-type]


def check(chain: Chain, now: float = NOW, **options: object) -> str:
    return verify(chain, AUTHORITY.public, PEER.public, now, **options)  # type: ignore[arg-type]


def refused(chain: Chain, now: float = NOW, **options: object) -> str:
    with pytest.raises(CredentialError) as caught:
        check(chain, now, **options)
    assert caught.value.peer == PEER.peer_id and caught.value.phase == "admission"
    assert caught.value.says.startswith(f"credential of {short(PEER.peer_id)}: ")
    return caught.value.says.partition(": ")[2]


def test_good_chains() -> None:
    assert check(AUTHORITY.issue(PEER.public, now=NOW)) == "train"
    assert check(chain_to(PEER, INVITER)) == "train"
    assert check(chain_to(PEER, INVITER, OTHER, Identity(b"x" * 32))) == "train"
    assert check(chain_to(PEER, INVITER, role="observe")) == "observe"


def test_a_role_does_not_grow() -> None:
    weak = issue(
        AUTHORITY.key, AUTHORITY.run, INVITER.public, now=NOW, role="relay", can_invite=True
    )
    strong = issue(INVITER, AUTHORITY.run, PEER.public, now=NOW, role="train")
    assert "whose role relay cannot give train" in refused((weak, strong))
    lower = issue(INVITER, AUTHORITY.run, PEER.public, now=NOW, role="observe")
    assert check((weak, lower)) == "observe"


def test_time() -> None:
    chain = chain_to(PEER, valid_s=HOUR)
    assert check(chain, NOW + HOUR + CLOCK_ERROR_S - 1) == "train"
    assert refused(chain, NOW + 4 * HOUR) == "expired 3 h ago"
    assert check(chain, NOW - CLOCK_ERROR_S + 1) == "train"
    assert refused(chain, NOW - 2 * HOUR) == "is valid only in 2 h; check the clocks"


def test_an_inviter_that_expired_is_named() -> None:
    old = issue(
        AUTHORITY.key, AUTHORITY.run, INVITER.public, now=NOW, valid_s=HOUR, can_invite=True
    )
    young = issue(INVITER, AUTHORITY.run, PEER.public, now=NOW)
    says = refused((old, young), NOW + 49 * HOUR)
    assert says == f"the one of its inviter {short(INVITER.peer_id)} expired 2 d ago"


def test_another_run() -> None:
    foreign = RunAuthority(Identity(b"f" * 32))
    says = refused(foreign.issue(PEER.public, now=NOW))
    assert (
        says == f"belongs to another run ({run_label(foreign.run)}, not {AUTHORITY.run.hex()[:8]})"
    )


def test_no_right_to_invite() -> None:
    plain = issue(AUTHORITY.key, AUTHORITY.run, INVITER.public, now=NOW, can_invite=False)
    link = issue(INVITER, AUTHORITY.run, PEER.public, now=NOW)
    assert refused((plain, link)) == f"signed by {short(INVITER.peer_id)}, who may not invite"


def test_a_gap_in_the_chain() -> None:
    first = issue(AUTHORITY.key, AUTHORITY.run, INVITER.public, now=NOW, can_invite=True)
    stray = issue(OTHER, AUTHORITY.run, PEER.public, now=NOW)
    says = refused((first, stray))
    assert says == f"signed by {short(OTHER.peer_id)}, not by {short(INVITER.peer_id)} before it"


def test_revoked_by_key_or_serial() -> None:
    chain = chain_to(PEER, INVITER)
    by = {AUTHORITY.public}
    assert refused(chain, revoked={PEER.public: by}) == "revoked"
    assert refused(chain, revoked={chain[1].serial: by}) == "revoked"
    assert "inviter" in refused(chain, revoked={INVITER.public: by})
    assert check(chain, revoked={OTHER.public: by}) == "train"


def test_only_those_above_can_revoke() -> None:
    chain = chain_to(PEER, INVITER)
    assert refused(chain, revoked={PEER.public: {INVITER.public}}) == "revoked"
    assert check(chain, revoked={PEER.public: {OTHER.public}}) == "train"
    assert check(chain, revoked={INVITER.public: {PEER.public}}) == "train", "from below"
    assert check(chain, revoked={PEER.public: {PEER.public}}) == "train"


def test_made_out_to_another() -> None:
    assert "made out to" in refused(chain_to(OTHER))


def test_empty_and_too_deep() -> None:
    assert refused(()) == "there is none"
    deep = chain_to(PEER, *(Identity(bytes([n]) * 32) for n in range(4)))
    assert refused(deep) == "its chain has 5 links, more than 4"


@pytest.mark.parametrize(
    "change",
    [
        {"role": "observe"},
        {"can_invite": True},
        {"not_after": int(NOW) + 10**9},
        {"not_before": 0},
        {"serial": bytes(16)},
        {"signature": bytes(64)},
    ],
)
def test_every_field_is_signed(change: dict[str, object]) -> None:
    (credential,) = chain_to(PEER)
    changed = replace(credential, **change)  # type: ignore[arg-type]
    assert "signature" in refused((changed,))


def test_chains_survive_the_wire() -> None:
    for chain in (chain_to(PEER), chain_to(PEER, INVITER, OTHER), ()):
        packed = pack_chain(chain)
        assert unpack_chain(packed) == chain
        assert len(packed) <= MAX_CHAIN_BYTES


@given(st.binary(max_size=600))
def test_garbage_is_a_credential_error(data: bytes) -> None:
    with pytest.raises(CredentialError, match="cannot be read"):
        unpack_chain(data)


@given(st.data())
def test_damaged_chains_never_pass(data: st.DataObject) -> None:
    packed = bytearray(pack_chain(chain_to(PEER, INVITER)))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CredentialError):
        check(unpack_chain(bytes(packed)))


def test_size_is_capped_before_parsing() -> None:
    with pytest.raises(CredentialError, match="exceeds the limit"):
        unpack_chain(packing.pack(bytes(MAX_CHAIN_BYTES + 1)))
    # Announces 2^32 - 1 items in 5 bytes, at many levels: no memory is reserved for them.
    with pytest.raises(CredentialError, match="cannot be read"):
        unpack_chain(b"\xdd\xff\xff\xff\xff" * 300)


def test_a_newer_version_is_said() -> None:
    with pytest.raises(CredentialError, match="version 9, this peer reads 1"):
        unpack_chain(packing.pack([9, b"", []]))


def test_credential_files(tmp_path: Path) -> None:
    path = tmp_path / "credential"
    chain = chain_to(PEER, INVITER)
    save_chain(path, chain)
    assert load_chain(path) == chain and chain[0].run == run_id(AUTHORITY.public)
    path.write_text(path.read_text().replace("\n", "\r\n"))  # a round trip through Windows mail
    assert load_chain(path) == chain


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello",
        "-----BEGIN DECENTRAL CREDENTIAL-----\n-----END DECENTRAL CREDENTIAL-----",
        "-----BEGIN DECENTRAL CREDENTIAL-----\n!!!!\n-----END DECENTRAL CREDENTIAL-----",
        "-----BEGIN DECENTRAL CREDENTIAL-----\nAAAA\n-----END DECENTRAL CREDENTIAL-----",
        "-----BEGIN DECENTRAL CREDENTIAL-----\nkwHEAJA=\n-----END DECENTRAL CREDENTIAL-----",
        "x" * 100_000,
        "é",
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credential"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not a credential file: "):
        load_chain(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_chain(tmp_path / "none")


def test_the_authority_keeps_its_key(tmp_path: Path) -> None:
    made = RunAuthority.load_or_create(tmp_path / "authority.key")
    again = RunAuthority.load_or_create(tmp_path / "authority.key")
    assert made.run == again.run == run_id(made.public)


def test_spans() -> None:
    assert [span(s) for s in (-1, 5, 65, 3 * HOUR + 5, 50 * HOUR)] == [
        "0 s", "5 s", "1 min", "3 h", "2 d",
    ]  # fmt: skip
