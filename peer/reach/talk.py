"""What peers say to each other about reaching each other.

on a link      r/card                     where we can be dialled, our NAT, do we relay
               r/pass [to, from, …]       carry this to your neighbour …
               r/lost [to]                … which is none of mine
               r/knock, r/knocked         does a stranger get in there?
               r/relay, r/grant           relay between me and that peer; a token, or why not
in an r/pass,  r/call, r/answer           who we are, and the nonce of this attempt
or on a link   r/go                       do that now
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

from decentral.errors import ConfigError, ProtocolError
from decentral.peer import packing
from decentral.peer.joinword import MAX_ADDRESSES, split_address
from decentral.peer.reach.nat import FILTERINGS, MAPPINGS, Nat
from decentral.peer.reach.ways import BIRTHDAY_SOCKETS, BIRTHDAY_SPRAY
from decentral.types import PeerId, peer_id, raw_id

NONCE_BYTES = 8
TOKEN_BYTES = 32
MAX_RELAYS = 4
MAX_SIGNAL_BYTES = 8192
"""A call with the most and longest addresses has 6.6 KB."""
_MAX_BYTES = MAX_SIGNAL_BYTES + 256
_MAX_ADDRESS_BYTES = 270


def is_reach(payload: bytes) -> bool:
    """Is this control message one of ours? (An array whose first item is a string "r/…".)"""
    return (
        len(payload) >= 4
        and payload[0] & 0xF0 == 0x90
        and payload[1] & 0xE0 == 0xA0
        and payload[2:4] == b"r/"
    )


@dataclass(frozen=True, slots=True)
class Card:
    """Where a peer can be found, and how hard that is."""

    KIND: ClassVar[str] = "r/card"

    addresses: tuple[str, ...]
    mapped: str
    """The one of them that a router maps to its port; "": none."""
    nat: Nat
    relays: bool
    """It relays for others."""
    clock_s: float
    """Its clock as it said this, Unix seconds."""


@dataclass(frozen=True, slots=True)
class Pass:
    KIND: ClassVar[str] = "r/pass"

    to: PeerId
    origin: PeerId
    signal: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    KIND: ClassVar[str] = "r/lost"

    to: PeerId


@dataclass(frozen=True, slots=True)
class Knock:
    KIND: ClassVar[str] = "r/knock"

    address: str


@dataclass(frozen=True, slots=True)
class Knocked:
    KIND: ClassVar[str] = "r/knocked"

    address: str
    got_in: bool


@dataclass(frozen=True, slots=True)
class RelayWanted:
    KIND: ClassVar[str] = "r/relay"

    to: PeerId


@dataclass(frozen=True, slots=True)
class RelayGrant:
    KIND: ClassVar[str] = "r/grant"

    to: PeerId
    token: bytes
    """Empty: no."""
    says: str


@dataclass(frozen=True, slots=True)
class Call:
    """Somebody wants a link; `relays`: the volunteers that it can reach, with their addresses."""

    KIND: ClassVar[str] = "r/call"

    nonce: bytes
    card: Card
    relays: tuple[tuple[PeerId, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    KIND: ClassVar[str] = "r/answer"

    nonce: bytes
    card: Card
    relays: tuple[tuple[PeerId, str], ...]


@dataclass(frozen=True, slots=True)
class GoPunch:
    """Open from your listening port (or from many) to our outer address, now."""

    KIND: ClassVar[str] = "r/punch"

    nonce: bytes
    from_listening_port: bool
    sockets: int
    spray: int


@dataclass(frozen=True, slots=True)
class GoRelay:
    """Meet us at that relay under this token."""

    KIND: ClassVar[str] = "r/meet"

    nonce: bytes
    relay: PeerId
    address: str
    token: bytes


Signal: TypeAlias = Call | Answer | GoPunch | GoRelay
Message: TypeAlias = Card | Pass | Lost | Knock | Knocked | RelayWanted | RelayGrant | Signal


# ------------------------------------------------------------------------------- to bytes


def _plain(value: object) -> object:
    match value:
        case Card() | Nat():
            return [_plain(one) for one in _fields(value)]
        case tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def _rows(volunteers: tuple[tuple[PeerId, str], ...]) -> list[object]:
    return [[raw_id(peer), address] for peer, address in volunteers]


_WRITERS: dict[str, Callable[[Any], object]] = {
    "to": raw_id,
    "origin": raw_id,
    "relay": raw_id,
    "relays": _rows,
}
"""By field of a message, where its bytes are not those of its value."""


def _fields(value: Card | Nat) -> tuple[object, ...]:
    if isinstance(value, Nat):
        return value.mapping, value.filtering, value.address, value.remapped
    return value.addresses, value.mapped, value.nat, value.relays, value.clock_s


def pack(message: Message) -> bytes:
    if isinstance(message, Card):
        fields = _fields(message)
    else:
        named = ((one.name, getattr(message, one.name)) for one in dataclasses.fields(message))
        fields = tuple(_WRITERS.get(name, _plain)(value) for name, value in named)
    return packing.pack([message.KIND, *map(_plain, fields)])


# ------------------------------------------------------------------------------- from bytes


def _peer(value: object) -> PeerId:
    return peer_id(packing.binary(value, "a peer's key", 32))


def _address(value: object) -> str:
    address = packing.text(value, "an address", _MAX_ADDRESS_BYTES)
    try:
        split_address(address)
    except ConfigError as error:
        raise ProtocolError(error.says) from None
    return address


def _some_address(value: object) -> str:
    return _address(value) if value != "" else ""


def _one_of(value: object, what: str, among: tuple[str, ...]) -> Any:
    if value not in among:
        raise ProtocolError(f"{what} is none of {', '.join(among)}")
    return value


def _nat(value: object) -> Nat:
    mapping, filtering, address, remapped = packing.array(value, "a NAT", 4)
    return Nat(
        mapping=_one_of(mapping, "a mapping", MAPPINGS),
        filtering=_one_of(filtering, "a filtering", FILTERINGS),
        address=_some_address(address),
        remapped=_flag(remapped),
    )


def _number(value: object) -> float:
    if type(value) is not float or not 0 <= value < 2**40:
        raise ProtocolError("a clock's time is no time")
    return value


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(map(_address, packing.array(value, "addresses", 0, MAX_ADDRESSES)))


def _card(value: object) -> Card:
    addresses, mapped, nat, relays, clock_s = packing.array(value, "a card", 5)
    return Card(
        _addresses(addresses), _some_address(mapped), _nat(nat), _flag(relays), _number(clock_s)
    )


def _flag(value: object) -> bool:
    return packing.flag(value, "a flag")


def _nonce(value: object) -> bytes:
    return packing.binary(value, "a nonce", NONCE_BYTES)


def _token(value: object) -> bytes:
    return packing.binary(value, "a token", TOKEN_BYTES)


def _some_token(value: object) -> bytes:
    return _token(value) if value != b"" else b""


def _sentence(value: object) -> str:
    return packing.text(value, "a sentence", 512)


def _signal(value: object) -> bytes:
    return packing.binary(value, "a signal", 1, MAX_SIGNAL_BYTES)


def _volunteers(value: object) -> tuple[tuple[PeerId, str], ...]:
    rows = [
        packing.array(row, "a relay", 2) for row in packing.array(value, "relays", 0, MAX_RELAYS)
    ]
    return tuple((_peer(peer), _address(address)) for peer, address in rows)


def _sockets(value: object) -> int:
    return packing.integer(value, "sockets", 1, BIRTHDAY_SOCKETS)


def _spray(value: object) -> int:
    return packing.integer(value, "guesses", 0, BIRTHDAY_SPRAY)


_Reader: TypeAlias = Callable[[object], Any]
_READERS: dict[str, tuple[type[Any], tuple[_Reader, ...]]] = {
    "r/card": (Card, (_addresses, _some_address, _nat, _flag, _number)),
    "r/pass": (Pass, (_peer, _peer, _signal)),
    "r/lost": (Lost, (_peer,)),
    "r/knock": (Knock, (_address,)),
    "r/knocked": (Knocked, (_address, _flag)),
    "r/relay": (RelayWanted, (_peer,)),
    "r/grant": (RelayGrant, (_peer, _some_token, _sentence)),
    "r/call": (Call, (_nonce, _card, _volunteers)),
    "r/answer": (Answer, (_nonce, _card, _volunteers)),
    "r/punch": (GoPunch, (_nonce, _flag, _sockets, _spray)),
    "r/meet": (GoRelay, (_nonce, _peer, _address, _token)),
}


def unpack(payload: bytes) -> Message:
    """ProtocolError if it is none."""
    kind, *fields = packing.array(
        packing.unpack(payload, max_bytes=_MAX_BYTES, max_items=MAX_ADDRESSES),
        "a message about reaching",
        1,
        8,
    )
    known = _READERS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise ProtocolError(f"no message about reaching is called {kind!r:.20}")
    made, readers = known
    if len(fields) != len(readers):
        raise ProtocolError(f"{kind!r} has {len(fields)} fields")
    return cast(Message, made(*(read(one) for read, one in zip(readers, fields, strict=True))))
