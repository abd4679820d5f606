"""The NAT lab is what it says it is, as plain sockets see it."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from nat_probe import (
    PATIENCE_S,
    classify,
    knocks,
    listening,
    observed,
    port_of,
    punch,
    puncher,
    tcp,
)

from decentral.bench.lab import inside, why_not
from decentral.bench.nat_lab import NatHost, NatLab, Site
from decentral.bench.nat_rules import Router
from decentral.errors import ConfigError

pytestmark = pytest.mark.netns

FIVE = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric")
MUST_FAIL = {("port-restricted", "symmetric"), ("symmetric", "symmetric")}
EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    reason = why_not(delayed=True)
    if reason:
        pytest.skip(reason)


def site(kind: str, **options: object) -> Site:
    return Site() if kind == "none" else Site(router=Router(kind=kind, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> Iterator[NatLab]:
    """Two of each kind and two observers, for whoever changes nothing."""
    sites = {"one": Site(), "other": Site()}
    sites |= {f"{kind} {side}": site(kind) for kind in FIVE for side in "ab"}
    sites["firewall"] = site("firewall")
    sites["carrier"] = Site(router=Router(kind="port-restricted"), carrier=Router(kind="symmetric"))
    with NatLab({name.replace(" ", "-"): one for name, one in sites.items()}) as lab:
        yield lab


@pytest.mark.parametrize(
    ("name", "mapping", "filtering", "keeps_port"),
    [
        ("none-a", EI, EI, True),
        ("full-cone-a", EI, EI, True),
        ("address-restricted-a", EI, AD, True),
        ("port-restricted-a", EI, APD, True),
        ("symmetric-a", APD, APD, False),
        ("firewall", EI, APD, True),
        ("carrier", APD, APD, False),
    ],
)
def test_a_router_behaves_as_it_is_called(
    world: NatLab, name: str, mapping: str, filtering: str, keeps_port: bool
) -> None:
    host = world.host(name)
    seen = classify(host, world.host("one"), world.host("other"))
    assert (seen.mapping, seen.filtering, seen.keeps_port) == (mapping, filtering, keeps_port)
    translated = name not in ("none-a", "firewall")
    assert (seen.outside == host.address) is not translated
    assert not translated or seen.outside == world.wan_addresses[name]


@pytest.mark.parametrize("pair", list(combinations_with_replacement(FIVE, 2)), ids="-x-".join)
def test_a_simultaneous_open_reaches_13_of_15(world: NatLab, pair: tuple[str, str]) -> None:
    one, other = (world.host(f"{kind}-{side}") for kind, side in zip(pair, "ab", strict=True))
    observer = world.host("one")
    with puncher(one, observer) as near, puncher(other, observer) as far:
        took_s = punch(near, far, patience_s=0.6)
    assert (took_s is None) == (pair in MUST_FAIL)


def test_a_mapping_that_nobody_made_lets_nobody_in(world: NatLab) -> None:
    for kind in FIVE[1:]:
        host = world.host(f"{kind}-a")
        with listening(host) as inner:
            at = (world.wan_addresses[f"{kind}-a"], port_of(inner))
            assert not knocks(world.host("one"), at, patience_s=0.15), kind


def test_a_router_may_answer_those_who_knock() -> None:
    """That is not harmless: its reset ends the caller's own attempt, and conntrack remembers both
    the knock and the reset when the inside host calls back."""
    sites = {"one": Site(), "home": site("port-restricted", wan_drop=False)}
    with NatLab(sites) as lab, listening(lab.host("home")) as inner:
        began = time.monotonic()
        assert not knocks(lab.host("one"), (lab.wan_addresses["home"], port_of(inner)))
        assert time.monotonic() - began < PATIENCE_S / 2, "refused, not left without an answer"


@pytest.mark.parametrize("kind", FIVE[1:4])
@pytest.mark.parametrize("hairpin", [False, True])
def test_neighbours_behind_one_router(kind: str, hairpin: bool) -> None:
    router = Router(kind=kind, hairpin=hairpin)
    with NatLab({"one": Site(), "home": Site(router=router, hosts=2)}) as lab:
        first, second = lab.hosts["home"]
        with listening(lab.host("one")) as far, listening(second) as inner:
            sock, outside = observed(second, port_of(inner), far)
            with sock:
                assert outside[0] == lab.wan_addresses["home"]
                assert knocks(first, (second.address, port_of(inner))), "they share a LAN"
                assert knocks(first, outside) is hairpin


@pytest.mark.parametrize("hairpin", [False, True])
def test_guests_reach_each_other_by_the_router_at_most(hairpin: bool) -> None:
    router = Router(kind="port-restricted", hairpin=hairpin)
    with NatLab({"one": Site(), "guests": Site(router=router, hosts=2, isolated=True)}) as lab:
        first, second = lab.hosts["guests"]
        with listening(lab.host("one")) as far, listening(second) as inner:
            sock, outside = observed(second, port_of(inner), far)
            with sock:
                assert not knocks(first, (second.address, port_of(inner)), patience_s=0.2)
                assert knocks(first, outside) is hairpin


@pytest.mark.parametrize("hairpin", [False, True])
def test_customers_of_one_carrier(hairpin: bool) -> None:
    home = Router(kind="port-restricted")
    sites = {
        "one": Site(),
        "a": Site(router=home, carrier=Router(kind="port-restricted", hairpin=hairpin)),
        "b": Site(router=home, behind="a"),
    }
    with NatLab(sites) as lab:
        one = lab.host("one")
        assert lab.wan_addresses["a"] == lab.wan_addresses["b"]
        for name in "ab":
            seen = classify(lab.host(name), one, one)
            assert (seen.filtering, seen.outside) == (APD, lab.wan_addresses["a"])
        with puncher(lab.host("a"), one) as a, puncher(lab.host("b"), one) as b:
            assert (punch(a, b, patience_s=0.5) is not None) is hairpin


def test_the_same_private_address_is_another_machine_elsewhere(world: NatLab) -> None:
    a, b = world.host("full-cone-a"), world.host("full-cone-b")
    assert a.address == b.address == "192.168.1.10"
    with listening(b) as inner:
        assert not knocks(a, (b.address, port_of(inner)), patience_s=0.15)


def test_udp_can_be_blocked() -> None:
    sites = {
        "one": Site(),
        "with": site("port-restricted"),
        "without": site("port-restricted", udp=False),
    }
    with NatLab(sites) as lab:
        for name, passes in (("with", True), ("without", False)):
            with udp(lab.host("one")) as far, udp(lab.host(name)) as near:
                near.sendto(b"?", far.getsockname())
                assert hears(far) is passes
            with listening(lab.host("one")) as tcp_far:
                assert knocks(lab.host(name), tcp_far.getsockname())


def test_a_firewall_opens_outwards_only() -> None:
    with NatLab({"one": Site(), "office": Site(router=Router(kind="firewall"), hosts=2)}) as lab:
        one, host = lab.host("one"), lab.host("office")
        with listening(host) as inner, listening(one) as far:
            assert not knocks(one, (host.address, port_of(inner)), patience_s=0.2)
            sock, seen = observed(host, port_of(inner), far)
            sock.close()
            assert seen == (host.address, port_of(inner)), "nothing is translated"


def test_one_has_ipv4_and_the_other_ipv6() -> None:
    sites = {"both": Site(family="46"), "four": Site(), "six": Site(family="6")}
    with NatLab(sites) as lab:
        both, four, six = (lab.host(name) for name in sites)
        assert both.listen == six.listen == "[::]:0" and four.listen == "0.0.0.0:0"
        assert len(both.addresses) == 2 and ":" in six.address
        for_six = NatHost(both.netns, both.interface, both.addresses[1:])
        for near, far in ((four, both), (six, for_six)):
            with listening(far) as listener:
                assert knocks(near, listener.getsockname()[:2])
        with listening(four) as listener, pytest.raises(OSError), tcp(six) as sock:
            sock.connect(listener.getsockname())


def test_sites_are_far_apart_as_asked() -> None:
    sites = {"one": Site(), "a": site("port-restricted"), "b": site("port-restricted")}
    with NatLab(sites, rtt_ms=100) as lab:
        one = lab.host("one")
        with listening(one) as far:
            began = time.monotonic()
            assert knocks(lab.host("a"), far.getsockname(), patience_s=2)
            assert 0.1 <= time.monotonic() - began < 0.15
        with puncher(lab.host("a"), one) as a, puncher(lab.host("b"), one) as b:
            took_s = punch(a, b, patience_s=2)
        assert took_s is not None and 0.1 <= took_s < 0.3, "a round trip, and half a one to tell"
        lab.cut("one")
        with listening(one) as far:
            assert not knocks(lab.host("a"), far.getsockname())


def test_a_cut_cable_and_a_healed_one() -> None:
    sites = {"one": Site(), "home": site("symmetric")}
    with NatLab(sites) as lab, listening(lab.host("one")) as far:
        lab.cut("home")
        assert not knocks(lab.host("home"), far.getsockname(), patience_s=0.2)
        lab.heal("home")
        assert knocks(lab.host("home"), far.getsockname())


@pytest.mark.parametrize(
    ("stale", "kind", "lives"),
    [
        ("drop", "port-restricted", None),
        ("reset", "port-restricted", False),
        ("adopt", "port-restricted", True),
        ("adopt", "symmetric", False),  # it is taken up under another port, which nobody knows
    ],
)
def test_a_router_forgets(stale: str, kind: str, lives: bool | None) -> None:
    """None: its packets vanish, and nobody gets to know."""
    with (
        NatLab({"one": Site(), "home": site(kind, stale=stale)}) as lab,
        listening(lab.host("one")) as far,
        tcp(lab.host("home")) as near,
    ):
        near.settimeout(2)
        near.connect(far.getsockname())
        accepted, _ = far.accept()
        with accepted:
            accepted.settimeout(0.5)
            near.send(b"1")
            assert accepted.recv(1) == b"1"
            lab.forget("home")
            near.send(b"2")
            if lives:
                assert accepted.recv(1) == b"2"
                return
            if lives is None:
                accepted.send(b"3")  # the router does not tell the far end either
            with pytest.raises(TimeoutError):
                accepted.recv(1)
            near.settimeout(0.3)
            with pytest.raises(TimeoutError if lives is None else ConnectionResetError):
                near.recv(1)


def test_forgotten_mappings_let_nobody_in_any_more() -> None:
    with NatLab({"one": Site(), "other": Site(), "home": site("full-cone")}) as lab:
        one, other, home = (lab.host(name) for name in ("one", "other", "home"))
        with listening(one) as far, listening(home) as inner:
            sock, outside = observed(home, port_of(inner), far)
            with sock:
                assert knocks(other, outside)
                lab.forget("home")
                assert not knocks(other, outside, patience_s=0.2)
                observed(home, port_of(inner), far)[0].close()
                assert knocks(other, outside)


def test_addresses_change_in_mid_run() -> None:
    sites = {
        "one": Site(),
        "home": site("full-cone"),
        "cafe": Site(router=Router(kind="symmetric"), hosts=0),
    }
    with NatLab(sites) as lab:
        one, host = lab.host("one"), lab.host("home")
        with listening(one) as far, listening(host) as inner:
            before = observed(host, port_of(inner), far)
            before[0].close()
            lab.renumber("home")
            after = observed(host, port_of(inner), far)
            after[0].close()
            assert after[1] == (lab.wan_addresses["home"], port_of(inner)) != before[1]
            assert knocks(lab.host("one"), after[1]), "the cone goes with the address"
        lab.renumber("one")
        with listening(one) as far:
            assert knocks(host, far.getsockname()), "a public host is elsewhere, too"
        lab.move(host, "cafe")
        assert lab.hosts["home"] == [] and lab.host("cafe") is host
        with listening(one) as far, listening(host) as inner:
            sock, seen = observed(host, port_of(inner), far)
            sock.close()
            assert seen[0] == lab.wan_addresses["cafe"] and seen[1] != port_of(inner)


@pytest.mark.parametrize("kind", ["port-restricted", "symmetric"])
def test_miniupnpd_maps_ports(kind: str) -> None:
    with NatLab({"one": Site(), "home": site(kind, upnp=True)}) as lab:
        host = lab.host("home")
        with listening(host) as inner:
            port = port_of(inner)
            assert not knocks(lab.host("one"), (lab.wan_addresses["home"], port), patience_s=0.2)
            outer = map_by_nat_pmp(host, port)
            assert knocks(lab.host("one"), (lab.wan_addresses["home"], outer))
        with udp(host) as asking:  # and UPnP's discovery
            asking.sendto(
                b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n"
                b"MX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
                ("239.255.255.250", 1900),
            )  # fmt: skip
            asking.settimeout(3)
            assert b"LOCATION: http://192.168.1.1:" in asking.recv(2048)


def test_a_lab_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="no router 'cone'"):
        Router(kind="cone")
    with pytest.raises(ConfigError, match="no mapping"):
        Router(kind="symmetric", hairpin=True)
    with pytest.raises(ConfigError, match="one host"):
        Site(hosts=2)
    with pytest.raises(ConfigError, match="one IPv4 address"):
        NatLab({"six": Site(family="6")}, rtt_ms=10)


# ------------------------------------------------------------------------------------- by hand


def map_by_nat_pmp(host: NatHost, port: int) -> int:
    """RFC 6886: the outer port of a TCP mapping."""
    with udp(host) as asking:
        asking.settimeout(2)
        asking.sendto(struct.pack("!BBHHHI", 0, 2, 0, port, port, 60), ("192.168.1.1", 5351))
        _, op, status, _, inner, outer, _ = struct.unpack("!BBHIHHI", asking.recv(64))
        assert (op, status, inner) == (130, 0, port)
        return int(outer)


@contextlib.contextmanager
def udp(host: NatHost) -> Iterator[socket.socket]:
    with inside(Path("/run/netns") / host.netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind((host.address, 0))
        yield made


def hears(sock: socket.socket) -> bool:
    sock.settimeout(0.2)
    try:
        sock.recv(16)
    except TimeoutError:
        return False
    return True
