"""Every pair of NATs finds the way that there is, in its time."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
from reach_world import Host, World

from decentral.peer.reach import actions as a
from decentral.peer.reach import talk
from decentral.peer.reach.ways import BIRTHDAY_SOCKETS, BIRTHDAY_SPRAY, FEW

KINDS = ("public", "full", "address", "port", "symmetric")
PAIRS = list(combinations_with_replacement(KINDS, 2))
PUNCHED = {
    ("address", "address"),
    ("address", "port"),
    ("port", "port"),
    ("address", "symmetric"),
    ("port", "symmetric"),
}


def class_of(pair: tuple[str, str]) -> str:
    if pair == ("symmetric", "symmetric"):
        return "relayed"
    return "punched" if pair in PUNCHED else "direct"


def as_good(found: str, pair: tuple[str, str]) -> bool:
    """An address-restricted NAT lets a dial in as soon as its peer has dialled back."""
    return found == class_of(pair) or ("address" in pair and found == "direct")


def pair_in(
    kinds: tuple[str, str],
    rtt_s: float,
    *,
    remaps: bool = False,
    relays: str = "auto",
    seed: int = 1,
) -> tuple[World, Host, Host]:
    world = World(rtt_s=rtt_s, seed=seed)
    seeds = world.seeds(relays=relays)
    one, other = (world.join(kind, seeds, remaps=remaps, relays=relays) for kind in kinds)
    return world, one, other


def link_time(world: World, one: Host, other: Host, limit_s: float = 10.0) -> float:
    began = world.now
    world.want(one, other)
    assert world.run(limit_s, lambda: world.link(one, other) is not None), one.unreached
    return world.now - began


@pytest.mark.parametrize("remaps", [False, True], ids=["drops", "remaps"])
@pytest.mark.parametrize("rtt_s", [0.0002, 0.1])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_a_pair_is_linked_in_time(kinds: tuple[str, str], rtt_s: float, remaps: bool) -> None:
    for caller in (0, 1):
        world, *pair = pair_in(kinds, rtt_s, remaps=remaps)
        took_s = link_time(world, pair[caller], pair[1 - caller])
        found = world.kind(*pair)
        if kinds == ("port", "symmetric") and remaps:
            # Where nothing drops what comes too early, each of a birthday's packets makes the
            # other end's way out another one.
            assert found in ("punched", "relayed")
        else:
            assert as_good(found, kinds)
        assert took_s < (1.0 if found != "relayed" else 1.3 if class_of(kinds) == found else 2.0)
        ends = frozenset(one.id for one in pair)
        world.run(30.0)
        changes = [kind for _, _, those, kind in world.history if those == ends]
        upgrades = [["relayed", "punched"]] * remaps + [["punched", "direct"]] * (
            "address" in kinds
        )
        assert changes == [found] or changes in upgrades
        assert not pair[0].unreached and not pair[1].unreached


@pytest.mark.parametrize("rtt_s", [0.0002, 0.1])
@pytest.mark.parametrize("kinds", sorted(PUNCHED), ids="-".join)
def test_a_punch_takes_two_round_trips_and_a_birthday_one_second(
    kinds: tuple[str, str], rtt_s: float
) -> None:
    for seed in range(4):
        world, *pair = pair_in(kinds, rtt_s, seed=seed)
        gone: list[float] = []

        def watch(
            sender: Host, to: str, payload: bytes, gone: list[float] = gone, world: World = world
        ) -> bool:
            message = talk.unpack(payload)
            if isinstance(message, talk.Pass) and message.origin == sender.id:
                message = talk.unpack(message.signal)
            if isinstance(message, talk.GoPunch):
                gone.append(world.now)
            return False

        world.loses = watch
        link_time(world, *pair)
        link = world.link(*pair)
        assert link is not None and len(gone) == 2  # by both seeds
        birthday = kinds == ("port", "symmetric")
        assert link.met - gone[0] <= (1.0 if birthday else 2 * rtt_s + 1e-6)
        sizes = {(way.sockets, way.spray) for way in link.ways.values() if way.how != "inbound"}
        few, many = {(FEW, 0), (1, FEW)}, {(BIRTHDAY_SOCKETS, 0), (1, BIRTHDAY_SPRAY)}
        expected = many if birthday else few if "symmetric" in kinds else {(1, 0)}
        assert sizes and sizes <= expected
        assert "inbound" not in {way.how for way in link.ways.values()} or "symmetric" in kinds


@pytest.mark.parametrize("rtt_s", [0.0002, 0.1])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_newcomers_are_linked_within_seconds_of_their_start(
    kinds: tuple[str, str], rtt_s: float
) -> None:
    """Nothing is known yet: not the NAT, not who relays."""
    world = World(rtt_s=rtt_s)
    seeds = world.seeds()
    one, other = (world.add(kind) for kind in kinds)
    for host in (one, other):
        for seed in seeds:
            world.want(host, seed)
    up = world.run(1.5, lambda: all(world.link(h, s) for h in (one, other) for s in seeds))
    assert up and world.now - 3.0 < 4 * rtt_s
    assert link_time(world, one, other) < 1.5
    if world.kind(one, other) == "relayed":  # the first way that there was: a better one follows
        world.run(20.0)
    assert (world.kind(one, other) == "relayed") == (class_of(kinds) == "relayed")


def test_without_a_volunteer_every_rung_says_why() -> None:
    world, one, other = pair_in(("symmetric", "symmetric"), 0.1, relays="off")
    world.want(one, other)
    assert world.run(8.0, lambda: bool(one.unreached))
    (failed,) = one.unreached
    rungs = dict(failed.rungs)
    assert failed.peer == other.id
    assert rungs == {
        "direct": "no answer",
        "punch": "both NATs give every connection another port",
        "relay": "no linked peer relays",
    }
    assert one.reach.caller.failed == {other.id: failed.rungs}


def test_nobody_to_carry_the_call_is_said_too() -> None:
    world = World()
    one, other = world.add("port"), world.add("port")
    world.want(one, other)
    assert world.run(8.0, lambda: bool(one.unreached))
    assert dict(one.unreached[0].rungs) == {
        "direct": "no answer",
        "signal": "no linked peer is linked to it",
    }


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
@pytest.mark.parametrize("apart_s", [0.0, 0.01, 0.06, 0.15])
def test_two_that_call_each_other_end_with_one_link(kinds: tuple[str, str], apart_s: float) -> None:
    world, one, other = pair_in(kinds, 0.1)
    first, second = (one, other) if world.rng.random() < 0.5 else (other, one)
    world.want(first, second)
    world.run(apart_s)
    world.want(second, first)
    assert world.run(3.0, lambda: world.link(one, other) is not None)
    world.run(10.0)
    assert as_good(world.kind(one, other), kinds)
    ends = frozenset((one.id, other.id))
    changes = [kind for _, _, those, kind in world.history if those == ends]
    assert changes in ([class_of(kinds)], ["direct"], ["punched", "direct"])
    for host in (one, other):
        tried = [action.way.kind for _, action in host.connects if action.peer in ends]
        assert tried.count("punched") <= 1 and tried.count("relayed") <= 1
        assert not host.unreached


def test_the_only_public_peer_relays_though_it_never_dials() -> None:
    """It has no observers; that strangers get in is what it goes by."""
    world = World()
    (entry,) = world.seeds(1)
    one, other = (world.join("symmetric", [entry]) for _ in range(2))
    assert entry.reach.ctx.volunteers
    link_time(world, one, other)
    link = world.link(one, other)
    assert link is not None and link.relay == entry.id


def test_a_guest_of_the_same_network_makes_nobody_a_relay() -> None:
    world = World()
    one = world.add("port")
    guest = world.add("port", box=one.box)
    assert link_time(world, guest, one) < 0.1
    assert world.kind(guest, one) == "direct" and not one.reach.ctx.volunteers


def test_a_mapped_port_is_dialled() -> None:
    world, one, other = pair_in(("symmetric", "symmetric"), 0.1)
    other.box.forwards[5555] = (other.ip, 4242)
    world.feed(other, a.Mapped(f"{other.box.ip}:5555"))
    assert link_time(world, one, other) < 1.0
    link = world.link(one, other)
    assert link is not None and link.ways[one.id].kind == "mapped"
    assert other.reach.ctx.volunteers
    world.feed(other, a.Mapped(""))
    assert not other.reach.ctx.volunteers


def test_two_behind_firewalls_punch() -> None:
    world, one, other = pair_in(("firewall", "firewall"), 0.1, remaps=True)
    assert one.reach.ctx.nat.called() == "firewall"
    link_time(world, one, other)
    assert world.kind(one, other) == "punched"
