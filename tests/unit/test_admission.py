"""The handshake: who gets in, and which sentence the others get."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import (
    ConfigError,
    CredentialError,
    DecentralError,
    ProtocolError,
    RefusedError,
    SelfJoinError,
    VersionMismatchError,
)
from decentral.peer import packing
from decentral.peer.admission import (
    MAX_TOTAL_BYTES,
    NEEDS_INVITE,
    Admission,
    Admitted,
    Hello,
    Refused,
    RunContext,
)
from decentral.peer.credential import RunAuthority, issue
from decentral.peer.identity import Identity
from decentral.peer.joinword import Invite, mint_invite

NOW = 1_800_000_000.0
HOUR = 3600
EXPORTER = b"e" * 32
AUTHORITY = RunAuthority(Identity(b"a" * 32))
ALICE, BOB, EVE = (Identity(c * 32) for c in (b"A", b"B", b"E"))


def member(who: Identity, **options: object) -> RunContext:
    chain = AUTHORITY.issue(who.public, now=NOW, **options)  # type: ignore[arg-type]
    return RunContext(authority=AUTHORITY.public, chain=chain)


def end(
    me: Identity, peer: Identity, run: RunContext | None, *, inbound: bool,
    now: float = NOW, exporter: bytes = EXPORTER, invite: Invite | None = None, observed: str = "",
) -> Admission:  # fmt: skip
    hello = Hello(name=f"name-{me.seed[0]}", addresses=("h:1", "[::1]:2"), fingerprint=b"f" * 32)
    return Admission(
        me, inbound=inbound, peer=peer.peer_id, exporter=exporter, hello=hello, run=run, now=now,
        invite=invite, observed=observed,
    )  # fmt: skip


def shake(dialer: Admission, responder: Admission) -> None:
    """Deliver until nobody has anything to say, as a link would."""
    queues = {id(dialer): responder.start(), id(responder): dialer.start()}
    for _ in range(10):
        for me, other in ((dialer, responder), (responder, dialer)):
            messages, queues[id(me)] = queues[id(me)], []
            for message in messages:
                queues[id(other)] += me.receive(message)


def admitted(admission: Admission) -> Admitted:
    assert isinstance(admission.verdict, Admitted), admission.verdict
    return admission.verdict


def refused(admission: Admission, kind: type[DecentralError], *, phase: str = "admission") -> str:
    assert isinstance(admission.verdict, Refused), admission.verdict
    error = admission.verdict.error
    assert type(error) is kind and error.peer is not None and error.phase == phase
    return admission.verdict.says


def test_two_members() -> None:
    bob = end(BOB, ALICE, member(BOB), inbound=False, observed="198.51.100.1:1")
    alice = end(ALICE, BOB, member(ALICE, role="relay"), inbound=True, observed="203.0.113.9:5")
    shake(bob, alice)
    seen = admitted(bob)
    assert (seen.peer, seen.name, seen.role) == (ALICE.peer_id, "name-65", "relay")
    assert seen.addresses == ("h:1", "[::1]:2") and seen.fingerprint == b"f" * 32
    assert seen.observed == "203.0.113.9:5" and seen.run.run == AUTHORITY.run
    assert admitted(alice).peer == BOB.peer_id and admitted(alice).observed == "198.51.100.1:1"


def test_a_joiner_with_an_invite() -> None:
    invite = mint_invite(AUTHORITY.key, (), now=NOW)
    run = RunContext(authority=invite.authority, chain=invite.credential_for(BOB.public, now=NOW))
    bob = end(BOB, ALICE, run, inbound=False, invite=invite)
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    shake(bob, alice)
    assert admitted(alice).role == "train" and admitted(bob).role == "train"


def test_no_secret_crosses_the_wire() -> None:
    invite = mint_invite(AUTHORITY.key, (), now=NOW)
    run = RunContext(authority=invite.authority, chain=invite.credential_for(BOB.public, now=NOW))
    bob = end(BOB, ALICE, run, inbound=False, invite=invite)
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    wire = alice.start()
    wire += bob.receive(wire[0])
    wire += alice.receive(wire[1])
    assert len(wire) == 3
    for secret in (invite.seed, BOB.seed, ALICE.seed, AUTHORITY.key.seed):
        assert not any(secret in message for message in wire)
    assert b"name-" not in wire[0] and b"h:1" not in wire[0]  # nothing of that for strangers


def test_an_open_run_admits_anybody() -> None:
    alice = end(ALICE, BOB, replace(member(ALICE), open=True), inbound=True)
    bob = end(BOB, ALICE, None, inbound=False)
    shake(bob, alice)
    run = admitted(bob).run
    assert run.run == AUTHORITY.run and run.open and run.chain == ()
    assert admitted(alice).role == "train"
    # … and who came in without a chain is an entry for the next one.
    eve, bob = end(EVE, BOB, None, inbound=False), end(BOB, EVE, run, inbound=True)
    shake(eve, bob)
    assert admitted(eve).run.run == AUTHORITY.run and admitted(bob).peer == EVE.peer_id


def test_a_bare_address_of_a_closed_run() -> None:
    alice, bob = (
        end(ALICE, BOB, member(ALICE), inbound=True),
        end(BOB, ALICE, None, inbound=False),
    )
    shake(bob, alice)
    assert refused(bob, CredentialError) == NEEDS_INVITE


def test_a_stranger_who_insists_is_told_the_same() -> None:
    alice = end(ALICE, EVE, member(ALICE), inbound=True)
    eve = end(EVE, ALICE, RunContext(authority=AUTHORITY.public), inbound=False)
    shake(eve, alice)
    assert refused(alice, CredentialError) == NEEDS_INVITE
    assert eve.verdict is None


def test_an_impostor_cannot_pose_as_an_open_run() -> None:
    """Bob has an invite to a closed run; Eve answers at the address."""
    eve = end(EVE, BOB, RunContext(authority=AUTHORITY.public, open=True), inbound=True)
    bob = end(BOB, EVE, member(BOB), inbound=False)
    shake(bob, eve)
    assert "cannot show that it belongs to this run" in refused(bob, CredentialError)
    assert eve.verdict is None


def test_self() -> None:
    for inbound in (False, True):
        me = end(ALICE, ALICE, member(ALICE), inbound=inbound)
        assert me.start() == []
        assert "leads back to this very peer" in refused(me, SelfJoinError)


def test_foreign_run() -> None:
    other = RunAuthority(Identity(b"o" * 32))
    theirs = RunContext(authority=other.public, chain=other.issue(ALICE.public, now=NOW))
    alice, bob = (
        end(ALICE, BOB, theirs, inbound=True),
        end(BOB, ALICE, member(BOB), inbound=False),
    )
    shake(bob, alice)
    says = refused(bob, CredentialError)
    assert f"is of run {other.run.hex()[:8]}, not {AUTHORITY.run.hex()[:8]}" in says


def test_the_responder_checks_the_run_too() -> None:
    other = RunAuthority(Identity(b"o" * 32))
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    alice.start()
    hello = ["bob", [], b"", ""]
    alice.receive(packing.pack(["a/present", other.run, hello, b"\x93", bytes(64), b""]))
    assert f"is of run {other.run.hex()[:8]}, not" in refused(alice, CredentialError)


def test_stale_and_revoked() -> None:
    for run_of_bob, run_of_alice, says in (
        (member(BOB, valid_s=HOUR), member(ALICE), "expired 4 h ago"),
        (member(BOB), replace(member(ALICE), revoked={BOB.public: {AUTHORITY.public}}), "revoked"),
    ):
        bob = end(BOB, ALICE, run_of_bob, inbound=False)
        alice = end(ALICE, BOB, run_of_alice, inbound=True, now=NOW + 5 * HOUR)
        shake(bob, alice)
        assert says in refused(alice, CredentialError)
        assert bob.verdict is None  # told by the endpoint's refusal


def test_revocation_holds_in_open_runs() -> None:
    run = RunContext(
        authority=AUTHORITY.public, open=True, revoked={EVE.public: {AUTHORITY.public}}
    )
    alice, eve = end(ALICE, EVE, run, inbound=True), end(EVE, ALICE, None, inbound=False)
    shake(eve, alice)
    assert "revoked" in refused(alice, CredentialError)


def test_a_stolen_chain_is_worth_nothing() -> None:
    eve = end(EVE, ALICE, member(BOB), inbound=False)  # Bob's chain
    alice = end(ALICE, EVE, member(ALICE), inbound=True)
    shake(eve, alice)
    assert "made out to" in refused(alice, CredentialError)


def test_a_replayed_proof_is_worth_nothing() -> None:
    bob = end(BOB, ALICE, member(BOB), inbound=False)
    (offer,) = end(ALICE, BOB, member(ALICE), inbound=True).start()
    (present,) = bob.receive(offer)
    elsewhere = end(ALICE, BOB, member(ALICE), inbound=True, exporter=b"x" * 32)
    elsewhere.start()
    elsewhere.receive(present)
    assert "did not sign for this very link" in refused(elsewhere, CredentialError)


def test_an_invite_proof_by_another_key() -> None:
    invite = mint_invite(AUTHORITY.key, (), now=NOW)
    other = Invite(seed=EVE.seed, chain=(issue(EVE, AUTHORITY.run, EVE.public, now=NOW),))
    run = RunContext(authority=invite.authority, chain=invite.credential_for(BOB.public, now=NOW))
    bob = end(BOB, ALICE, run, inbound=False, invite=other)
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    shake(bob, alice)
    assert "the invite's proof is wrong" in refused(alice, CredentialError)


def test_other_versions_are_said() -> None:
    bob = end(BOB, ALICE, member(BOB), inbound=False)
    bob.receive(packing.pack(["a/offer", 7, "whatever", "a later version", "puts here"]))
    assert "speaks version 7" in refused(bob, VersionMismatchError)


def test_a_responder_without_a_run() -> None:
    alice = end(ALICE, BOB, None, inbound=True)
    assert alice.start() == []
    assert "still looking for a run" in refused(alice, RefusedError)


def test_bytes_are_bounded() -> None:
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    alice.start()
    assert alice.receive(bytes(MAX_TOTAL_BYTES + 1)) == []
    assert "before admission" in refused(alice, ProtocolError)


def test_nothing_after_the_verdict() -> None:
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    alice.start()
    alice.receive(b"nonsense")
    verdict = alice.verdict
    assert isinstance(verdict, Refused)
    assert alice.receive(b"more") == [] and alice.verdict is verdict


def test_an_odd_observed_address_is_left_out() -> None:
    bob = end(BOB, ALICE, member(BOB), inbound=False, observed="what?")
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    shake(bob, alice)
    assert admitted(alice).observed == ""


@pytest.mark.parametrize(
    "hello", [{"name": "x" * 65}, {"name": "\x1b[2J"}, {"name": "n", "addresses": ("nowhere",)}]
)
def test_a_bad_introduction_is_found_at_home(hello: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Hello(**hello)  # type: ignore[arg-type]


def test_a_bad_name_from_outside() -> None:
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    alice.start()
    hello = ["\x1b[2Jboo", [], b"", ""]
    alice.receive(packing.pack(["a/present", AUTHORITY.run, hello, b"", bytes(64), b""]))
    assert "unprintable" in refused(alice, ProtocolError)


leaf = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=5), max_leaves=12)


@given(
    st.sampled_from([b"", b"offer", b"present"]),
    st.binary(max_size=300)
    | st.tuples(st.sampled_from(["a/offer", "a/present", "a/welcome"]), st.lists(value)).map(
        lambda pair: packing.pack([pair[0], *pair[1]])
    )
    | st.lists(value, max_size=4).map(lambda rest: packing.pack(["a/offer", 1, *rest])),
)
def test_garbage_is_refused(stage: bytes, payload: bytes) -> None:
    bob = end(BOB, ALICE, member(BOB), inbound=False)
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    target = alice if stage == b"present" else bob
    offer = alice.start()[0]
    if stage == b"offer":
        bob.receive(offer)
    target.receive(payload)
    assert isinstance(target.verdict, Refused)
    assert isinstance(target.verdict.error, DecentralError)


@given(st.data())
def test_one_flipped_byte_never_admits(data: st.DataObject) -> None:
    """Every byte of the offer, and of what proves the dialer, matters."""
    alice = end(ALICE, BOB, member(ALICE), inbound=True)
    bob = end(BOB, ALICE, member(BOB), inbound=False)
    offer = bytearray(alice.start()[0])
    at = data.draw(st.integers(0, len(offer) - 1))
    offer[at] ^= data.draw(st.integers(1, 255))
    replies = bob.receive(bytes(offer))
    # The open flag alone may differ: Bob knows that his run is closed, and ignores it.
    assert isinstance(bob.verdict, Refused) or (replies and offer[at] in (0xC2, 0xC3))
