"""Which pairs of sites must reach each other, and how well at least: the rows of the NAT matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from decentral.bench.nat_lab import Site
from decentral.bench.nat_rules import Router

FIVE = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric")
DIRECT = frozenset({"direct", "mapped", "punched"})
CONNECTED = DIRECT | {"relayed"}
DIRECT_PAIRS = 14
"""Of the 15: two symmetric NATs have nothing that one could tell the other."""

ZERO, FAR = 0.0, 100.0
"""Round trips between sites, in milliseconds."""

ENTRY_S = {ZERO: 0.3, FAR: 0.5}
"""From a newcomer's first dial to an authenticated link with the entry, a public host."""
LINK_S = 1.5
"""From when one wants a link to the other to an authenticated one."""
RELAYED_S = 1.0
"""Where that goes through a relay."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Two hosts that join one run by its entry, and must get a link to each other."""

    name: str
    group: str
    a: tuple[str, int]
    """Site, and number of the host there."""
    b: tuple[str, int]
    bar: frozenset[str] = CONNECTED
    """Which classes of link are good enough."""
    rtt_ms: float = ZERO
    entry: str = "entry"
    observer: str = "observer"

    @property
    def sites(self) -> frozenset[str]:
        return frozenset({self.a[0], self.b[0]})


def routed(kind: str, **options: Any) -> Site:
    return Site() if kind == "none" else Site(router=Router(kind=kind, **options))


def sites(rtt_ms: float) -> dict[str, Site]:
    """Everything that the scenarios of one lab need."""
    two = {f"{kind}-{side}": routed(kind) for kind in FIVE for side in "ab"}
    port = "port-restricted"
    answers = {f"{port}-answers-{side}": routed(port, wan_drop=False) for side in "ab"}
    if rtt_ms == FAR:
        return {"entry": Site(), "observer": Site(), **two, **answers}
    carried = {kind: Site(router=Router(kind=port), carrier=Router(kind=kind)) for kind in FIVE[3:]}
    return {
        "entry": Site(),
        "observer": Site(),
        "entry-46": Site(family="46"),
        **two,
        **{f"{kind}-upnp": routed(kind, upnp=True) for kind in FIVE[1:]},
        **answers,
        "symmetric-answers": routed("symmetric", wan_drop=False),
        "cgnat-port-restricted": carried[port],
        "cgnat-symmetric": carried["symmetric"],
        **_shared(),
        **{f"no-udp-{side}": routed(port, udp=False) for side in "ab"},
        "four": Site(),
        "six": Site(family="6"),
        **{f"firewall-{side}": routed("firewall") for side in "ab"},
    }


def _shared() -> dict[str, Site]:
    """Neighbours: behind one router, on an isolating LAN too, and behind one carrier."""
    found = {}
    for hairpin, name in ((False, ""), (True, "-hairpin")):
        port = Router(kind="port-restricted", hairpin=hairpin)
        home = Router(kind="port-restricted")
        found[f"same{name}"] = Site(router=port, hosts=2)
        found[f"guests{name}"] = Site(router=port, hosts=2, isolated=True)
        found[f"carrier{name}-a"] = Site(router=home, carrier=port)
        found[f"carrier{name}-b"] = Site(router=home, behind=f"carrier{name}-a")
    return found


def scenarios() -> Iterator[Scenario]:
    pairs = list(combinations_with_replacement(FIVE, 2))
    for a, b in pairs:
        good = CONNECTED if a == b == "symmetric" else DIRECT
        yield Scenario(name=f"{a} × {b}", group="pairs", a=(f"{a}-a", 0), b=(f"{b}-b", 0), bar=good)
    for a, b in pairs:
        left, right = (f"{a}-a", f"{b}-upnp") if a == "none" else (f"{a}-upnp", f"{b}-b")
        if b == "none":
            right = "none-b"
        yield Scenario(
            name=f"{a} × {b}, one maps a port",
            group="mapped",
            a=(left, 0),
            b=(right, 0),
            bar=DIRECT,
        )
    yield from _extras()


def _extras() -> Iterator[Scenario]:
    port, symmetric = "port-restricted", "symmetric"
    rows: Iterable[tuple[str, str, str, frozenset[str]]] = (
        # With no distance between them one's call always finds the other's router unprepared.
        ("no WAN drop rule: port × port", f"{port}-answers-a", f"{port}-answers-b", CONNECTED),
        ("no WAN drop rule: port × symmetric", f"{port}-answers-a", "symmetric-answers", CONNECTED),
        ("CGNAT × none", "cgnat-symmetric", "none-b", DIRECT),
        ("CGNAT × full-cone", "cgnat-symmetric", "full-cone-b", DIRECT),
        ("CGNAT (port-restricted) × port-restricted", f"cgnat-{port}", f"{port}-b", DIRECT),
        ("CGNAT × CGNAT", "cgnat-symmetric", f"cgnat-{port}", CONNECTED),
        ("both behind one CGNAT", "carrier-a", "carrier-b", CONNECTED),
        ("both behind one CGNAT, hairpin", "carrier-hairpin-a", "carrier-hairpin-b", CONNECTED),
        ("UDP blocked on both sides", "no-udp-a", "no-udp-b", DIRECT),
        ("one-way firewall × none", "firewall-a", "none-b", DIRECT),
        ("one-way firewall × one-way firewall", "firewall-a", "firewall-b", DIRECT),
        ("one-way firewall × port-restricted", "firewall-a", f"{port}-b", DIRECT),
        ("one-way firewall × symmetric", "firewall-a", f"{symmetric}-b", CONNECTED),
    )  # fmt: skip
    for name, a, b, bar in rows:
        yield Scenario(name=name, group="extras", a=(a, 0), b=(b, 0), bar=bar)
    for name, site, bar in (
        ("both behind one NAT", "same", DIRECT),
        ("both behind one NAT, hairpin", "same-hairpin", DIRECT),
        ("both behind one NAT, isolated", "guests", CONNECTED),
        ("both behind one NAT, isolated, hairpin", "guests-hairpin", DIRECT),
    ):
        yield Scenario(name=name, group="extras", a=(site, 0), b=(site, 1), bar=bar)
    yield Scenario(
        name="IPv6 only × IPv4 only", group="extras", a=("six", 0), b=("four", 0),
        bar=frozenset({"relayed"}), entry="entry-46",
    )  # fmt: skip
    for name, a, b, bar in (
        ("none × none", "none-a", "none-b", DIRECT),
        ("none × port-restricted", "none-a", f"{port}-b", DIRECT),
        ("port-restricted × port-restricted", f"{port}-a", f"{port}-b", DIRECT),
        ("port-restricted × symmetric", f"{port}-a", f"{symmetric}-b", DIRECT),
        ("symmetric × symmetric", f"{symmetric}-a", f"{symmetric}-b", CONNECTED),
        ("no WAN drop rule: port × port", f"{port}-answers-a", f"{port}-answers-b", DIRECT),
    ):
        yield Scenario(name=f"{name}, 100 ms", group="far", a=(a, 0), b=(b, 0), bar=bar, rtt_ms=FAR)
