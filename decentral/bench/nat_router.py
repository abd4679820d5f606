"""What a router's namespace can be told to do: load rules, forget, run miniupnpd."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from decentral.bench.lab import LabError, command, inside
from decentral.bench.nat_rules import TABLE, Router, rules

ROUTER_SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    # A kernel with br_netfilter would show the forward chain what two hosts of one LAN say.
    "net.bridge.bridge-nf-call-iptables": 0,
}
UPNP_START_S = 5.0

NETLINK_NETFILTER = 12
CT_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
REQUEST_ACK = 0x1 | 0x4


def sysctls(netns: str, values: dict[str, int]) -> None:
    """Only those that this kernel has."""
    with inside(Path("/run/netns") / netns):
        for name, value in values.items():
            path = Path("/proc/sys") / name.replace(".", "/")
            if path.exists():
                path.write_text(str(value))


def load(netns: str, router: Router, wan_address: str) -> None:
    """The router's rules, in place of older ones; what conntrack knows stays."""
    loose = {"net.netfilter.nf_conntrack_tcp_loose": int(router.stale == "adopt")}
    sysctls(netns, {**ROUTER_SYSCTLS, **loose})
    command("ip", "netns", "exec", netns, "nft", "-f", "-", stdin=rules(router, wan_address))


def forget(netns: str) -> None:
    """All mappings are gone, as after a reboot or a long silence. Port mappings stay."""
    flush_conntrack(Path("/run/netns") / netns)
    for name in ("open", "called"):
        command("ip", "netns", "exec", netns, "nft", "flush", "map", "inet", TABLE, name)


def flush_conntrack(netns: Path) -> None:
    """`conntrack -F`, without the tool: a delete request that names no connection."""
    with inside(netns):
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with netlink:
        body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        netlink.send(struct.pack("=IHHII", 16 + len(body), CT_DELETE, REQUEST_ACK, 1, 0) + body)
        status = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if status not in (0, -errno.ENOENT):
        raise LabError(f"conntrack cannot be flushed: {os.strerror(-status)}", phase="lab")


class PortMapper:
    """A miniupnpd on a router: it maps ports for the hosts of the router's LAN."""

    def __init__(self, netns: str, lan_address: str) -> None:
        if shutil.which("miniupnpd") is None:
            raise LabError("the lab needs miniupnpd (apt install miniupnpd)", phase="lab")
        self._folder = Path(tempfile.mkdtemp(prefix="decentral-upnp-"))
        config = self._folder / "miniupnpd.conf"
        config.write_text(
            "\n".join([
                "ext_ifname=wan0", f"listening_ip={lan_address}/24", "ipv6_disable=yes",
                "enable_upnp=yes", "enable_natpmp=yes", "secure_mode=yes",
                f"upnp_table_name={TABLE}", f"upnp_nat_table_name={TABLE}",
                "upnp_forward_chain=upnp", "upnp_nat_chain=upnp_pre",
                "upnp_nat_postrouting_chain=upnp_post",
                f"lease_file={self._folder / 'leases'}", "system_uptime=yes",
                "uuid=00bbfe6b-2e99-4649-b44b-f523fe408793",
                "allow 1024-65535 0.0.0.0/0 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
            ])
        )  # fmt: skip
        self._log = (self._folder / "log").open("w+b")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", netns, "miniupnpd", "-d", "-f", str(config),
             "-P", str(self._folder / "pid")],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        try:
            self._wait_for(netns, lan_address)
        except BaseException:
            self.close()
            raise

    def _wait_for(self, netns: str, lan_address: str) -> None:
        """Until NAT-PMP answers, which comes last."""
        deadline = time.monotonic() + UPNP_START_S
        with inside(Path("/run/netns") / netns):
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking:
            asking.settimeout(0.05)
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    asking.sendto(bytes(2), (lan_address, 5351))
                    asking.recv(64)
                    return
                except OSError:
                    time.sleep(0.02)
        raise LabError(f"miniupnpd does not answer: {self.says()}", phase="lab")

    def says(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
