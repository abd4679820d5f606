"""Relays that die, signals that get lost, networks that change."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from reach_world import Host, World

from decentral.peer.reach import actions as a
from decentral.peer.reach import talk
from decentral.peer.reach.caller import MAX_AGAIN, PUNCH_REST_S
from decentral.peer.reach.nat import Nat


def trio(kinds: tuple[str, str], *, seeds: int = 2, rtt_s: float = 0.1) -> tuple[World, Host, Host]:
    world = World(rtt_s=rtt_s)
    entries = world.seeds(seeds)
    one, other = (world.join(kind, entries) for kind in kinds)
    return world, one, other


def linked(world: World, one: Host, other: Host, limit_s: float) -> float:
    began = world.now
    assert world.run(limit_s, lambda: world.link(one, other) is not None), one.unreached
    return world.now - began


def punches(host: Host, peer: Host) -> list[float]:
    return [at for at, one in host.connects if one.peer == peer.id and one.way.kind == "punched"]


# ------------------------------------------------------------------------ relays


@pytest.mark.parametrize("both", [True, False], ids=["both want it", "one wants it"])
def test_when_a_relay_dies_another_takes_over(both: bool) -> None:
    world, one, other = trio(("symmetric", "symmetric"), seeds=3)
    world.want(one, other)
    if both:
        world.want(other, one)
    dead = []
    for _ in range(2):
        linked(world, one, other, 5.0)
        link = world.link(one, other)
        assert link is not None and link.relay not in dead
        dead.append(link.relay)
        world.kill(world.hosts[link.relay])
        assert world.link(one, other) is None
    assert linked(world, one, other, 5.0) < 2.0


def test_a_relay_that_does_not_answer_is_passed_over() -> None:
    world, one, other = trio(("symmetric", "symmetric"), seeds=3)
    asked: list[str] = []

    def deaf(sender: Host, to: str, payload: bytes) -> bool:
        if not isinstance(talk.unpack(payload), talk.RelayWanted):
            return False
        asked.append(to)
        return to == asked[0]

    world.loses = deaf
    world.want(one, other)
    linked(world, one, other, 4.0)
    assert len(asked) == 2 and world.kind(one, other) == "relayed"


def test_a_relay_that_is_full_says_so_and_another_is_asked() -> None:
    world, one, other = trio(("symmetric", "symmetric"))
    world.want(one, other)
    linked(world, one, other, 3.0)
    link = world.link(one, other)
    assert link is not None
    relay = world.hosts[link.relay]
    world.cut(link)
    for number in range(64):
        relay.reach.service.relaying[bytes([number])] = (other.id, one.id)
    linked(world, one, other, 3.0)
    link = world.link(one, other)
    assert link is not None and link.relay != relay.id


def test_a_relay_forgets_what_nobody_came_for() -> None:
    world, one, other = trio(("symmetric", "symmetric"))
    entry = next(host for host in world.hosts.values() if host.box.mapping == "none")
    for _ in range(20):
        world.tell(one, entry, talk.RelayWanted(other.id))
    world.run(1.0)
    assert len(entry.reach.service.relaying) == 16  # so many for one peer
    world.run(15.0)
    assert not entry.reach.service.relaying


# ------------------------------------------------------------------------ better ways


def test_a_punch_that_failed_by_loss_is_made_up_for_later() -> None:
    world, one, other = trio(("port", "port"))
    lost = {one, other}
    world.drops = lambda sender, to: sender in lost and to[0] in {h.box.ip for h in lost}
    world.want(one, other)
    linked(world, one, other, 5.0)
    assert world.kind(one, other) == "relayed"
    world.run(5.0)
    lost.clear()
    assert world.run(2 * PUNCH_REST_S, lambda: world.kind(one, other) == "punched")
    ends = frozenset((one.id, other.id))
    assert [what for _, what, those, _ in world.history if those == ends] == ["up", "up"]
    world.run(400.0)
    assert world.kind(one, other) in ("punched", "direct")


def test_a_relayed_link_stays_where_no_other_way_leads() -> None:
    world, one, other = trio(("symmetric", "symmetric"))
    world.want(one, other)
    linked(world, one, other, 5.0)
    world.run(700.0)
    ends = frozenset((one.id, other.id))
    assert [what for _, what, those, _ in world.history if those == ends] == ["up"]
    assert not punches(one, other) and not punches(other, one)
    assert not one.unreached and not other.unreached


def test_a_relayed_link_becomes_direct_when_a_port_is_mapped() -> None:
    world, one, other = trio(("symmetric", "symmetric"))
    world.want(one, other)
    linked(world, one, other, 5.0)
    other.box.forwards[5555] = (other.ip, 4242)
    world.feed(other, a.Mapped(f"{other.box.ip}:5555"))
    assert world.run(30.0, lambda: world.kind(one, other) in ("direct", "mapped"))


def test_punches_in_vain_become_rare() -> None:
    world, one, other = trio(("port", "port"))
    world.drops = lambda sender, to: (
        sender in (one, other)
        and to[0]
        in (
            one.box.ip,
            other.box.ip,
        )
    )
    world.want(one, other)
    world.want(other, one)
    linked(world, one, other, 5.0)
    world.run(3600.0)
    times = sorted(punches(one, other))
    assert 3 <= len(times) <= 12
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert all(gap > 0.9 * PUNCH_REST_S for gap in gaps[1:])  # each end tries it once at first
    assert gaps[-1] > 4 * PUNCH_REST_S
    assert world.kind(one, other) == "relayed"


# ------------------------------------------------------------------------ signals


def test_the_call_goes_through_those_who_are_linked_to_both() -> None:
    world = World(rtt_s=0.02)
    entries = world.seeds(9)
    one = world.join("port", entries)
    other = world.join("port", entries[8:])
    world.want(one, other)
    assert linked(world, one, other, 5.0) < 1.0
    assert world.run(10.0, lambda: world.kind(one, other) == "punched")


def test_a_call_waits_for_the_first_neighbour() -> None:
    world = World(rtt_s=0.02)
    entries = world.seeds(2)
    other = world.join("port", entries)
    one = world.add("port")
    world.want(one, other)
    world.run(2.0)
    for entry in entries:
        world.want(one, entry)
    assert linked(world, one, other, 2.0) < 1.0


@pytest.mark.parametrize("kind", [talk.Call, talk.Answer, talk.GoPunch])
def test_a_lost_signal_costs_one_attempt(kind: type) -> None:
    world, one, other = trio(("port", "port"))
    count = [0]

    def lose(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        lost = isinstance(message, talk.Pass) and isinstance(talk.unpack(message.signal), kind)
        count[0] += lost
        return lost and count[0] <= 3

    world.loses = lose
    world.want(one, other)
    linked(world, one, other, 15.0)


@pytest.mark.parametrize("seed", range(20))
def test_links_come_in_the_end_whatever_gets_lost(seed: int) -> None:
    world = World(rtt_s=0.05, seed=seed)
    entries = world.seeds()
    pair = [world.join(world.rng.choice(["port", "symmetric"]), entries) for _ in range(2)]
    dice = Random(seed)
    world.loses = lambda sender, to, payload: dice.random() < 0.3
    world.want(*pair)
    world.want(pair[1], pair[0])
    linked(world, *pair, 120.0)


def test_the_carrier_dies_after_the_answer() -> None:
    world, one, other = trio(("symmetric", "symmetric"), seeds=4)
    died: list[float] = []

    def watch(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        answers = isinstance(message, talk.Pass) and to == one.id
        if answers and isinstance(talk.unpack(message.signal), talk.Answer) and not died:
            died.append(world.now)
            world.later(0.06, lambda: world.kill(sender))
        return False

    world.loses = watch
    world.want(one, other)
    assert linked(world, one, other, 5.0) < 4.0 and died


# ------------------------------------------------------------------------ other networks


@pytest.mark.parametrize("kinds", [("port", "port"), ("symmetric", "symmetric")], ids="-".join)
def test_who_moves_to_another_network_is_back_within_seconds(kinds: tuple[str, str]) -> None:
    world, one, other = trio(kinds)
    world.want(one, other)
    world.want(other, one)
    linked(world, one, other, 5.0)
    world.run(20.0)
    donor = world.add("address")
    one.box, one.ip, donor.alive = donor.box, donor.ip, False
    world.feed(one, a.Moved((one.address,), ("10.5.0.0/24",)))
    for link in list(world.links.values()):
        if one.id in link.ends:
            world.cut(link)
    assert linked(world, one, other, 5.0) < 3.0
    world.run(60.0)
    assert world.kind(one, other) in ("punched", "direct")


def test_a_crowd_behind_one_kind_of_nat_each_is_linked_in_full() -> None:
    """Hundreds of sockets for a birthday are not there for everybody at once."""
    world = World(rtt_s=0.02)
    entries = world.seeds()
    crowd = [world.join("symmetric" if n < 3 else "port", entries) for n in range(10)]
    for one in crowd:
        for other in crowd:
            if one is not other:
                world.want(one, other)
    pairs = [(x, y) for x in crowd for y in crowd if x.id < y.id]
    assert world.run(15.0, lambda: all(world.link(*pair) is not None for pair in pairs))
    for host in crowd:
        births = [at for at, one in host.connects if max(one.way.sockets, one.way.spray) > 4]
        assert all(sum(at <= b < at + 3.0 for b in births) <= 4 for at in births)
    world.run(600.0)
    kinds = [world.kind(*pair) for pair in pairs]
    assert kinds.count("relayed") <= 6 and kinds.count("punched") >= 38


def test_when_all_that_carry_a_call_die_others_are_asked() -> None:
    world, one, other = trio(("port", "port"), seeds=4)
    asked: list[str] = []

    def lose(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        calls = sender is one and isinstance(message, talk.Pass) and len(asked) < 3
        if calls:
            asked.append(to)
        return calls

    world.loses = lose
    world.want(one, other)
    world.run(0.1)
    assert len(asked) == 3
    for peer in asked:
        world.kill(world.hosts[peer])
    assert linked(world, one, other, 2.0) < 1.0


def test_a_punch_between_nats_that_were_not_known_yet_bars_none_between_known_ones() -> None:
    world, one, other = trio(("port", "port"))
    one.reach.caller._no_punch[other.id] = ((Nat(), Nat()), world.now + 600.0, 600.0)
    world.want(one, other)
    linked(world, one, other, 2.0)
    assert world.kind(one, other) in ("punched", "direct")


def test_few_are_asked_for_one_that_was_linked_and_is_gone() -> None:
    """All of a mesh look for it at once."""
    world = World(rtt_s=0.01)
    entries = world.seeds(2 * MAX_AGAIN)
    one, other = world.join("port", entries), world.join("port", entries)
    asked: dict[str, set[str]] = {}

    def watch(sender: Host, to: str, payload: bytes) -> bool:
        message = talk.unpack(payload)
        if sender is one and isinstance(message, talk.Pass):
            asked.setdefault(message.to, set()).add(to)
        return False

    world.want(one, other)
    linked(world, one, other, 5.0)
    world.loses = watch
    world.kill(other)
    del one.wanted[other.id]
    stranger = world.add("port")  # linked to nobody
    for wanted in (other, stranger):
        world.feed(one, a.Want(wanted.id, ()))
        world.run(14.0)
    assert len(asked[other.id]) == MAX_AGAIN
    assert len(asked[stranger.id]) == len(entries), "it may be linked to any of them"
