"""What an admitted peer, a guest or a stranger may say without anybody coming to harm; and that the
attacks themselves would notice if it did."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from decentral import _native
from decentral.churn.hostile import wire
from decentral.churn.hostile.callers import attack_calls
from decentral.churn.hostile.cores import attack_cores, scene
from decentral.churn.hostile.forgery import KINDS, Forger
from decentral.churn.hostile.guests import attack_admission, attack_transfer
from decentral.churn.hostile.middleman import at_record, tampers
from decentral.churn.hostile.mutations import Mutator
from decentral.churn.hostile.replays import attack_with_replays
from decentral.churn.hostile.small_mesh import SmallMesh
from decentral.churn.hostile.wire import Frame, Papers, Wire
from decentral.errors import ProtocolError
from decentral.peer import messages as m
from decentral.peer.calls.callee import Callee
from decentral.peer.entries import encode_entry, unpack_any
from decentral.peer.fields import MAX_INT, MAX_MEMBERS, MAX_U32
from decentral.peer.member import ALIVE, DEAD, SUSPECT
from decentral.peer.membership import Membership
from decentral.peer.protocol import PauseEntry, Received
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState
from decentral.types import PeerId

# ------------------------------------------------------------------ one message, and rounds go on


class Hostile:
    """A mesh of five whose third member says something to all others."""

    def __init__(self) -> None:
        self.mesh = SmallMesh(5, 1)
        assert self.mesh.settle(3)
        self.me = list(self.mesh.seats)[2]
        self.mesh.protected = self.me

    @property
    def state(self) -> LogState:
        state = self.mesh.seats[self.me].core.replica.state
        assert state is not None
        return state

    def forge(self, kind: type[Any], **fields: Any) -> Any:
        return replace(Forger(Random(1), scene(self.mesh, self.me)).message(kind), **fields)

    def tell_all(self, *said: Any) -> None:
        for message in said:
            payload = message if isinstance(message, bytes) else m.pack(message)
            for peer in self.mesh.seats:
                if peer != self.me:
                    self.mesh.give(peer, Received(self.me, payload))
            self.mesh.run()


def _here(h: Hostile) -> tuple[str, int]:
    return h.state.view.lineage, h.state.slot


def _offer(h: Hostile, **fields: Any) -> Any:
    lineage, slot = _here(h)
    return h.forge(m.Offer, lineage=lineage, slot=slot, unlinked=(), **fields)


def _gossip(h: Hostile, boot_seq: int, incarnation: int, state: int) -> m.Gossip:
    rows = (m.Update(p, boot_seq, incarnation, state, "x", "x:1") for p in h.state.view.members)
    return m.Gossip(tuple(rows))


ABSURD: dict[str, Callable[[Hostile], Any]] = {
    "ballot": lambda h: m.Prepare(*_here(h), (MAX_INT, h.me)),
    "fork's ballot": lambda h: m.ForkPrepare(*_here(h), (MAX_INT, h.me), h.state.view.members),
    "promised ballot": lambda h: m.Nack(*_here(h), (0, h.me), (MAX_INT, h.me)),
    "attempt that was seen": lambda h: _offer(h, attempt_seen=MAX_U32),
    "attempt that failed": lambda h: m.Failed(_here(h)[0], "", 4, 1, MAX_U32, None, "x"),
    "attempt": lambda h: h.forge(
        m.Start, lineage=_here(h)[0], slot=_here(h)[1], attempt=MAX_U32, round=4
    ),
    "incarnation": lambda h: _gossip(h, 1, MAX_U32, SUSPECT),
    "number of starts": lambda h: _gossip(h, MAX_U32, 0, ALIVE),
    "suspected incarnation": lambda h: m.PingReq(h.state.view.members[0], 1, MAX_U32),
    "slot": lambda h: m.Commit(
        h.state.view.lineage, MAX_INT, encode_entry(PauseEntry(paused=True, reason="x"))
    ),
    "tokens of another lineage": lambda h: h.forge(
        m.Hello, lineage="00112233aabbccdd", samples=MAX_INT, member=True, boot_seq=1,
        boot=h.mesh.seats[h.me].core.ctx.boot,
    ),
    "fence": lambda h: m.Refuse("another process", h.mesh.seats[h.me].core.ctx.boot),
    # By hand: who packs a state in this process also knows it when it comes.
    "log state that does not say who entered when": lambda h: msgpack.packb(
        ["s", msgpack.packb(replace(h.state, slot=h.state.slot + 1, entered=()).put()), None, []]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(ABSURD))
def test_one_absurd_claim_does_not_stop_the_others(what: str) -> None:
    h = Hostile()
    h.tell_all(ABSURD[what](h))
    assert h.mesh.settle(10, most_s=20.0), h.mesh.round()
    assert not [seat.ended for seat in h.mesh.seats.values() if seat.ended]
    assert not h.mesh.violations


def test_tokens_that_would_not_fit_into_a_log_state_are_refused() -> None:
    h = Hostile()
    with pytest.raises(ProtocolError):
        m.unpack(m.pack(_offer(h, tokens=MAX_INT)))


def test_a_fence_takes_two_voices() -> None:
    h = Hostile()
    victim, other = [peer for peer in h.mesh.seats if peer != h.me][:2]
    seat = h.mesh.seats[victim]
    fence = m.pack(m.Refuse("another process", seat.core.ctx.boot))
    for _ in range(3):
        h.mesh.give(victim, Received(h.me, fence))
        h.mesh.run()
    assert not seat.ended and seat.faults["refused"] == 3
    h.mesh.give(victim, Received(other, fence))
    h.mesh.run()
    assert "identity" in seat.ended


def test_guests_have_no_say() -> None:
    """Linked, greeted, but no member: neither a wish nor an accusation of its counts."""
    h = Hostile()
    guest: PeerId = "peer:" + "b" * 52
    members = h.state.view.members
    lineage, slot = _here(h)
    for peer in members:
        core = h.mesh.seats[peer].core
        core.greeting.link_up(guest, "guest", "g:1")
        core.ctx.links[guest].hello = h.forge(m.Hello, member=False, lineage="")
        for said in (
            m.Wish("pause", 0, "x", ""),
            *(m.Stuck(lineage, slot, one) for one in members),
            _gossip(h, 1, 1, DEAD),
            replace(_offer(h), unlinked=members[:1]),
            m.Failed(lineage, "", 4, 1, MAX_U32, None, "x"),
        ):
            h.mesh.give(peer, Received(guest, m.pack(said)))
    h.mesh.run()
    for _ in range(40):
        h.mesh.step(0.25)
    assert h.mesh.settle(3)
    assert h.state.view.members == members and not h.state.paused
    for peer in members:
        assert h.mesh.seats[peer].core.membership.living(members) == set(members)


def test_a_flood_of_names_fills_neither_memory_nor_the_record() -> None:
    h = Hostile()
    names = ["peer:" + f"{n:07d}".translate(str.maketrans("0189", "abcd")).ljust(52, "a")
             for n in range(3 * MAX_MEMBERS)]  # fmt: skip
    for at in range(0, len(names), MAX_MEMBERS):
        rows = (m.Update(n, 1, 0, ALIVE, "x", "x:1") for n in names[at : at + MAX_MEMBERS])
        h.tell_all(m.Gossip(tuple(rows)))
    for peer, seat in h.mesh.seats.items():
        if peer != h.me:
            assert len(seat.core.membership.members) <= MAX_MEMBERS
            told = {one for one, _, _ in seat.core.membership.addresses()}
            assert len(told) <= MAX_MEMBERS and set(h.state.view.members) <= told


def test_what_an_array_announces_is_not_believed() -> None:
    for payload in (
        b"\xdd\x00\x1f\xff\xff" * 1000,
        b"\x81\xa1a\x01",
        b"\xc7\x01\x07x",
        b"\x91" * 100_000,
    ):
        with pytest.raises(ProtocolError):
            unpack_any(payload)


# ------------------------------------------------------------------ many messages


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_message_can_be_forged(kind: type[Any]) -> None:
    h = Hostile()
    forger = Forger(Random(1), scene(h.mesh, h.me))
    for _ in range(20):
        assert isinstance(m.unpack(forger.payload(kind)), kind)


def test_mutations_are_mostly_wrong_and_seeded() -> None:
    h = Hostile()
    payload = m.pack(_offer(h))

    def mutated() -> list[bytes]:
        mutate = Mutator(Random(4))
        return [mutate(payload, payload) for _ in range(300)]

    assert mutated() == mutated()
    wrong = 0
    for one in mutated():
        try:
            m.unpack(one)
        except ProtocolError:
            wrong += 1
    assert 150 < wrong < 300


def test_nothing_raises_and_nothing_stale_counts() -> None:
    cores = attack_cores(2500, 5)
    assert not cores.raised and 500 < cores.refused < 2000
    assert set(cores.sent) == {kind.__name__ for kind in KINDS}
    again = attack_with_replays(1000, 5)
    assert not again.accepted and again.rounds > 10


def test_admission_and_transfers_take_no_nonsense() -> None:
    admission = attack_admission(150, 5)
    assert not admission.raised and admission.refused > 100
    transfer = attack_transfer(2000, 5)
    assert not transfer.raised and transfer.refused > 500


def test_calls_take_no_nonsense() -> None:
    calls = attack_calls(5000, 5)
    assert not calls.raised and 2000 < calls.refused < 4500 and len(calls.sent) == 6


def test_the_attacks_notice_a_callee_that_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Callee._call

    def trusts(callee: Callee, peer: PeerId, guest: Any, call: Any, now: float) -> Any:
        guest.places = 0
        return genuine(callee, peer, guest, call, now)

    monkeypatch.setattr(Callee, "_call", trusts)
    assert any("bytes of memory" in one for one in attack_calls(10_000, 5).raised)


def test_the_attacks_notice_what_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Membership.on_ping_ack

    def fragile(membership: Membership, peer: PeerId, msg: m.PingAck) -> None:
        assert msg.seq < 1000
        genuine(membership, peer, msg)

    monkeypatch.setattr(Membership, "on_ping_ack", fragile)
    found = attack_cores(5000, 5).raised
    assert found and "PingAck" in found[0] and "fragile" in found[0]


def test_the_attacks_notice_what_counts_though_it_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Replica.on_commit

    def believes(replica: Replica, peer: PeerId, msg: m.Commit) -> None:
        genuine(replica, peer, replace(msg, slot=replica.slot, lineage=replica.lineage))

    monkeypatch.setattr(Replica, "on_commit", believes)
    assert attack_with_replays(500, 5).accepted


# ------------------------------------------------------------------ on sockets


@pytest.fixture
def endpoint() -> Iterator[Any]:
    made = _native.Endpoint(bytes([7]) * 32)
    yield made
    made.close()


def events(endpoint: Any, kind: str) -> Any:
    """The next event of this kind."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        select.select([endpoint.event_fd], [], [], 0.5)
        for event in endpoint.take_events():
            if event.type == kind:
                return event
    raise AssertionError(f"no {kind}")


def test_our_exporter_is_the_one_that_the_peer_has(endpoint: Any, tmp_path: Path) -> None:
    port = endpoint.listen("127.0.0.1", 0)
    with Wire(Papers(tmp_path), f"127.0.0.1:{port}") as link:
        up = events(endpoint, "link-up")
        assert up.exporter == link.exporter and up.peer == link.papers.identity.public
    assert events(endpoint, "link-down").error


@pytest.mark.parametrize("words", [b"\xff\xfe nonsense", b"x" * 511 + "é".encode(), b"\xc3"])
def test_last_words_that_are_no_text_reach_python(
    endpoint: Any, tmp_path: Path, words: bytes
) -> None:
    port = endpoint.listen("127.0.0.1", 0)
    with Wire(Papers(tmp_path), f"127.0.0.1:{port}") as link:
        link.send(Frame(type=wire.REFUSE, payload=words).encode())
        kind, phase, peer, says = events(endpoint, "link-down").error
    assert (kind, phase) == ("refused", "admission") and peer and "refused" in says


def test_tampering_changes_one_record() -> None:
    records = [bytes([23, 3, 3, 0, 4, n, n, n, n]) for n in range(5)]
    for name, tamper in tampers(Random(3)).items():
        at = at_record(3, tamper)
        out = [at(records[: n + 1]) for n in range(5)]
        assert [out[n] for n in (0, 1, 3, 4)] == [[records[n]] for n in (0, 1, 3, 4)], name
        assert out[2] != [records[2]], name
