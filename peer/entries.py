"""Log entries as bytes: one canonical form, so that all peers vote on the same value."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgpack

from decentral.errors import ProtocolError
from decentral.peer.fields import (
    MAX_MEMBERS,
    MAX_VALUE_BYTES,
    bad,
    bytes_of,
    put_contributions,
    row,
    take_contributions,
    take_flag,
    take_integer,
    take_lineage,
    take_peers,
    take_tag,
    take_text,
)
from decentral.peer.protocol import Entry, PauseEntry, RollbackEntry, RoundEntry, ViewEntry
from decentral.types import View

_take_root = bytes_of(32, 32)


def unpack_any(payload: bytes) -> Any:
    """msgpack → plain values; ProtocolError for whatever is not exactly one msgpack object."""
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            use_list=True,
            strict_map_key=True,
            # The parser makes room for what an array announces before any of it has come.
            max_array_len=MAX_MEMBERS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as why:
        raise ProtocolError("bytes are not msgpack", phase="control message") from why


def put_view(view: View) -> list[Any]:
    return [view.lineage, view.epoch, list(view.members)]


def take_view(raw: Any) -> View:
    lineage, epoch, members = row(raw, 3)
    view = View(
        lineage=take_lineage(lineage), epoch=take_integer(epoch), members=take_peers(members)
    )
    if not view.members:
        bad("a view has no members")
    return view


def encode_entry(entry: Entry) -> bytes:
    """The bytes that are voted on."""
    match entry:
        case ViewEntry():
            fields: list[Any] = ["v", put_view(entry.view), entry.reason[:1024]]
        case RoundEntry():
            fields = [
                "r",
                entry.round,
                entry.attempt,
                put_contributions(entry.contributions),
                entry.state_root,
                entry.durable_round,
                entry.stop[:1024],
                entry.tag,
            ]
        case RollbackEntry():
            fields = ["b", entry.round, entry.state_root, entry.tag, entry.reason[:1024]]
        case PauseEntry():
            fields = ["p", entry.paused, entry.reason[:1024]]
    packed: bytes = msgpack.packb(fields)
    return packed


@lru_cache(maxsize=256)
def decode_entry(payload: bytes) -> Entry:
    """Inverse of `encode_entry`; ProtocolError for anything else."""
    if len(payload) > MAX_VALUE_BYTES:
        bad("a log entry is too long")
    raw = unpack_any(payload)
    if type(raw) is not list or not raw:
        bad("a log entry is not a list")
    match raw[0]:
        case "v":
            _, view, reason = row(raw, 3)
            return ViewEntry(view=take_view(view), reason=take_text(reason))
        case "r":
            _, number, attempt, contributions, root, durable, stop, tag = row(raw, 8)
            return RoundEntry(
                round=take_integer(number),
                attempt=take_integer(attempt),
                contributions=take_contributions(contributions),
                state_root=_take_root(root),
                durable_round=take_integer(durable),
                stop=take_text(stop),
                tag=take_tag(tag),
            )
        case "b":
            _, number, root, tag, reason = row(raw, 5)
            return RollbackEntry(
                round=take_integer(number),
                state_root=_take_root(root),
                tag=take_tag(tag),
                reason=take_text(reason),
            )
        case "p":
            _, paused, reason = row(raw, 3)
            return PauseEntry(paused=take_flag(paused), reason=take_text(reason))
    raise ProtocolError("a log entry of unknown type", phase="control message")


def take_value(raw: Any) -> bytes:
    """A field that holds an encoded entry: checked here, decoded again (cached) where used."""
    if type(raw) is not bytes:
        bad("a value is not bytes")
    decode_entry(raw)
    return raw


def take_value_or_none(raw: Any) -> bytes:
    return b"" if raw == b"" else take_value(raw)
