"""What a field of a control message may hold: strict checks for bytes that a stranger wrote.

A `Kind` turns a Python value into a msgpack value (`put`) and back (`take`). `take` raises
ProtocolError for anything out of type, length or range, so that nothing behind it has to check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, NoReturn, TypeAlias

from decentral.errors import ProtocolError
from decentral.types import Contribution, PeerId, Range

MAX_MEMBERS = 4096
MAX_RANGES = 4096
MAX_VALUE_BYTES = 1 << 19
MAX_KEPT = 64
MAX_INT = (1 << 63) - 1
MAX_TOKENS = 1 << 40
"""Of one contribution."""
MAX_U32 = (1 << 31) - 1
"""What travels in 32 bits, with room to count on from there."""
LEAP = 1 << 16
"""Ballots, attempts and incarnations count one by one: nobody honest is so far ahead of what others
know, and who believed it could never outnumber it."""
HEARSAY = LEAP // 2
"""The same for what a peer says of others' numbers: what we make of it is then no leap to them."""
MANY_STARTS = 1 << 24
"""A process that dies at once may have been started every second for half a year."""


def bad(says: str) -> NoReturn:
    raise ProtocolError(says, phase="control message")


def no_leap(claimed: int, known: int, what: str, most: int = LEAP) -> None:
    """Refuse a number that is far ahead of all that is known here."""
    if claimed > known + most:
        bad(f"{what} {claimed} leaps ahead of {known}")


class Kind:
    """How one field is written and checked. `put` is None where the value goes as it is."""

    __slots__ = ("put", "take")

    def __init__(self, take: Callable[[Any], Any], put: Callable[[Any], Any] | None = None) -> None:
        self.take = take
        self.put = put


def _integer(raw: Any) -> int:
    if type(raw) is not int or not 0 <= raw <= MAX_INT:
        bad("an integer is out of range")
    return raw


def _integer_to(most: int) -> Callable[[Any], int]:
    def take(raw: Any) -> int:
        if type(raw) is not int or not 0 <= raw <= most:
            bad(f"an integer is not from 0 to {most}")
        return raw

    return take


def _flag(raw: Any) -> bool:
    if type(raw) is not bool:
        bad("a flag is not a boolean")
    return raw


def text_of(limit: int) -> Callable[[Any], str]:
    def take(raw: Any) -> str:
        if type(raw) is not str or len(raw) > limit:
            bad(f"a text is not a string of at most {limit} characters")
        return raw

    return take


def bytes_of(least: int, most: int) -> Callable[[Any], bytes]:
    def take(raw: Any) -> bytes:
        if type(raw) is not bytes or not least <= len(raw) <= most:
            bad(f"a byte string is not of {least} to {most} bytes")
        return raw

    return take


_PEER = re.compile(r"peer:[a-z2-7]{52}")
_LINEAGE = re.compile(r"[0-9a-f]{16}")


@lru_cache(maxsize=8192)
def _is_peer(raw: str) -> bool:
    return _PEER.fullmatch(raw) is not None


def take_peer(raw: Any) -> PeerId:
    if type(raw) is not str or len(raw) != 57 or not _is_peer(raw):
        bad("a peer id is malformed")
    return raw


def _peer_or_none(raw: Any) -> PeerId | None:
    return None if raw is None else take_peer(raw)


def take_lineage(raw: Any) -> str:
    if type(raw) is not str or _LINEAGE.fullmatch(raw) is None:
        bad("a lineage is not 16 hexadecimal digits")
    return raw


def items(raw: Any, most: int) -> list[Any]:
    if type(raw) is not list or len(raw) > most:
        bad(f"a list is not of at most {most} items")
    return raw


def row(raw: Any, width: int) -> list[Any]:
    if type(raw) is not list or len(raw) != width:
        bad(f"a row does not have {width} fields")
    return raw


def _ballot(raw: Any) -> tuple[int, str]:
    counter, owner = row(raw, 2)
    if owner != "":
        take_peer(owner)
    return _integer(counter), owner


def take_peers(raw: Any) -> tuple[PeerId, ...]:
    peers = tuple(take_peer(one) for one in items(raw, MAX_MEMBERS))
    if len(set(peers)) != len(peers):
        bad("a peer is named twice")
    return peers


def put_ranges(ranges: tuple[Range, ...]) -> list[list[int]]:
    return [[one.start, one.stop] for one in ranges]


def take_ranges(raw: Any) -> tuple[Range, ...]:
    found = []
    for one in items(raw, MAX_RANGES):
        start, stop = row(one, 2)
        if _integer(start) >= _integer(stop):
            bad("a sample range is empty or backwards")
        found.append(Range(start, stop))
    return tuple(found)


def put_contributions(contributions: tuple[Contribution, ...]) -> list[list[Any]]:
    return [
        [one.peer, one.tokens, one.staleness, one.steps, put_ranges(one.leases)]
        for one in contributions
    ]


_tokens = _integer_to(MAX_TOKENS)


def take_contributions(raw: Any) -> tuple[Contribution, ...]:
    found = []
    for one in items(raw, MAX_MEMBERS):
        peer, tokens, staleness, steps, leases = row(one, 5)
        found.append(
            Contribution(
                peer=take_peer(peer),
                tokens=_tokens(tokens),
                staleness=_integer(staleness),
                steps=_integer(steps),
                leases=take_ranges(leases),
            )
        )
    if len({one.peer for one in found}) != len(found):
        bad("a contribution is counted twice")
    return tuple(found)


def _lineages(raw: Any) -> tuple[str, ...]:
    return tuple(take_lineage(one) for one in items(raw, 64))


def _integers(raw: Any) -> tuple[int, ...]:
    return tuple(_integer(one) for one in items(raw, MAX_KEPT))


take_integer = _integer
take_flag = _flag
take_text = text_of(1024)
take_tag = text_of(64)

Ballot: TypeAlias = tuple[int, str]
"""(counter, proposer). Counter 0 belongs to the first member of the view alone."""

Int = Annotated[int, Kind(_integer)]
U32 = Annotated[int, Kind(_integer_to(MAX_U32))]
Tokens = Annotated[int, Kind(_tokens)]
Flag = Annotated[bool, Kind(_flag)]
Text = Annotated[str, Kind(take_text)]
Tag = Annotated[str, Kind(take_tag)]
Integers = Annotated[tuple[int, ...], Kind(_integers, list)]
Name = Annotated[str, Kind(text_of(128))]
Address = Annotated[str, Kind(text_of(300))]
Lineage = Annotated[str, Kind(take_lineage)]
LineageOrNone = Annotated[str, Kind(lambda raw: "" if raw == "" else take_lineage(raw))]
Ancestry = Annotated[tuple[str, ...], Kind(_lineages, list)]
Peer = Annotated[PeerId, Kind(take_peer)]
PeerOrNone = Annotated[PeerId | None, Kind(_peer_or_none)]
Peers = Annotated[tuple[PeerId, ...], Kind(take_peers, list)]
Hash = Annotated[bytes, Kind(bytes_of(32, 32))]
HashOrNone = Annotated[bytes, Kind(lambda raw: b"" if raw == b"" else bytes_of(32, 32)(raw))]
Boot = Annotated[bytes, Kind(bytes_of(8, 32))]
Twin = Annotated[bytes, Kind(bytes_of(0, 32))]
Ranges = Annotated[tuple[Range, ...], Kind(take_ranges, put_ranges)]
Contributions = Annotated[tuple[Contribution, ...], Kind(take_contributions, put_contributions)]
Vote = Annotated[Ballot, Kind(_ballot, list)]
