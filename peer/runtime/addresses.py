"""Which addresses of this machine others may dial, and what became of those that were dialled."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import psutil

from decentral.errors import DecentralError


def reachable(listen_host: str, port: int) -> list[str]:
    """``HOST:PORT`` for every address that a listener on `listen_host` answers at.

    A listener on one address has that one; on 0.0.0.0 all IPv4 ones of the machine, on :: all of
    both families. Those that other machines can reach come first and loopback last, so that a join
    word works from here and there; of the others IPv4 comes first.
    """
    if not is_everywhere(listen_host):
        return [_joined(listen_host, port)]
    families = (socket.AF_INET, socket.AF_INET6) if listen_host == "::" else (socket.AF_INET,)
    found = [
        ipaddress.ip_address(entry.address)
        for entry in _entries()
        if entry.family in families and "%" not in entry.address
    ]
    found.sort(key=lambda one: (one.is_loopback, one.is_link_local, one.version))
    return [_joined(str(one), port) for one in dict.fromkeys(found)] or [f"127.0.0.1:{port}"]


def networks() -> tuple[str, ...]:
    """What is near: the networks that this machine's interfaces are in, as ``IP/BITS``."""
    found = []
    for entry in _entries():
        if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.netmask:
            address = entry.address.partition("%")[0]
            mask = entry.netmask
            bits = str(bin(int(ipaddress.ip_address(mask))).count("1"))
            found.append(str(ipaddress.ip_network(f"{address}/{bits}", strict=False)))
    return tuple(sorted(set(found)))


def _entries() -> list[Any]:
    return [entry for entries in psutil.net_if_addrs().values() for entry in entries]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_everywhere(listen_host: str) -> bool:
    """Whether a listener there answers at all addresses of the machine."""
    return listen_host in ("0.0.0.0", "::", "")


def split(addresses: Sequence[str]) -> list[str]:
    """The core treats an address as opaque; ours is a comma-separated list."""
    return [part for address in addresses for part in address.split(",") if part]


def most_telling(failures: list[DecentralError]) -> DecentralError:
    """Of several addresses that failed, the error from the one that got furthest."""
    order = ("SelfJoinError", "NotDecentralError", "UnreachableError")
    return min(
        failures,
        key=lambda error: (
            order.index(type(error).__name__) + 1 if type(error).__name__ in order else 0
        ),
    )
