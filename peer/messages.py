"""Every control message between peers: its fields, their limits, its bytes.

    [code, field, field, …]      one msgpack list; the code says which dataclass

A message is a frozen dataclass whose annotations carry the checks (`fields.Kind`). `unpack` raises
ProtocolError for whatever is not exactly such a message, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import msgpack

from decentral.peer.entries import take_value, take_value_or_none, unpack_any
from decentral.peer.fields import (
    MAX_MEMBERS,
    Address,
    Ancestry,
    Boot,
    Contributions,
    Flag,
    Hash,
    HashOrNone,
    Int,
    Kind,
    Lineage,
    LineageOrNone,
    Name,
    Peer,
    PeerOrNone,
    Peers,
    Ranges,
    Text,
    Vote,
    bad,
    bytes_of,
    items,
    row,
    take_integer,
    take_peer,
    text_of,
)
from decentral.peer.views_log import LogState, pack_state, unpack_state
from decentral.types import PeerId

MAX_MESSAGE_BYTES = 2 << 20

T = TypeVar("T")
_CODES: dict[type[Any], str] = {}
_READERS: dict[str, tuple[type[Any], tuple[Callable[[Any], Any], ...]]] = {}
_WRITERS: dict[type[Any], tuple[tuple[str, Callable[[Any], Any] | None], ...]] = {}


def message(code: str) -> Callable[[type[T]], type[T]]:
    """Register a dataclass as the message with this code."""

    def register(cls: type[T]) -> type[T]:
        hints = get_type_hints(cls, include_extras=True)
        names = [one.name for one in fields(cls)]  # type: ignore[arg-type]
        kinds: list[Kind] = [hints[name].__metadata__[0] for name in names]
        _CODES[cls] = code
        _READERS[code] = (cls, tuple(kind.take for kind in kinds))
        _WRITERS[cls] = tuple((name, k.put) for name, k in zip(names, kinds, strict=True))
        return cls

    return register


def pack(msg: object) -> bytes:
    """A message as bytes."""
    cls = type(msg)
    values: list[Any] = [_CODES[cls]]
    for name, put in _WRITERS[cls]:
        value = getattr(msg, name)
        values.append(value if put is None else put(value))
    packed: bytes = msgpack.packb(values)
    return packed


def unpack(payload: bytes) -> Any:
    """The message in these bytes. Raises ProtocolError for anything malformed or too large."""
    if len(payload) > MAX_MESSAGE_BYTES:
        bad(f"a control message of {len(payload)} bytes is too large")
    raw = unpack_any(payload)
    if type(raw) is not list or not raw or type(raw[0]) is not str:
        bad("a control message is not a list that starts with its code")
    known = _READERS.get(raw[0])
    if known is None:
        bad("a control message of unknown type")
    cls, takes = known
    if len(raw) != len(takes) + 1:
        bad(f"a {cls.__name__} message has {len(raw) - 1} fields, not {len(takes)}")
    return cls(*[take(value) for take, value in zip(takes, raw[1:], strict=True)])


# ------------------------------------------------------------------ kinds that only messages use

Value = Annotated[bytes, Kind(take_value)]
ValueOrNone = Annotated[bytes, Kind(take_value_or_none)]
Fingerprint = Annotated[bytes, Kind(bytes_of(0, 64))]
State = Annotated[LogState, Kind(unpack_state, pack_state)]


@dataclass(frozen=True, slots=True)
class Update:
    """What gossip says about one peer. A higher (boot, incarnation, state) wins."""

    peer: PeerId
    boot_seq: int
    incarnation: int
    state: int
    """0 alive, 1 suspect, 2 dead, 3 left."""
    name: str
    address: str


_name, _address = text_of(128), text_of(300)


def _put_updates(updates: tuple[Update, ...]) -> list[list[Any]]:
    return [[u.peer, u.boot_seq, u.incarnation, u.state, u.name, u.address] for u in updates]


def _take_updates(raw: Any) -> tuple[Update, ...]:
    found = []
    for one in items(raw, MAX_MEMBERS):
        peer, boot_seq, incarnation, state, name, address = row(one, 6)
        if take_integer(state) > 3:
            bad("gossip of an unknown state")
        take_integer(boot_seq)
        take_integer(incarnation)
        found.append(
            Update(take_peer(peer), boot_seq, incarnation, state, _name(name), _address(address))
        )
    return tuple(found)


Updates = Annotated[tuple[Update, ...], Kind(_take_updates, _put_updates)]

# ------------------------------------------------------------------ links


@message("hi")
@dataclass(frozen=True, slots=True)
class Hello:
    """First on every link, and again when the sender's standing changes."""

    run: Hash
    fingerprint: Fingerprint
    boot: Boot
    boot_seq: Int
    name: Name
    address: Address
    member: Flag
    lineage: LineageOrNone
    epoch: Int
    slot: Int
    round: Int
    samples: Int
    """Tokens committed in this lineage: what decides which of two lineages wins."""
    ancestry: Ancestry


@message("no")
@dataclass(frozen=True, slots=True)
class Refuse:
    says: Text


# ------------------------------------------------------------------ membership


@message("g")
@dataclass(frozen=True, slots=True)
class Gossip:
    updates: Updates


@message("pr")
@dataclass(frozen=True, slots=True)
class PingReq:
    """Please probe `target` for me."""

    target: Peer
    seq: Int
    suspected_incarnation: Int


@message("pa")
@dataclass(frozen=True, slots=True)
class PingAck:
    """Answer to a PingReq; without `ok`, the target did not answer (the helper is alive)."""

    target: Peer
    seq: Int
    ok: Flag
    boot_seq: Int
    incarnation: Int
    progress: Int


# ------------------------------------------------------------------ the log


@message("p1")
@dataclass(frozen=True, slots=True)
class Prepare:
    lineage: Lineage
    slot: Int
    ballot: Vote


@message("p2")
@dataclass(frozen=True, slots=True)
class Promise:
    lineage: Lineage
    slot: Int
    ballot: Vote
    accepted: Vote
    value: ValueOrNone


@message("a1")
@dataclass(frozen=True, slots=True)
class Accept:
    lineage: Lineage
    slot: Int
    ballot: Vote
    value: Value
    recovered: Flag
    """The value was accepted by somebody under a lower ballot: vote for it unseen."""


@message("a2")
@dataclass(frozen=True, slots=True)
class Accepted:
    lineage: Lineage
    slot: Int
    ballot: Vote


@message("nk")
@dataclass(frozen=True, slots=True)
class Nack:
    lineage: Lineage
    slot: Int
    ballot: Vote
    promised: Vote


@message("c")
@dataclass(frozen=True, slots=True)
class Commit:
    lineage: Lineage
    slot: Int
    value: Value


@message("cl")
@dataclass(frozen=True, slots=True)
class Learned:
    """The sender has committed everything below `slot`."""

    lineage: Lineage
    slot: Int


@message("l")
@dataclass(frozen=True, slots=True)
class Learn:
    """Tell me what is committed from `slot` on."""

    lineage: LineageOrNone
    slot: Int


@message("s")
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state of the log: for joiners and for whoever missed too much."""

    state: State
    coordinator: PeerOrNone
    book: Updates


@message("f1")
@dataclass(frozen=True, slots=True)
class ForkPrepare:
    lineage: Lineage
    slot: Int
    ballot: Vote
    survivors: Peers


@message("f2")
@dataclass(frozen=True, slots=True)
class ForkPromise:
    lineage: Lineage
    slot: Int
    ballot: Vote
    accepted: Vote
    value: ValueOrNone


@message("f3")
@dataclass(frozen=True, slots=True)
class ForkAccept:
    lineage: Lineage
    slot: Int
    ballot: Vote
    carried: ValueOrNone
    value: Value


@message("f4")
@dataclass(frozen=True, slots=True)
class ForkAccepted:
    lineage: Lineage
    slot: Int
    ballot: Vote


@message("f5")
@dataclass(frozen=True, slots=True)
class ForkCommit:
    lineage: Lineage
    slot: Int
    carried: ValueOrNone
    value: Value


# ------------------------------------------------------------------ rounds


@message("o")
@dataclass(frozen=True, slots=True)
class Offer:
    """A member's standing: what it holds, and its contribution to `round` if `ready`."""

    lineage: Lineage
    slot: Int
    round: Int
    ready: Flag
    tokens: Int
    leases: Ranges
    attempt_seen: Int
    unlinked: Peers
    """Members that the sender has no link to: no all-reduce can work like this."""
    held_known: Flag
    held_round: Int
    held_root: HashOrNone
    durable_round: Int
    stop: Text


@message("st")
@dataclass(frozen=True, slots=True)
class Start:
    lineage: Lineage
    slot: Int
    round: Int
    attempt: Int
    participants: Peers
    contributions: Contributions


@message("ok")
@dataclass(frozen=True, slots=True)
class Result:
    lineage: Lineage
    round: Int
    attempt: Int
    root: Hash


@message("ko")
@dataclass(frozen=True, slots=True)
class Failed:
    lineage: Lineage
    round: Int
    attempt: Int
    attempt_seen: Int
    suspect: PeerOrNone
    says: Text


@message("ab")
@dataclass(frozen=True, slots=True)
class Abort:
    lineage: Lineage
    round: Int
    attempt: Int
    says: Text


@message("cr")
@dataclass(frozen=True, slots=True)
class Close:
    lineage: Lineage
    round: Int


@message("hu")
@dataclass(frozen=True, slots=True)
class Stuck:
    """The sender sees no progress of this peer's trainer."""

    lineage: Lineage
    round: Int
    peer: Peer


# ------------------------------------------------------------------ joining and leaving


@message("jr")
@dataclass(frozen=True, slots=True)
class JoinRequest:
    """`lineage` and `slot` say what the joiner knows already: newer news are wanted."""

    lineage: LineageOrNone
    slot: Int


@message("en")
@dataclass(frozen=True, slots=True)
class Enter:
    """The joiner holds this committed state and has links to all members."""

    lineage: Lineage
    slot: Int
    round: Int
    root: Hash


@message("lv")
@dataclass(frozen=True, slots=True)
class LeaveRequest:
    reason: Text
