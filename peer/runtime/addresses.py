"""Which addresses of this machine others may dial."""

from __future__ import annotations

import ipaddress
import socket

import psutil


def reachable(listen_host: str, port: int) -> list[str]:
    """``HOST:PORT`` for every IPv4 address that a listener on `listen_host` answers at.

    A listener on one address has that one; on 0.0.0.0 all of the machine's, those that other
    machines can reach first and loopback last, so that a join word works from here and there.
    """
    if listen_host not in ("0.0.0.0", "::", ""):
        return [f"{listen_host}:{port}"]
    found = [
        ipaddress.ip_address(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    found.sort(key=lambda address: (address.is_loopback, address.is_link_local))
    return [f"{address}:{port}" for address in dict.fromkeys(found)] or [f"127.0.0.1:{port}"]
