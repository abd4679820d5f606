"""What a router does to TCP, as nftables rules: the kinds of RFC 4787 and what surrounds them.

| kind               | mapping depends on        | who may come in through a mapping        |
|--------------------|---------------------------|------------------------------------------|
| full-cone          | the inside endpoint       | anybody                                  |
| address-restricted | the inside endpoint       | any port of an address that was called   |
| port-restricted    | the inside endpoint       | the endpoint that was called             |
| symmetric          | each connection: a random port | the endpoint that was called        |
| firewall           | nothing is translated     | the endpoint that was called             |

Linux keeps the source port when it masquerades, unless another connection has just this pair of
endpoints: so all kinds but the symmetric one map endpoint p of the inside host to port p outside.
Who may come in beyond conntrack's own rule is kept in two maps, written by what goes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from decentral.errors import ConfigError

TABLE = "nat_lab"
MAPPING_S = 600
"""How long a mapping that nobody uses lets strangers in."""

KINDS = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric", "firewall")
"""`none`: no router at all, a host with a public address."""
STALE = ("drop", "reset", "adopt")


@dataclass(frozen=True, kw_only=True)
class Router:
    """One router. Defaults are those of a home router that answers strangers with silence."""

    kind: str
    wan_drop: bool = True
    """False: who knocks at a closed port gets a reset, and conntrack remembers the knock: an own
    call to just that endpoint is then mapped to another port."""
    hairpin: bool = False
    """Whether a host may reach its neighbour by the router's outer address; else that vanishes."""
    udp: bool = True
    upnp: bool = False
    """A real miniupnpd: UPnP-IGD, NAT-PMP and PCP."""
    stale: str = "drop"
    """What happens to a connection that the router has forgotten: its packets vanish, or are
    answered with a reset, or it is taken up as if it were new (what Linux does by default)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.kind == "none":
            raise ConfigError(f"there is no router {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.stale not in STALE:
            raise ConfigError(f"stale is one of {', '.join(STALE)}")
        if self.hairpin and self.kind in ("symmetric", "firewall"):
            raise ConfigError(f"a {self.kind} router has no mapping for others to come through")

    @property
    def translates(self) -> bool:
        return self.kind != "firewall"


def rules(router: Router, wan_address: str) -> str:
    """The whole ruleset, for a router with the interfaces wan0 and lan0. Replaces an older one."""
    lines = [
        f"table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        f"  map open {{ type inet_service : ipv4_addr; flags dynamic,timeout; "
        f"timeout {MAPPING_S}s; size 65535; }}",
        "  map called { type ipv4_addr . inet_service : ipv4_addr; flags dynamic,timeout; "
        f"timeout {MAPPING_S}s; size 65535; }}",
        # Named by miniupnpd's configuration; empty without it.
        "  chain upnp {}",
        "  chain upnp_pre {}",
        "  chain upnp_post {}",
        *_input(router, wan_address),
        *_forward(router),
        *(_translation(router, wan_address) if router.translates else ()),
        "}",
    ]
    return "\n".join(lines)


def _input(router: Router, wan_address: str) -> list[str]:
    unasked = "new, invalid" if router.stale == "drop" else "new"
    return [
        "  chain input { type filter hook input priority 0;",
        f'    iifname "wan0" ct state {{ {unasked} }} drop' if router.wan_drop else "",
        f'    iifname "lan0" ip daddr {wan_address} drop',
        "  }",
    ]


def _forward(router: Router) -> list[str]:
    stale = {
        "drop": "ct state invalid drop",
        "reset": 'iifname "lan0" ct state invalid reject with tcp reset',
        "adopt": "",
    }[router.stale]
    outward = 'iifname "lan0" oifname { "wan0", "lan0" } meta l4proto tcp'
    return [
        "  chain forward { type filter hook forward priority 0; policy drop;",
        f"    {stale}",
        "" if router.udp else "    meta l4proto udp drop",
        f"    {outward} ct state new update @open {{ tcp sport : ip saddr }}",
        f"    {outward} ct state new update @called {{ ip daddr . tcp sport : ip saddr }}",
        "    ct state established,related accept",
        "    jump upnp",
        '    iifname "lan0" oifname "wan0" accept',
        "    ct status dnat accept",  # `prerouting` has let it in
        "  }",
    ]


def _translation(router: Router, wan_address: str) -> list[str]:
    comes_in = {
        "full-cone": "dnat ip to tcp dport map @open",
        "address-restricted": "dnat ip to ip saddr . tcp dport map @called",
    }.get(router.kind)
    random = " random,fully-random" if router.kind == "symmetric" else ""
    from_lan = f'iifname "lan0" ip daddr {wan_address}'
    return [
        "  chain prerouting { type nat hook prerouting priority dstnat;",
        "    jump upnp_pre",
        f'    iifname "wan0" {comes_in}' if comes_in else "",
        f"    {from_lan} dnat ip to tcp dport map @open" if router.hairpin else "",
        "  }",
        "  chain postrouting { type nat hook postrouting priority srcnat;",
        "    jump upnp_post",
        f'    iifname "lan0" oifname "lan0" ct status dnat snat ip to {wan_address}',
        f'    oifname "wan0" meta nfproto ipv4 masquerade{random}',
        "  }",
    ]
