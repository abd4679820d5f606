"""Hosts on this machine: network namespaces, joined by a bridge, made and removed by the test."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Lan:
    """Hosts on one switch: host n has the address 10.77.0.n."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self.hosts: list[str] = []
        self.switch = f"sw{self.tag}"
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")

    def host(self) -> list[str]:
        """A new host; the command prefix that runs something on it."""
        number = len(self.hosts) + 1
        name, port = f"h{number}{self.tag}", f"p{number}"
        ip("netns", "add", name)
        self.hosts.append(name)
        ip("link", "add", "eth0", "netns", name, "type", "veth",
           "peer", "name", port, "netns", self.switch)  # fmt: skip
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        return ["ip", "netns", "exec", name]

    def unplug(self, number: int) -> None:
        """Cut the cable of host `number`: packets vanish, nobody gets a FIN."""
        ip("-n", self.switch, "link", "set", f"p{number}", "down")

    def plug(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", f"p{number}", "up")

    def close(self) -> None:
        for name in [*self.hosts, self.switch]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def why_not() -> str:
    """Why this system cannot make network namespaces; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (apt install iproute2)"
    probe = f"probe{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return f"this system forbids network namespaces: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""
