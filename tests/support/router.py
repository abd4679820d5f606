"""A home router for tests: a host behind it, a host outside, and a real miniupnpd on it.

 inside ── 192.168.7.0/24 ──▶ router (NAT, drops what comes from outside) ── WAN ──▶ outside
.2                         .1        miniupnpd                        .1          .2
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from decentral.bench.lab import Host, Lab, bound_socket, command, ip, why_not

PUBLIC, PRIVATE = "5.44.3", "10.9.8"
"""Networks for the WAN side. miniupnpd does not take test networks for public ones."""

RULES = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan" accept
    jump miniupnpd
  }
  chain input {
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting {
    type nat hook postrouting priority 100;
    jump postrouting_miniupnpd
    oifname "wan" masquerade
  }
  chain miniupnpd {}
  chain prerouting_miniupnpd {}
  chain postrouting_miniupnpd {}
}
"""
CONFIG = """
ext_ifname=wan
listening_ip=lan
enable_upnp={upnp}
enable_natpmp={natpmp}
secure_mode=yes
system_uptime=yes
min_lifetime=60
max_lifetime=86400
upnp_table_name=filter
upnp_nat_table_name=filter
uuid=00bbfe6b-2e99-4649-b44b-f523fe408793
allow 1024-65535 192.168.7.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Router(Lab):
    """`public`: whether its WAN side has an address that means something outside."""

    def __init__(self, *, upnp: bool = True, natpmp: bool = True, public: bool = True) -> None:
        super().__init__()
        net = PUBLIC if public else PRIVATE
        self.wan_address, self.outside_address = f"{net}.1", f"{net}.2"
        self._folder = Path(tempfile.mkdtemp(prefix="decentral-router-"))
        self._config = self._folder / "miniupnpd.conf"
        self._config.write_text(
            CONFIG.format(upnp="yes" if upnp else "no", natpmp="yes" if natpmp else "no")
        )
        self._log = (self._folder / "log").open("ab")
        self._daemon: subprocess.Popen[bytes] | None = None
        try:
            self._connect(net)
            if upnp or natpmp:
                self.start_daemon()
        except BaseException:
            self.close()
            raise

    def _connect(self, net: str) -> None:
        inside, self._router, outside = (self._namespace(n) for n in ("in", "router", "out"))
        for netns, device, end, address, far in (
            (inside, "eth0", "lan", "192.168.7.2", "192.168.7.1"),
            (outside, "eth0", "wan", f"{net}.2", f"{net}.1"),
        ):
            ip("link", "add", device, "netns", netns, "type", "veth",
               "peer", "name", end, "netns", self._router)  # fmt: skip
            ip("-n", netns, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", self._router, "addr", "add", f"{far}/24", "dev", end)
            ip("-n", netns, "link", "set", device, "up")
            ip("-n", self._router, "link", "set", end, "up")
        ip("-n", inside, "route", "add", "default", "via", "192.168.7.1")
        command(*self._on(self._router), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        command(*self._on(self._router), "nft", RULES)
        self.inside = Host(inside, "192.168.7.2", "eth0")
        self.outside = Host(outside, self.outside_address, "eth0")
        self.hosts = [self.inside, self.outside]

    def start_daemon(self) -> None:
        self._daemon = subprocess.Popen(
            [*self._on(self._router), "miniupnpd", "-d", "-f", str(self._config),
             "-P", str(self._folder / "pid")],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )  # fmt: skip
        deadline = time.monotonic() + 5
        while "HTTP listening" not in self.log():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"miniupnpd did not start: {self.log()}")
            time.sleep(0.02)

    def stop_daemon(self) -> None:
        """As a router's power loss: what it had mapped is forgotten."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGKILL)
            self._daemon.wait()
            self._daemon = None
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            command(*self._on(self._router), "nft", f"flush chain inet filter {chain}")
        self._log.truncate(0)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def hear(self, external: str, *, timeout_s: float = 1.0) -> bytes:
        """What somebody outside hears who connects to the mapped port; empty if nobody answers."""
        host, _, port = external.rpartition(":")
        netns = Path("/run/netns") / self.outside.netns
        with bound_socket(netns, self.outside_address, socket.SOCK_STREAM) as caller:
            caller.settimeout(timeout_s)
            with contextlib.suppress(OSError):
                caller.connect((host, int(port)))
                return caller.recv(100)
        return b""

    def _set_rate(self, host: int, mbit: float) -> None:
        raise NotImplementedError("these lines have no limit")

    def cut(self, host: int) -> None:
        ip("-n", self.hosts[host].netns, "link", "set", "eth0", "down")

    def heal(self, host: int) -> None:
        ip("-n", self.hosts[host].netns, "link", "set", "eth0", "up")

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None
        super().close()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _on(netns: str) -> list[str]:
        return ["ip", "netns", "exec", netns]


def why_no_router() -> str:
    """Why this system cannot run one; empty if it can."""
    if shutil.which("miniupnpd") is None:
        return "the router needs miniupnpd (apt install miniupnpd miniupnpd-nftables)"
    return why_not()
