"""A lab whose lines the kernel shapes: veth pairs on a bridge, a token bucket at each end.

  host 0                     switch
┌─────────────┐  veth   ┌─────────────────┐
│ eth0 [tbf] ─┼─────────┼─ [tbf] p0 ┐     │     eth0's bucket: what the host may send
└─────────────┘         │           br0   │     p0's bucket:   what it may receive
┌─────────────┐         │           │     │
│ eth0 [tbf] ─┼─────────┼─ [tbf] p1 ┘     │     nft on the bridge: the cut cables
└─────────────┘         └─────────────────┘
"""

from __future__ import annotations

import json

from decentral.bench.lab import Host, Lab, Lines, addresses, command, ip

CUT = """
table bridge lab {
  set cut { type ifname; }
  chain forward {
    type filter hook forward priority 0;
    iifname @cut drop
    oifname @cut drop
  }
}
"""


class ShapedLab(Lab):
    """Made at once; at most 253 hosts."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines
        self._shaped = [False] * len(lines.rates_mbit)
        try:
            self._switch = self._namespace("sw")
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            command("ip", "netns", "exec", self._switch, "nft", CUT)
            for number, rate_mbit in enumerate(lines.rates_mbit):
                self._add(number, rate_mbit)
        except BaseException:
            self.close()
            raise

    def _add(self, number: int, rate_mbit: float) -> None:
        address = addresses(number + 1)[number]
        name, port = self._namespace(f"h{number}"), f"p{number}"
        ip("link", "add", "eth0", "netns", name, "type", "veth",
           "peer", "name", port, "netns", self._switch)  # fmt: skip
        ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        self.hosts.append(Host(name, address, "eth0"))
        self.set_rate(number, rate_mbit)

    def _set_rate(self, host: int, mbit: float) -> None:
        if mbit == 0 and not self._shaped[host]:
            return
        verb = "del" if mbit == 0 else "change" if self._shaped[host] else "add"
        rule = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb",
                "latency", f"{self._lines.queue_ms}ms"]  # fmt: skip
        for netns, device in ((self.hosts[host].netns, "eth0"), (self._switch, f"p{host}")):
            command("tc", "-n", netns, "qdisc", verb, "dev", device,
                    *(rule if mbit else ["root"]))  # fmt: skip
        self._shaped[host] = mbit != 0

    def bytes_sent(self) -> int:
        """The shapers count every segment's header; the device counts bundles of segments."""
        if not all(self._shaped):
            return super().bytes_sent()
        return sum(
            int(json.loads(command("tc", "-n", host.netns, "-s", "-j", "qdisc", "show",
                                   "dev", "eth0"))[0]["bytes"])
            for host in self.hosts
        )  # fmt: skip

    def cut(self, host: int) -> None:
        self._nft(f"add element bridge lab cut {{ p{host} }}")

    def heal(self, host: int) -> None:
        self._nft(f"delete element bridge lab cut {{ p{host} }}")

    def _nft(self, rule: str) -> None:
        command("ip", "netns", "exec", self._switch, "nft", rule)
