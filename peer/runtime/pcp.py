"""PCP, the younger way to ask a home router for a port (RFC 6887). Bytes only, no IO.

    2 │ R op │ - │ result │ lifetime │ own address (request) or epoch (response)     24 bytes
    nonce │ protocol │ - - - │ inner port │ outer port │ outer address               36 bytes (MAP)

R is the response's highest bit. IPv4 addresses are written ::ffff:a.b.c.d. The nonce makes a
mapping ours: nobody who has not seen it can guess an answer, or take the mapping back.
"""

from __future__ import annotations

import ipaddress
import struct

from decentral.errors import PortMappingError, ProtocolError
from decentral.peer.runtime.natpmp import NO_ADDRESS, Granted

VERSION = 2
NONCE_BYTES = 12
MAX_BYTES = 1100
_ANNOUNCE, _MAP, _RESPONSE, _TCP = 0, 1, 0x80, 6
_HEAD, _ALL = 24, 60

_REASONS = {
    1: "it does not speak this version",
    2: "its owner has switched port mapping off",
    3: "it calls our request malformed",
    4: "it does not know this operation",
    5: "it does not know an option of ours",
    6: "it calls an option of ours malformed",
    7: NO_ADDRESS,
    8: "it is out of resources",
    9: "it cannot map TCP ports",
    10: "this machine has as many mappings as it may have",
    11: "it cannot give that very port or address",
    12: "there is another NAT between it and this machine",
    13: "too many others have been named",
}


def ask_whether_there(own_address: str) -> bytes:
    """A request that changes nothing."""
    return _request(_ANNOUNCE, own_address, 0)


def ask_mapping(
    own_address: str, nonce: bytes, inner_port: int, outer: tuple[str, int], lifetime_s: int
) -> bytes:
    """A request for TCP. `outer` is what we would like ("0.0.0.0", 0: anything); lifetime 0 takes
    the mapping back."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    return (
        _request(_MAP, own_address, lifetime_s)
        + struct.pack(">12sB3xHH", nonce, _TCP, inner_port, outer[1])
        + _mapped(outer[0])
    )


def read_whether_there(reply: bytes) -> None:
    """PortMappingError if it says no, ProtocolError for bytes that are no such answer. Not to know
    the operation is an answer, too."""
    result, _, _ = _head(reply, _ANNOUNCE)
    if result not in (0, 4):
        raise _refused(result)


def read_mapping(reply: bytes, nonce: bytes, inner_port: int) -> tuple[str, Granted]:
    """(external IPv4 address, port and lifetime). Errors as `read_whether_there`."""
    result, lifetime_s, epoch_s = _head(reply, _MAP)
    # An error about a request that it could not parse need not repeat it.
    if result and len(reply) < _ALL:
        raise _refused(result)
    if len(reply) < _ALL:
        raise ProtocolError(f"an answer of {len(reply)} bytes, less than {_ALL}")
    theirs, protocol, inner, outer = struct.unpack_from(">12sB3xHH", reply, _HEAD)
    if (theirs, protocol, inner) != (nonce, _TCP, inner_port):
        raise ProtocolError("an answer to another request")
    if result:
        raise _refused(result)
    address = ipaddress.IPv6Address(reply[_HEAD + 20 : _ALL]).ipv4_mapped
    if address is None:
        raise ProtocolError("its external address is no IPv4 address")
    if lifetime_s and not outer:
        raise ProtocolError("a mapping of port 0")
    return str(address), Granted(outer, lifetime_s, epoch_s)


def _request(operation: int, own_address: str, lifetime_s: int) -> bytes:
    return struct.pack(">BBHI", VERSION, operation, 0, lifetime_s) + _mapped(own_address)


def _mapped(address: str) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{ipaddress.IPv4Address(address)}").packed


def _head(reply: bytes, operation: int) -> tuple[int, int, int]:
    if len(reply) >= 4 and reply[0] == 0:  # a NAT-PMP router answers so to versions above its own
        raise PortMappingError("it speaks NAT-PMP only")
    if not _HEAD <= len(reply) <= MAX_BYTES or len(reply) % 4:
        raise ProtocolError(f"{len(reply)} bytes are no answer")
    version, kind, result, lifetime_s, epoch_s = struct.unpack_from(">BBxBII", reply)
    if version != VERSION or kind != _RESPONSE | operation:
        raise ProtocolError(f"an answer of version {version} to operation {kind & 0x7F}")
    return result, lifetime_s, epoch_s


def _refused(result: int) -> PortMappingError:
    return PortMappingError(_REASONS.get(result, f"it refuses (result {result})"))
