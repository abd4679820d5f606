"""An internet with sites behind routers of every kind, on this machine (Linux, root).

    with NatLab({
        "entry": Site(),                                       a host with a public address
        "home": Site(router=Router(kind="port-restricted")),   behind a home router
        "mobile": Site(router=Router(kind="port-restricted"), carrier=Router(kind="symmetric")),
    }, rtt_ms=100) as lab:
        subprocess.Popen([*lab.host("home").prefix, "python", …])
        lab.forget("home"); lab.renumber("entry"); lab.move(lab.host("home"), "mobile")

    ┌ home ────────┐  lan0 ┌ router ────────┐ wan0      ┌ internet ──────────┐
    │ 192.168.1.10 ├───────┤ nftables       ├───────────┤ 11.77.n.1          │  routes only
    └──────────────┘       │ 11.77.n.2      │    ┌──────┤  or _netlab: delay │
                           └────────────────┘  entry    └────────────────────┘

All homes have the same private network, as they do in the world: an address of one LAN is another
machine, or none, in every other. The addresses of the internet look public to `ipaddress` and to
miniupnpd, which examples of RFC 5737 do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from decentral.bench.delay_line import DelayLine
from decentral.bench.lab import LabError, Namespaces, command, ip, sweep, why_not
from decentral.bench.nat_router import PortMapper, forget, load, sysctls
from decentral.bench.nat_rules import Router
from decentral.errors import ConfigError

NET, NET6 = "11.77", "2600:77:0"
"""Uplink n of the internet is 11.77.n.0/24 and 2600:77:0:n::/64; what hangs on it begins at .2."""
LAN, CARRIER_LAN, ROUTED_LAN = "192.168.1", "100.64.0", "11.78"
"""ROUTED_LAN.n is the network behind a firewall, which translates nothing."""
MAC = "02:77:0:0"
CUT = """
table inet cables {
  set cut { type ifname; }
  chain forward { type filter hook forward priority 0; iifname @cut drop; oifname @cut drop; }
}
"""
QUEUE_MS = 100


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place of the internet."""

    router: Router | None = None
    """None: one host with a public address, and nothing in front of it."""
    carrier: Router | None = None
    """The provider's own NAT between the router and the internet."""
    behind: str = ""
    """Another site (named before this one), whose carrier is this one's, too."""
    hosts: int = 1
    """On the site's LAN. 0: somewhere to move to."""
    isolated: bool = False
    """The hosts of the LAN reach the router, and not each other (a guest network)."""
    family: str = "4"
    """Of a public host: "4", "6", or "46"."""

    def __post_init__(self) -> None:
        if self.router is None and (self.hosts != 1 or self.carrier or self.behind):
            raise ConfigError("without a router there is one host, and no carrier")
        if self.carrier and self.behind:
            raise ConfigError("a site has a carrier of its own, or shares one")
        if self.family not in ("4", "6", "46") or (self.router and self.family != "4"):
            raise ConfigError("a site is 4; a public host may also be 6 or 46")


@dataclass(eq=False)
class NatHost:
    """One machine. Its addresses change when it moves."""

    netns: str
    interface: str
    addresses: list[str] = field(default_factory=list)

    @property
    def prefix(self) -> list[str]:
        """What to put before a command so that it runs on this host."""
        return ["ip", "netns", "exec", self.netns]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def listen(self) -> str:
        """For `decentral peer --listen`: any address that this host has, any port."""
        return "[::]:0" if any(":" in address for address in self.addresses) else "0.0.0.0:0"


@dataclass
class _Lan:
    """The inner side of one router."""

    netns: str
    router: Router
    network: str
    """The first three octets; the router is .1."""
    wan_address: str
    isolated: bool = False
    members: int = 0


class NatLab(Namespaces):
    """Made at once: about 30 ms for each namespace."""

    def __init__(self, sites: Mapping[str, Site], *, rtt_ms: float = 0) -> None:
        """`rtt_ms`: between any two uplinks; then IPv4 only, and no firewall without NAT."""
        super().__init__()
        reason = why_not(delayed=rtt_ms > 0) or why_not()
        if reason:
            raise LabError(reason, phase="lab")
        if rtt_ms and any(
            site.family != "4" or (site.router and not site.router.translates)
            for site in sites.values()
        ):
            raise ConfigError("a delay line carries what has one IPv4 address per uplink")
        sweep()
        self.sites, self.rtt_ms = dict(sites), rtt_ms
        self.hosts: dict[str, list[NatHost]] = {}
        self.wan_addresses: dict[str, str] = {}
        """Of each site's outermost router, or of its public host."""
        self._uplinks: dict[str, int] = {}
        self._lans: dict[str, list[_Lan]] = {}
        """Per site, from the outermost router inwards."""
        self._mappers: list[PortMapper] = []
        self._line: DelayLine | None = None
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def host(self, site: str, number: int = 0) -> NatHost:
        return self.hosts[site][number]

    def close(self) -> None:
        for mapper in self._mappers:
            mapper.close()
        self._mappers.clear()
        if self._line is not None:
            self._line.close()
            self._line = None
        super().close()

    # ---------------------------------------------------------------------------- what happens

    def forget(self, site: str) -> None:
        """Every router of the site loses its mappings (a reboot, an expiry)."""
        for lan in self._lans[site]:
            forget(lan.netns)

    def renumber(self, site: str) -> None:
        """The provider gives the site another address; a public host is itself renumbered."""
        old = self.wan_addresses[site]
        if self._line is not None:
            raise ConfigError("behind a delay line addresses stay", phase="lab")
        number, last = self._uplinks[site], int(old.rpartition(".")[2]) + 1
        new = f"{NET}.{number}.{last}"
        netns = self._outermost(site)
        ip("-n", netns, "address", "delete", f"{old}/24", "dev", "wan0")
        ip("-n", netns, "address", "add", f"{new}/24", "dev", "wan0")
        ip("-n", netns, "route", "replace", "default", "via", f"{NET}.{number}.1")
        self.wan_addresses[site] = new
        lans = self._lans[site]
        if lans:
            lans[0].wan_address = new
            load(lans[0].netns, lans[0].router, new)
            forget(lans[0].netns)
        else:
            host = self.host(site)
            host.addresses = [new, *(one for one in host.addresses if one != old)]

    def move(self, host: NatHost, site: str) -> None:
        """Unplug a host and plug it into another site's LAN: a new address, another router."""
        lans = self._lans[site]
        if not lans:
            raise ConfigError(f"{site} has no LAN to move to", phase="lab")
        ip("-n", host.netns, "link", "delete", host.interface)
        for hosts in self.hosts.values():
            if host in hosts:
                hosts.remove(host)
        self._plug(host, lans[-1])
        self.hosts[site].append(host)

    def cut(self, site: str) -> None:
        """Pull the cable to the internet: packets vanish, nobody gets a FIN or an error."""
        self._cable(site, cut=True)

    def heal(self, site: str) -> None:
        self._cable(site, cut=False)

    # ------------------------------------------------------------------------------- building

    def _make(self) -> None:
        if not self.rtt_ms:
            self._internet = self._namespace("net")
            sysctls(self._internet, {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
            command("ip", "netns", "exec", self._internet, "nft", "-f", "-", stdin=CUT)
        for number, (name, site) in enumerate(self.sites.items(), 1):
            self._uplinks[name], self.hosts[name] = number, []
            self.wan_addresses[name] = (
                self.wan_addresses[site.behind] if site.behind else f"{NET}.{number}.2"
            )
            self._lans[name] = self._routers(name, site, number)
            for count in range(site.hosts):
                interface = "wan0" if site.router is None else "eth0"
                self.hosts[name].append(NatHost(self._namespace(f"{name}-h{count}"), interface))
        if self.rtt_ms:
            self._line = DelayLine(
                (self._outermost(name), self.wan_addresses[name])
                for name, site in self.sites.items()
                if not site.behind
            )
            self._line.tell(f"queue * {QUEUE_MS}")
            self._line.tell(f"delay * * {self.rtt_ms / 2}")
        for name, site in self.sites.items():
            if not site.behind:
                self._uplink(name, site)
            self._furnish(name)

    def _routers(self, name: str, site: Site, number: int) -> list[_Lan]:
        """From the outermost one inwards; none of them is furnished yet."""
        lans: list[_Lan] = []
        if site.behind:
            lans = self._lans[site.behind][:1]
        elif site.carrier is not None:
            outer = self._namespace(f"{name}-carrier")
            lans = [_Lan(outer, site.carrier, CARRIER_LAN, self.wan_addresses[name])]
        if site.router is not None:
            wan = self.wan_addresses[name]
            if lans:
                lans[0].members += 1
                wan = f"{CARRIER_LAN}.{lans[0].members + 1}"
            network = LAN if site.router.translates else f"{ROUTED_LAN}.{number}"
            netns = self._namespace(f"{name}-router")
            lans.append(_Lan(netns, site.router, network, wan, site.isolated))
        return lans

    def _outermost(self, site: str) -> str:
        lans = self._lans[site]
        return lans[0].netns if lans else self.hosts[site][0].netns

    def _uplink(self, name: str, site: Site) -> None:
        netns, number = self._outermost(name), self._uplinks[name]
        if self.rtt_ms:
            ip("-n", netns, "route", "add", "default", "dev", "wan0")
        else:
            port, inside, outside = f"w{number}", [], []
            if "4" in site.family:
                outside.append(f"address add {NET}.{number}.1/24 dev {port}")
                inside += [
                    f"address add {self.wan_addresses[name]}/24 dev wan0",
                    f"route add default via {NET}.{number}.1",
                ]
            if "6" in site.family:
                here, there = f"{NET6}:{number:x}::2", f"{NET6}:{number:x}::1"
                # Fixed neighbours: discovery takes two seconds on a fresh interface.
                outside += [
                    f"link set {port} address {MAC}:1:{number:x}",
                    f"address add {there}/64 dev {port} nodad",
                    f"neighbour add {here} lladdr {MAC}:0:{number:x} dev {port}",
                ]
                inside += [
                    f"link set wan0 address {MAC}:0:{number:x}",
                    f"address add {here}/64 dev wan0 nodad",
                    f"neighbour add {there} lladdr {MAC}:1:{number:x} dev wan0",
                    f"route add ::/0 via {there}",
                ]
            self._veth(netns, "wan0", self._internet, port)
            batch(self._internet, [f"link set {port} up", *outside])
            batch(netns, ["link set wan0 up", *inside])
        if site.router is None:
            four, six = [self.wan_addresses[name]], [f"{NET6}:{number:x}::2"]
            self.hosts[name][0].addresses = four * ("4" in site.family) + six * ("6" in site.family)

    def _furnish(self, name: str) -> None:
        """The routers, each with its LAN, then the hosts."""
        lans = self._lans[name]
        for depth, lan in enumerate(lans):
            if depth:
                port = f"p{lan.wan_address.rpartition('.')[2]}"
                self._veth(lan.netns, "wan0", lans[0].netns, port)
                batch(lans[0].netns, [f"link set {port} master lan0 up"])
                batch(
                    lan.netns,
                    [
                        "link set wan0 up",
                        f"address add {lan.wan_address}/24 dev wan0",
                        f"route add default via {CARRIER_LAN}.1",
                    ],
                )
            elif self.sites[name].behind:
                continue
            batch(
                lan.netns,
                [
                    "link add lan0 type bridge",
                    f"address add {lan.network}.1/24 dev lan0",
                    "link set lan0 up",
                ],
            )
            load(lan.netns, lan.router, lan.wan_address)
            if not lan.router.translates:
                ip("-n", self._internet, "route", "add", f"{lan.network}.0/24", "via",
                   self.wan_addresses[name])  # fmt: skip
            if lan.router.upnp:
                self._mappers.append(PortMapper(lan.netns, f"{lan.network}.1"))
        if lans:
            for host in self.hosts[name]:
                self._plug(host, lans[-1])

    def _plug(self, host: NatHost, lan: _Lan) -> None:
        address, port = f"{lan.network}.{10 + lan.members}", f"p{10 + lan.members}"
        lan.members += 1
        host.interface, host.addresses = "eth0", [address]
        self._veth(host.netns, "eth0", lan.netns, port)
        batch(lan.netns, [f"link set {port} master lan0 up"])
        if lan.isolated:
            ip("-n", lan.netns, "link", "set", port, "type", "bridge_slave", "isolated", "on")
        batch(
            host.netns,
            [
                "link set eth0 up",
                f"address add {address}/24 dev eth0",
                f"route add default via {lan.network}.1",
            ],
        )

    def _veth(self, netns: str, name: str, other_netns: str, other: str) -> None:
        ip("link", "add", name, "netns", netns, "type", "veth",
           "peer", "name", other, "netns", other_netns)  # fmt: skip

    def _cable(self, site: str, *, cut: bool) -> None:
        if self._line is not None:
            named = [name for name, one in self.sites.items() if not one.behind]
            self._line.tell(f"{'cut' if cut else 'heal'} {named.index(site)}")
            return
        verb = "add" if cut else "delete"
        command("ip", "netns", "exec", self._internet, "nft",
                f"{verb} element inet cables cut {{ w{self._uplinks[site]} }}")  # fmt: skip


def batch(netns: str, lines: list[str]) -> None:
    """Several commands of `ip` in one namespace, for the price of one."""
    command("ip", "-n", netns, "-batch", "-", stdin="\n".join(lines) + "\n")
