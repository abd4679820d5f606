"""One peer's votes: what it has promised and accepted, and the record that survives a crash.

A slot is decided by single-decree Paxos among the members of the view before it. Whatever this
class grants is in the record before the answer is sent (`Persist` comes first in the list).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from decentral.peer.entries import take_value, unpack_any
from decentral.peer.fields import (
    Ballot,
    bad,
    items,
    row,
    take_integer,
    take_lineage,
    take_peer,
    take_text,
)
from decentral.peer.views_log import LogState, pack_state, unpack_state
from decentral.types import PeerId

NO_BALLOT: Ballot = (0, "")
_VERSION = 1


@dataclass(slots=True)
class Votes:
    """The acceptor's state for the first slot that is not committed yet."""

    promised: Ballot = NO_BALLOT
    accepted: Ballot = NO_BALLOT
    value: bytes = b""

    def promise(self, ballot: Ballot) -> bool:
        """Vote no more for lower ballots. False: a higher one has that promise already."""
        if ballot < self.promised:
            return False
        self.promised = ballot
        return True

    def accept(self, ballot: Ballot, value: bytes) -> bool:
        """Vote for a value. False: a higher ballot has been promised otherwise."""
        if ballot < self.promised:
            return False
        self.promised = self.accepted = ballot
        self.value = value
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a peer finds on its disk after a crash."""

    boot_seq: int
    state: LogState | None
    votes: Votes
    past: tuple[str, ...]
    """Lineages that this peer has left: it may have voted there and forgotten how."""
    book: tuple[tuple[PeerId, str, str], ...]
    """(peer, name, address) of whoever may be dialled to find the others again."""


class RecordWriter:
    """Encodes records; state and book, which are most of a record, only when they have changed."""

    def __init__(self) -> None:
        self._state: LogState | None = None
        self._packed = b""
        self._book: tuple[tuple[PeerId, str, str], ...] | None = None
        self._packed_book = b""

    def pack(self, record: Record) -> bytes:
        if record.state is not self._state or not self._packed:
            self._state = record.state
            self._packed = b"" if record.state is None else pack_state(record.state)
        if record.book is not self._book:
            self._book = record.book
            self._packed_book = msgpack.packb([list(one) for one in record.book])
        votes = record.votes
        fields = [
            _VERSION,
            record.boot_seq,
            self._packed,
            list(votes.promised),
            list(votes.accepted),
            votes.value,
            list(record.past),
        ]
        # An array is its header and its items, one behind the other.
        header: bytes = msgpack.Packer().pack_array_header(len(fields) + 1)
        return b"".join([header, *map(msgpack.packb, fields), self._packed_book])


def _ballot(raw: Any) -> Ballot:
    counter, owner = row(raw, 2)
    return take_integer(counter), take_text(owner)


def _votes(promised: Any, accepted: Any, value: Any) -> Votes:
    return Votes(_ballot(promised), _ballot(accepted), take_value(value) if value else b"")


def read_votes(payload: bytes) -> tuple[LogState | None, Votes]:
    """The first part of a record: whose votes they are in which slot, and how they were cast."""
    parts = msgpack.Unpacker(max_buffer_size=0)
    parts.feed(payload)
    if parts.read_array_header() != 8 or parts.unpack() != _VERSION:
        bad("not a durable record of this version")
    _, state, promised, accepted, value = (parts.unpack() for _ in range(5))
    return (None if state == b"" else unpack_state(state)), _votes(promised, accepted, value)


def read_record(payload: bytes) -> Record:
    """Inverse of `RecordWriter.pack`; ProtocolError if the bytes are not a record."""
    version, boot_seq, state, promised, accepted, value, past, book = row(unpack_any(payload), 8)
    if version != _VERSION:
        bad(f"a durable record of version {version}; this program reads version {_VERSION}")
    rows = [row(one, 3) for one in items(book, 4096)]
    return Record(
        boot_seq=take_integer(boot_seq),
        state=None if state == b"" else unpack_state(state),
        votes=_votes(promised, accepted, value),
        past=tuple(take_lineage(one) for one in items(past, 64)),
        book=tuple((take_peer(one), take_text(name), take_text(at)) for one, name, at in rows),
    )
