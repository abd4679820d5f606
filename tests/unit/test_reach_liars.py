"""Neighbours that lie or say too much: nobody is worse off than a wasted attempt."""

from __future__ import annotations

from random import Random

import pytest
from reach_world import Host, World

from decentral.errors import ProtocolError
from decentral.peer.reach import actions as a
from decentral.peer.reach import talk
from decentral.peer.reach.callee import CALLS_PER_CARRIER, CALLS_PER_PEER, DIALS_AT_ONCE
from decentral.peer.reach.context import BIRTHDAYS_AT_ONCE
from decentral.peer.reach.nat import Nat
from decentral.peer.reach.service import KNOCKS_AT_ONCE, PASSES_PER_S, RELAYED_PER_PEER
from decentral.peer.reach.ways import BIRTHDAY_SPRAY
from decentral.types import PeerId, peer_id

EVIL = "203.0.113.99:6666"


class Scene:
    """Two honest peers behind NATs, an honest entry, and a liar that is linked to all of them."""

    def __init__(self, kind: str = "port") -> None:
        self.world = World(rtt_s=0.02)
        self.liar, self.entry = self.world.seeds()
        self.one = self.world.join(kind, [self.liar, self.entry])
        self.other = self.world.join(kind, [self.liar, self.entry])

    def passes(self, to: Host, origin: Host, signal: talk.Signal | bytes) -> None:
        """The liar, as a carrier, makes up what somebody else says."""
        packed = signal if isinstance(signal, bytes) else talk.pack(signal)
        self.world.tell(self.liar, to, talk.Pass(to.id, origin.id, packed))

    def links(self, limit_s: float = 10.0) -> float:
        began = self.world.now
        self.world.want(self.one, self.other)
        assert self.world.run(limit_s, lambda: self.world.link(self.one, self.other) is not None), (
            self.one.unreached
        )
        return self.world.now - began


def card(address: str = EVIL, count: int = 1) -> talk.Card:
    found = tuple(f"203.0.113.99:{6666 + n}" for n in range(count))
    nat = Nat(mapping="dependent", filtering="port", address=address)
    return talk.Card(found, "", nat, True, 0.0)


def a_call(nonce: bytes, count: int = 1) -> talk.Call:
    return talk.Call(nonce, card(count=count), ())


def origin(number: int) -> PeerId:
    return peer_id(Random(1000 + number).randbytes(32))


def tried(host: Host, at: str = "203.0.113.99") -> list[a.Connect]:
    return [one for _, one in host.connects if one.way.address.startswith(at)]


# ------------------------------------------------------------------------ lies


def test_a_signal_must_come_from_who_says_it_or_through_a_carrier() -> None:
    scene = Scene()
    with pytest.raises(ProtocolError, match="another origin"):
        scene.entry.reach.handle(
            a.Heard(
                scene.liar.id,
                talk.pack(talk.Pass(scene.one.id, scene.other.id, talk.pack(a_call(bytes(8))))),
            ),
            scene.world.now,
        )


def test_an_unreadable_signal_is_not_the_carriers_fault() -> None:
    """Else anybody could cut links between others."""
    scene = Scene()
    for signal in (b"\xc1", talk.pack(talk.Knock(EVIL)), talk.pack(card())):
        passed = talk.Pass(scene.one.id, scene.liar.id, signal)
        scene.world.tell(scene.liar, scene.entry, passed)
    scene.world.run(1.0)  # what raises here would close the link to the entry
    assert scene.links() < 1.0


def test_a_made_up_call_costs_its_dials_and_delays_our_own_once() -> None:
    scene = Scene()

    def lie() -> None:
        for origin, to in ((scene.other, scene.one), (scene.one, scene.other)):
            scene.passes(to, origin, a_call(scene.world.rng.randbytes(8)))
        scene.world.later(0.5, lie)

    lie()
    assert scene.links() < 8.0
    assert scene.world.kind(scene.one, scene.other) == "punched"


def test_a_made_up_answer_costs_one_attempt() -> None:
    """The carrier knows the nonce."""
    scene = Scene()

    def swap(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        if sender is scene.one and to == scene.liar.id and isinstance(message, talk.Pass):
            signal = talk.unpack(message.signal)
            if isinstance(signal, talk.Call):
                scene.passes(scene.one, scene.other, talk.Answer(signal.nonce, card(), ()))
        return False

    scene.world.loses = swap
    assert scene.links(20.0) < 8.0
    assert all(one.peer == scene.other.id for one in tried(scene.one))
    assert len(tried(scene.one)) <= 4


def test_wrong_nonces_are_nothing() -> None:
    scene = Scene()
    for _ in range(50):
        nonce = scene.world.rng.randbytes(8)
        scene.passes(scene.one, scene.other, talk.Answer(nonce, card(), ()))
        scene.passes(scene.one, scene.other, talk.GoPunch(nonce, True, 1, BIRTHDAY_SPRAY))
        scene.passes(scene.one, scene.other, talk.GoRelay(nonce, scene.liar.id, EVIL, bytes(32)))
        scene.world.tell(scene.liar, scene.one, talk.RelayGrant(scene.other.id, bytes(32), ""))
        scene.world.tell(scene.liar, scene.one, talk.Lost(scene.other.id))
        scene.world.tell(scene.liar, scene.one, talk.Knocked(EVIL, True))
    scene.world.run(1.0)
    assert not scene.one.connects
    assert scene.one.reach.ctx.nat.called() == "port-restricted cone"


def test_a_carrier_that_swallows_everything_is_worked_around() -> None:
    scene = Scene()
    scene.world.loses = lambda sender, to, payload: (
        sender is scene.liar and isinstance(talk.unpack(payload), talk.Pass)
    )
    assert scene.links() < 1.0


def test_lost_from_somebody_who_was_not_asked_starts_nothing() -> None:
    scene = Scene()
    scene.world.want(scene.one, scene.other, ["198.51.100.7:4242"])
    scene.world.tell(scene.liar, scene.one, talk.Lost(scene.other.id))
    scene.world.run(0.1)
    session = scene.one.reach.caller.sessions[scene.other.id]
    assert session.called_at is None


def test_a_go_comes_from_who_called() -> None:
    scene = Scene()
    nonce = bytes(8)
    scene.passes(scene.one, scene.other, a_call(nonce))
    scene.world.run(0.1)
    scene.passes(scene.one, scene.entry, talk.GoPunch(nonce, True, 1, BIRTHDAY_SPRAY))
    scene.passes(scene.one, scene.entry, talk.GoRelay(nonce, scene.liar.id, EVIL, bytes(32)))
    scene.world.run(0.1)
    assert {one.way.kind for one in tried(scene.one)} == {"direct"}


def test_an_address_that_looks_like_a_peer_goes_through() -> None:
    scene = Scene("symmetric")
    seen = ((scene.entry.id, "peer:4242"), (scene.liar.id, "peer:4242"))

    def swap(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        if sender is scene.one and to == scene.liar.id and isinstance(message, talk.Pass):
            signal = talk.unpack(message.signal)
            if isinstance(signal, talk.Call):
                card_ = scene.other.reach.ctx.card()
                scene.passes(scene.one, scene.other, talk.Answer(signal.nonce, card_, seen))
        return False

    scene.world.loses = swap
    scene.world.want(scene.one, scene.other)
    scene.world.run(2.0)
    assert any(one.way.kind == "relayed" for _, one in scene.one.connects)


# ------------------------------------------------------------------------ floods


@pytest.mark.parametrize("count", [1, 16])
def test_a_flood_of_calls_leads_to_few_dials(count: int) -> None:
    scene = Scene()
    for number in range(2000):
        call = talk.pack(a_call(number.to_bytes(8, "big"), count))
        scene.world.tell(scene.liar, scene.one, talk.Pass(scene.one.id, origin(number), call))
    scene.world.run(1.0)
    assert len(tried(scene.one)) == min(count * CALLS_PER_CARRIER, DIALS_AT_ONCE)
    scene.world.want(scene.other, scene.one)
    assert scene.links(30.0) < 1.0  # others are heard as ever


def test_one_peer_has_few_calls_open() -> None:
    scene = Scene()
    for number in range(100):
        call = talk.pack(a_call(number.to_bytes(8, "big")))
        scene.world.tell(scene.liar, scene.one, talk.Pass(scene.one.id, origin(0), call))
        scene.world.run(0.05)
    assert len(tried(scene.one)) == CALLS_PER_PEER


def test_a_flood_of_goes_is_not_a_flood_of_packets() -> None:
    """They name an address that somebody else may have."""
    scene = Scene()
    for number in range(40):
        nonce = number.to_bytes(8, "big")
        signals = [a_call(nonce)] + [talk.GoPunch(nonce, True, 1, BIRTHDAY_SPRAY)] * 20
        signals += [talk.GoRelay(nonce, scene.liar.id, EVIL, bytes([n] * 32)) for n in range(20)]
        for signal in signals:
            passed = talk.Pass(scene.one.id, origin(number), talk.pack(signal))
            scene.world.tell(scene.liar, scene.one, passed)
    scene.world.run(1.0)
    kinds = [one.way.kind for one in tried(scene.one)]
    assert kinds.count("punched") == BIRTHDAYS_AT_ONCE
    assert kinds.count("relayed") == 40 * talk.MAX_RELAYS


def test_a_flood_of_knocks_is_few_at_once() -> None:
    scene = Scene()
    door = f"{scene.liar.box.ip}:6666"
    todo = []
    for _ in range(200):
        todo += scene.entry.reach.handle(
            a.Heard(scene.liar.id, talk.pack(talk.Knock(door))), scene.world.now
        )
    assert [one for one in todo if isinstance(one, a.KnockAt)] == [
        a.KnockAt(scene.liar.id, door)
    ] * KNOCKS_AT_ONCE
    (said,) = scene.entry.reach.handle(a.KnockDone(scene.liar.id, door, False), scene.world.now)
    assert isinstance(said, a.Say) and talk.unpack(said.payload) == talk.Knocked(door, False)
    again = scene.entry.reach.handle(
        a.Heard(scene.liar.id, talk.pack(talk.Knock(door))), scene.world.now
    )
    assert again == [a.KnockAt(scene.liar.id, door)]


def test_nobody_is_knocked_at_for_others() -> None:
    scene = Scene()
    knock = a.Heard(scene.liar.id, talk.pack(talk.Knock(EVIL)))
    (said,) = scene.entry.reach.handle(knock, scene.world.now)
    assert isinstance(said, a.Say) and talk.unpack(said.payload) == talk.Knocked(EVIL, False)


def test_a_flood_of_passes_is_cut_and_others_are_still_served() -> None:
    scene = Scene()
    call = talk.pack(a_call(bytes(8)))
    passed = talk.pack(talk.Pass(scene.one.id, scene.liar.id, call))
    carried = 0
    for _ in range(500):
        for said in scene.entry.reach.handle(a.Heard(scene.liar.id, passed), scene.world.now):
            assert isinstance(said, a.Say)
            if said.peer == scene.one.id:
                carried += 1
            else:
                assert talk.unpack(said.payload) == talk.Lost(scene.one.id)
    assert carried == PASSES_PER_S
    assert scene.links() < 1.0
    later = scene.entry.reach.handle(a.Heard(scene.liar.id, passed), scene.world.now + 1.0)
    assert [one.peer for one in later if isinstance(one, a.Say)] == [scene.one.id]


def test_a_flood_for_relays_takes_a_peers_share_only() -> None:
    scene = Scene("symmetric")
    for _ in range(500):
        scene.world.tell(scene.liar, scene.entry, talk.RelayWanted(scene.one.id))
    scene.world.run(0.5)
    assert len(scene.entry.reach.service.relaying) == RELAYED_PER_PEER
    scene.world.loses = lambda sender, to, payload: (
        sender is scene.liar and isinstance(talk.unpack(payload), talk.RelayGrant)
    )
    assert scene.links() < 3.0
    link = scene.world.link(scene.one, scene.other)
    assert link is not None and link.relay == scene.entry.id


def test_cards_and_moves_in_a_flood_start_no_storm() -> None:
    scene = Scene()
    said = 0
    for number in range(300):
        payload = talk.pack(card(f"203.0.113.99:{number + 1}"))
        said += len(scene.one.reach.handle(a.Heard(scene.liar.id, payload), scene.world.now))
    assert said == 0


def test_messages_of_strangers_are_ignored() -> None:
    scene = Scene()
    stranger = peer_id(bytes(32))
    assert scene.one.reach.handle(a.Heard(stranger, b"\xc1"), scene.world.now) == []


@pytest.mark.parametrize("seed", range(20))
def test_nonsense_in_any_order_raises_nothing_but_protocol_errors(seed: int) -> None:
    """Well-formed messages that nobody asked for, from a neighbour and in others' names."""
    scene, rng = Scene(), Random(seed)
    host, now = scene.one, scene.world.now
    peers = [one.id for one in scene.world.hosts.values()] + [origin(n) for n in range(3)]
    nonces = [bytes(8), b"n" * 8]
    scene.world.want(host, scene.other)
    nonces.append(host.reach.caller.sessions[scene.other.id].nonce)

    def signal() -> talk.Signal:
        nonce, at = rng.choice(nonces), rng.choice([EVIL, "peer:1", "[::1]:5", "h:1"])
        relays = ((rng.choice(peers), at),)
        some = rng.choice([card(), card(""), card("x:1", 3), host.reach.ctx.card()])
        return rng.choice(
            [
                talk.Call(nonce, some, relays),
                talk.Answer(nonce, some, relays),
                talk.GoPunch(nonce, rng.random() < 0.5, rng.randint(1, 256), rng.randint(0, 1024)),
                talk.GoRelay(nonce, rng.choice(peers), at, rng.randbytes(32)),
            ]
        )

    def message() -> talk.Message:
        packed = talk.pack(rng.choice([signal(), card(), talk.Lost(peers[0])]))
        return rng.choice(
            [
                signal(),
                card(),
                talk.Pass(rng.choice(peers), rng.choice(peers), packed),
                talk.Pass(host.id, rng.choice(peers), packed),
                talk.Lost(rng.choice(peers)),
                talk.Knock(EVIL),
                talk.Knocked(EVIL, rng.random() < 0.5),
                talk.RelayWanted(rng.choice(peers)),
                talk.RelayGrant(rng.choice(peers), rng.choice([b"", bytes(32)]), "no"),
            ]
        )

    refused = 0
    for _ in range(400):
        sender = rng.choice([scene.liar, scene.entry])
        now += rng.choice([0.0, 0.001, 0.3, 1.0])
        try:
            host.reach.handle(a.Heard(sender.id, talk.pack(message())), now, 1e9 + now)
        except ProtocolError as error:
            refused += 1
            assert "another origin" in error.says
        due = host.reach.next_timer()
        if due is not None and due < now:
            host.reach.handle(a.Tick(), now, 1e9 + now)
            after = host.reach.next_timer()
            assert after is None or after > now
    assert refused
    state = host.reach
    assert len(state.callee._calls) <= 256 and len(state.caller.sessions) <= 1
    assert len(state.service.relaying) <= 64


def test_an_answer_to_another_call_is_none() -> None:
    scene = Scene()
    scene.world.want(scene.one, scene.other)
    forged = talk.pack(talk.Answer(b"x" * 8, card(), ()))
    passed = talk.pack(talk.Pass(scene.one.id, scene.other.id, forged))
    scene.one.reach.handle(a.Heard(scene.liar.id, passed), scene.world.now)
    assert scene.one.reach.caller.sessions[scene.other.id].answer is None


def test_a_carrier_that_swallows_answers_is_worked_around() -> None:
    scene = Scene()
    scene.world.rtts[frozenset((scene.liar.id, scene.one.id))] = 0.001  # it is the quickest

    def swallows(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        passed = sender is scene.liar and isinstance(message, talk.Pass)
        return passed and isinstance(talk.unpack(message.signal), talk.Answer)

    scene.world.loses = swallows
    assert scene.links() < 1.0


@pytest.mark.parametrize("higher", [True, False])
def test_calls_in_the_name_of_a_peer_do_not_bar_ours_to_it(higher: bool) -> None:
    scene = Scene()
    if (scene.one.id > scene.other.id) != higher:
        scene.one, scene.other = scene.other, scene.one

    def lie() -> None:
        scene.passes(scene.one, scene.other, a_call(scene.world.rng.randbytes(8)))
        scene.world.later(0.01, lie)

    scene.world.want(scene.one, scene.other)
    lie()
    assert scene.links(30.0) < 8.0
