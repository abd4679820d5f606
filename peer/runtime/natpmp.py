"""NAT-PMP, the older of two ways to ask a home router for a port (RFC 6886). Bytes only, no IO.

    request                                     response
    0 │ 0                                       0 │ 128 │ result │ epoch │ external IPv4
    0 │ 2 │ 0 0 │ inner port │ outer │ life     0 │ 130 │ result │ epoch │ inner │ outer │ life

All numbers are big-endian; a response has exactly its own length.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from decentral.errors import PortMappingError, ProtocolError

SERVER_PORT = 5351
VERSION = 0
_ADDRESS, _MAP_TCP, _RESPONSE = 0, 2, 128
ASK_ADDRESS = bytes([VERSION, _ADDRESS])

NO_ADDRESS = "it has no public address itself: it is offline, or behind another NAT"
_REASONS = {
    1: "it does not speak this version",
    2: "its owner has switched port mapping off",
    3: NO_ADDRESS,
    4: "it is out of resources",
    5: "it cannot map TCP ports",
}


@dataclass(frozen=True, slots=True)
class Granted:
    """What a router has given."""

    port: int
    """Outside."""
    lifetime_s: int
    epoch_s: int
    """How long the router remembers its mappings: less than before means that it lost them."""


def ask_mapping(inner_port: int, outer_port: int, lifetime_s: int) -> bytes:
    """A request for TCP; lifetime 0 and outer port 0 take the mapping back."""
    return struct.pack(">BBHHHI", VERSION, _MAP_TCP, 0, inner_port, outer_port, lifetime_s)


def read_address(reply: bytes) -> str:
    """The router's public IPv4 address. PortMappingError if it says no, ProtocolError for
    bytes that are no such answer."""
    _head(reply, _ADDRESS, 12)
    return str(ipaddress.IPv4Address(reply[8:12]))


def read_mapping(reply: bytes, inner_port: int) -> Granted:
    """Errors as `read_address`."""
    epoch_s = _head(reply, _MAP_TCP, 16)
    inner, outer, lifetime_s = struct.unpack_from(">HHI", reply, 8)
    if inner != inner_port:
        raise ProtocolError(f"an answer about port {inner}, not {inner_port}")
    if lifetime_s and not outer:
        raise ProtocolError("a mapping of port 0")
    return Granted(outer, lifetime_s, epoch_s)


def _head(reply: bytes, operation: int, length: int) -> int:
    if len(reply) < 8:
        raise ProtocolError(f"{len(reply)} bytes are no answer")
    version, kind, result, epoch_s = struct.unpack_from(">BBHI", reply)
    if version != VERSION or kind != _RESPONSE + operation:
        raise ProtocolError(f"an answer of version {version} to operation {kind}")
    if result:
        raise PortMappingError(_REASONS.get(result, f"it refuses (result {result})"))
    if len(reply) != length:
        raise ProtocolError(f"an answer of {len(reply)} bytes, not {length}")
    return int(epoch_s)
