"""Every control message between peers: its fields and their limits (`codec` makes them bytes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from decentral.peer.codec import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from decentral.peer.codec import message
from decentral.peer.codec import pack as pack
from decentral.peer.codec import unpack as unpack
from decentral.peer.core_config import MAX_TAGS
from decentral.peer.entries import take_value, take_value_or_none
from decentral.peer.fields import (
    U32,
    Address,
    Ancestry,
    Boot,
    Contributions,
    Flag,
    Hash,
    HashOrNone,
    Int,
    Integers,
    Kind,
    Lineage,
    LineageOrNone,
    Name,
    Peer,
    PeerOrNone,
    Peers,
    Ranges,
    Tag,
    Text,
    Tokens,
    Twin,
    Vote,
    bytes_of,
    items,
    row,
    take_integer,
    take_tag,
)
from decentral.peer.news import Update as Update
from decentral.peer.news import Updates
from decentral.peer.views_log import LogState, pack_state, unpack_state

# ------------------------------------------------------------------ kinds that only messages use

Value = Annotated[bytes, Kind(take_value)]
ValueOrNone = Annotated[bytes, Kind(take_value_or_none)]
Fingerprint = Annotated[bytes, Kind(bytes_of(0, 64))]
State = Annotated[LogState, Kind(unpack_state, pack_state)]


def _take_held(raw: Any) -> tuple[tuple[str, int, bytes], ...]:
    rows = [row(one, 3) for one in items(raw, MAX_TAGS)]
    return tuple((take_tag(tag), take_integer(number), _root(root)) for tag, number, root in rows)


_root = bytes_of(32, 32)
Held = Annotated[
    tuple[tuple[str, int, bytes], ...], Kind(_take_held, lambda held: [list(one) for one in held])
]
"""(tag, round, root) per state."""

# ------------------------------------------------------------------ links


@message("hi")
@dataclass(frozen=True, slots=True)
class Hello:
    """First on every link, and again when the sender's standing changes."""

    run: Hash
    fingerprint: Fingerprint
    boot: Boot
    boot_seq: U32
    name: Name
    address: Address
    member: Flag
    lineage: LineageOrNone
    epoch: Int
    slot: Int
    samples: Int
    """Tokens committed in this lineage: what decides which of two lineages wins."""
    ancestry: Ancestry


@message("no")
@dataclass(frozen=True, slots=True)
class Refuse:
    says: Text
    fences: Twin
    """Nonce of the process that must not vote any more, because another one has its identity: a
    link goes to an identity, so this may reach that other one. Empty: no such refusal."""


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
    suspected_incarnation: U32


@message("pa")
@dataclass(frozen=True, slots=True)
class PingAck:
    """Answer to a PingReq; without `ok`, the target did not answer (the helper is alive)."""

    target: Peer
    seq: Int
    ok: Flag
    boot_seq: U32
    incarnation: U32
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
    """A member's standing under one tag: what it holds, and its contribution if `ready`."""

    lineage: Lineage
    slot: Int
    tag: Tag
    takes: Flag
    """Whether the sender takes part in this tag's rounds at all."""
    round: Int
    ready: Flag
    tokens: Tokens
    staleness: Int
    steps: Int
    leases: Ranges
    step_ms: Int
    """Median inner step of its trainer; 0: not known."""
    attempt_seen: U32
    unlinked: Peers
    """Members that the sender has no link to: no all-reduce can work like this."""
    held_known: Flag
    held_round: Int
    held_root: HashOrNone
    durable_round: Int
    kept: Integers
    """Rounds that its disk can give back."""
    stop: Text


@message("st")
@dataclass(frozen=True, slots=True)
class Start:
    lineage: Lineage
    slot: Int
    tag: Tag
    round: Int
    attempt: U32
    participants: Peers
    contributions: Contributions


@message("ok")
@dataclass(frozen=True, slots=True)
class Result:
    lineage: Lineage
    tag: Tag
    round: Int
    attempt: U32
    root: Hash


@message("ko")
@dataclass(frozen=True, slots=True)
class Failed:
    lineage: Lineage
    tag: Tag
    round: Int
    attempt: U32
    attempt_seen: U32
    suspect: PeerOrNone
    says: Text


@message("ab")
@dataclass(frozen=True, slots=True)
class Abort:
    lineage: Lineage
    tag: Tag
    round: Int
    attempt: U32
    says: Text


@message("cr")
@dataclass(frozen=True, slots=True)
class Close:
    lineage: Lineage
    tag: Tag
    round: Int


@message("hu")
@dataclass(frozen=True, slots=True)
class Stuck:
    """The sender sees no progress of this peer's trainer, and `slot` is where its log is."""

    lineage: Lineage
    slot: Int
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
    """The joiner holds these committed states and has links to all members."""

    lineage: Lineage
    slot: Int
    held: Held


@message("qu")
@dataclass(frozen=True, slots=True)
class Quarantined:
    """The receiver may enter after so long: it has come and gone too often lately."""

    wait_ms: Int
    stays: Int


@message("lv")
@dataclass(frozen=True, slots=True)
class LeaveRequest:
    reason: Text


# ------------------------------------------------------------------ what people ask for


@message("w")
@dataclass(frozen=True, slots=True)
class Wish:
    """Please propose this: "pause", "resume" or "rollback" (of `tag` to `round`)."""

    what: Text
    round: Int
    reason: Text
    tag: Tag


@message("wn")
@dataclass(frozen=True, slots=True)
class WishRefused:
    what: Text
    says: Text
