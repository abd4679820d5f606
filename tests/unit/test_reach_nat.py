"""What peers find out about their own NATs, from what others observe."""

from __future__ import annotations

from itertools import product

import pytest
from nat_box import KINDS
from reach_world import Host, World

from decentral.peer.reach import actions as a
from decentral.peer.reach.nat import Nat

CALLED = {
    "public": "public",
    "firewall": "firewall",
    "full": "full cone",
    "address": "address-restricted cone",
    "port": "port-restricted cone",
    "symmetric": "symmetric",
}


def nat(host: Host) -> Nat:
    return host.reach.ctx.nat


@pytest.mark.parametrize("rtt_s", [0.0002, 0.1, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_two_observers_classify(kind: str, rtt_s: float) -> None:
    """Also if the second is linked only later."""
    for observers, late_s in product([2, 3, 5], [0.0, 0.001, 0.7, 1.0, 60.0]):
        classify(kind, observers, rtt_s, late_s)


def classify(kind: str, observers: int, rtt_s: float, late_s: float) -> None:
    world = World(rtt_s=rtt_s)
    seeds = world.seeds(observers)
    host = world.add(kind)
    for seed in seeds:
        world.want(host, seed)
        world.run(late_s)
    world.run(6.0)
    assert nat(host).called() == CALLED[kind]
    assert (nat(host).mapping, nat(host).filtering) == KINDS[kind]
    assert nat(host).address.startswith(host.box.ip)
    cards = [seed.reach.ctx.neighbours[host.id].card for seed in seeds]
    assert all(card is not None and card.nat == nat(host) for card in cards)


@pytest.mark.parametrize("kind", KINDS)
def test_one_observer_gives_an_address_and_no_class_that_it_cannot_know(kind: str) -> None:
    world = World()
    host = world.join(kind, world.seeds(1))
    mapping, filtering = KINDS[kind]
    assert nat(host).address.startswith(host.box.ip)
    assert nat(host).mapping == ("none" if mapping == "none" else "unknown")
    assert nat(host).filtering == ("port" if filtering == "port" else "unknown")
    assert not nat(host).open


@pytest.mark.parametrize("kind", ["address", "port", "symmetric"])
def test_a_second_look_takes_nobody_for_a_stranger_that_the_port_has_contacted(kind: str) -> None:
    world = World()
    seeds = world.seeds()
    host, other = world.join(kind, seeds), world.join("port", seeds)
    for _ in range(3):
        world.run(60.0)  # what was observed is too old for a call
        world.want(host, other)
        world.run(5.0)
        assert nat(host).called() == CALLED[kind]
        world.cut(world.links[frozenset((host.id, other.id))])


def test_who_is_near_does_not_hide_the_nat() -> None:
    world = World()
    seeds = world.seeds()
    host = world.add("port")
    for _ in range(3):
        guest = world.add("port", box=host.box)
        world.want(host, guest)
    world.run(5.0)
    assert nat(host).mapping == "none"  # all that these can see
    for seed in seeds:
        world.want(host, seed)
    world.run(5.0)
    assert nat(host).called() == "port-restricted cone"


def test_observers_that_are_silent_cost_time_but_no_class() -> None:
    world = World()
    seeds = world.seeds(3)
    deaf = {seeds[0].ip}
    host = world.add("port")
    for seed in seeds:
        world.want(host, seed)
    world.run(0.0007)
    world.drops = lambda sender, to: sender is host and to[0] in deaf
    world.run(60.0)
    other = world.join("full", seeds[1:])
    world.want(host, other)
    world.run(5.0)
    assert nat(host).called() == "port-restricted cone"


def test_a_call_does_not_wait_for_the_filtering() -> None:
    """Silence after a knock takes long; the mapping is known before where three observe."""
    world = World(rtt_s=0.02)
    seeds = world.seeds(3)
    host, other = world.add("port"), world.join("port", seeds)
    began = world.now
    for seed in seeds:
        world.want(host, seed)
    world.want(host, other)
    world.run(5.0, lambda: world.link(host, other) is not None)
    assert world.now - began < 0.5
    assert world.run(10.0, lambda: world.kind(host, other) == "punched")


def test_another_network_is_another_nat() -> None:
    world = World(rtt_s=0.02)
    seeds = world.seeds()
    host = world.join("symmetric", seeds)
    assert nat(host).called() == "symmetric"
    for link in list(world.links.values()):
        if host.id in link.ends:
            world.cut(link)
    donor = world.add("full")
    host.box, host.ip = donor.box, donor.box.ip.replace("203.0.113.", "10.99.0.")
    donor.alive = False
    world.feed(host, a.Moved((host.address,), ("10.99.0.0/24",)))
    assert nat(host) == Nat()
    world.run(8.0)
    assert nat(host).called() == "full cone"
    assert nat(host).address.startswith(donor.box.ip)
    assert all(world.link(host, seed) is not None for seed in seeds)


def test_moved_while_links_live_looks_again_at_once() -> None:
    world = World()
    seeds = world.seeds()
    host = world.join("port", seeds)
    before = nat(host).address
    host.box.forget()
    world.feed(host, a.Moved((host.address,), host.networks))
    world.run(4.0)
    assert nat(host).called() == "port-restricted cone" and nat(host).address != before
    for seed in seeds:
        card = seed.reach.ctx.neighbours[host.id].card
        assert card is not None and card.nat == nat(host)


def test_a_port_that_the_nat_forgot_is_relearned_before_a_call() -> None:
    world = World(rtt_s=0.1)
    seeds = world.seeds()
    one, other = world.join("port", seeds), world.join("port", seeds)
    world.run(50.0)
    before = nat(one).address, nat(other).address
    one.box.forget()
    other.box.forget()
    world.want(one, other)
    assert world.run(4.0, lambda: world.link(one, other) is not None)
    assert world.kind(one, other) == "punched"
    assert nat(one).address != before[0] and nat(other).address != before[1]
