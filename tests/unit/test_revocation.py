"""Revocations: who may say what about whom, and what becomes of a full or hostile list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import CredentialError, ProtocolError, StateError
from decentral.peer import packing, revocation
from decentral.peer.credential import Chain, RunAuthority, hit, issue
from decentral.peer.identity import Identity
from decentral.peer.revocation import Revocations, Statement, check, state, unpack

NOW = 1_800_000_000.0
AUTHORITY = RunAuthority(Identity(b"a" * 32))
ALICE, BOB, EVE = (Identity(c * 32) for c in (b"A", b"B", b"E"))
ALICES = AUTHORITY.issue(ALICE.public, now=NOW)
BOBS: Chain = (
    *ALICES,
    issue(ALICE, AUTHORITY.run, BOB.public, now=NOW, can_invite=True),
)
EVES = AUTHORITY.issue(EVE.public, now=NOW)


def by_authority(target: bytes, **more: object) -> Statement:
    options = {"now": NOW, **more}
    return state(AUTHORITY.key, (), AUTHORITY.run, target, **options)  # type: ignore[arg-type]


def by(who: Identity, chain: Chain, target: bytes) -> Statement:
    return state(who, chain, AUTHORITY.run, target, now=NOW)


def listed(*statements: Statement) -> Revocations:
    made = Revocations(AUTHORITY.public)
    for one in statements:
        made.add(one.pack(), NOW)
    return made


def out(chain: Chain, known: Revocations) -> bool:
    return hit(chain, AUTHORITY.public, known.revoked)


def test_round_trip() -> None:
    statement = by(ALICE, ALICES, BOB.public)
    assert unpack(statement.pack()) == statement
    assert len(statement.pack()) <= revocation.MAX_STATEMENT_BYTES
    check(statement, AUTHORITY.public, NOW)


def test_the_authority_can_revoke_anybody_and_all_below_go_too() -> None:
    known = listed(by_authority(ALICE.public))
    assert out(ALICES, known) and out(BOBS, known) and not out(EVES, known)
    known = listed(by_authority(BOBS[1].serial))
    assert out(BOBS, known) and not out(ALICES, known)


def test_an_inviter_can_revoke_those_below_it_only() -> None:
    assert out(BOBS, listed(by(ALICE, ALICES, BOB.public)))
    known = listed(by(EVE, EVES, BOB.public), by(EVE, EVES, ALICE.public))
    assert not out(BOBS, known) and not out(ALICES, known)
    assert not out(ALICES, listed(by(BOB, BOBS, ALICE.public)))


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (replace(by_authority(BOB.public), target=EVE.public), "signature is wrong"),
        (by_authority(BOB.public, now=NOW + 10_000), "of the future"),
        (state(EVE, (), AUTHORITY.run, BOB.public, now=NOW), "there is none"),
        (by(EVE, ALICES, BOB.public), "made out to"),
        (by(EVE, AUTHORITY.issue(EVE.public, now=NOW, can_invite=False), BOB.public), "not invite"),
        (state(AUTHORITY.key, (), b"r" * 32, BOB.public, now=NOW), "is of run"),
    ],
)
def test_what_nobody_may_say(statement: Statement, says: str) -> None:
    known = Revocations(AUTHORITY.public)
    with pytest.raises(CredentialError, match=says):
        known.add(statement.pack(), NOW)
    assert not known.revoked and len(known) == 0


def test_an_expired_inviters_word_still_holds() -> None:
    chain = AUTHORITY.issue(ALICE.public, now=NOW, valid_s=3600)
    known = Revocations(AUTHORITY.public)
    assert known.add(by(ALICE, chain, BOB.public).pack(), NOW + 1e6) is not None


def test_two_peers_end_with_the_same_list_in_any_order() -> None:
    said = [
        by(ALICE, ALICES, BOB.public),
        by(BOB, BOBS, EVE.public),
        by_authority(EVE.public),
        by_authority(ALICE.public),
    ]
    one, other = listed(*said), listed(*reversed(said))
    assert one.digest() == other.digest() and one.revoked == other.revoked
    assert set(one.revoked) == {EVE.public, ALICE.public}, "what the revoked said is superfluous"
    assert one.digest() != listed(*said[:1]).digest()


def test_members_cannot_fill_the_authoritys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "MAX_BY_OTHERS", 3)
    known = listed(*(by(EVE, EVES, bytes([n]) * 32) for n in range(5)))
    assert len(known) == 3
    assert known.add(by_authority(EVE.public).pack(), NOW) is not None
    assert len(known) == 1, "the rogue's own words went with it"
    assert known.add(by(ALICE, ALICES, BOB.public).pack(), NOW) is not None


def test_said_twice_is_no_news() -> None:
    known = listed(by_authority(BOB.public))
    assert known.add(by_authority(BOB.public, now=NOW + 5, reason="again").pack(), NOW) is None
    assert len(known) == 1


def test_on_disk() -> None:
    known = listed(by_authority(ALICE.public), by(EVE, EVES, b"x" * 16))
    again = Revocations.load(known.pack(), AUTHORITY.public, NOW)
    assert again.digest() == known.digest() and again.revoked == known.revoked
    with pytest.raises(StateError, match="damaged"):
        Revocations.load(known.pack()[:-1], AUTHORITY.public, NOW)
    forged = replace(by_authority(BOB.public), target=EVE.public).pack()
    with pytest.raises(StateError, match="damaged"):
        Revocations.load(packing.pack([1, [forged]]), AUTHORITY.public, NOW)
    other = RunAuthority(Identity(b"f" * 32))
    assert len(Revocations.load(known.pack(), other.public, NOW)) == 0, "of a run that was left"


def test_messages() -> None:
    known = listed(*(by_authority(bytes([n]) * 32) for n in range(70)))
    messages = known.messages()
    assert len(messages) == 3 and all(revocation.is_revocation(one) for one in messages)
    again = Revocations(AUTHORITY.public)
    for message in messages:
        for one in revocation.read(message):
            again.add(bytes(one), NOW)  # type: ignore[call-overload]
    assert again.digest() == known.digest()
    digest = revocation.read(revocation.have(known.digest()))
    assert digest == known.digest() and revocation.is_revocation(revocation.have(digest))
    for other in (b"", packing.pack(["hi", 1]), packing.pack(["x/pin", 1, b""])):
        assert not revocation.is_revocation(other)


@given(st.binary(max_size=400))
def test_hostile_bytes(data: bytes) -> None:
    for read in (unpack, revocation.read):
        try:
            read(data)
        except ProtocolError as error:
            assert error.says


@given(
    st.integers(0, 7),
    st.one_of(st.none(), st.integers(), st.binary(max_size=40), st.text(max_size=300), st.just([])),
)
def test_hostile_fields(position: int, value: object) -> None:
    fields = packing.unpack(by(ALICE, ALICES, BOB.public).pack(), max_bytes=4096)
    fields[position] = value
    known = Revocations(AUTHORITY.public)
    try:
        known.add(packing.pack(fields), NOW)
    except (ProtocolError, CredentialError, OverflowError) as error:
        assert str(error)


def test_a_huge_one_is_not_even_parsed() -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        Revocations(AUTHORITY.public).add(bytes(revocation.MAX_STATEMENT_BYTES + 1), NOW)
