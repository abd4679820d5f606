"""Messages as bytes: a registry of frozen dataclasses, each with a short code.

    [code, field, field, …]      one msgpack list; the code says which dataclass

The annotations of a message carry the checks (`fields.Kind`). `unpack` raises ProtocolError for
whatever is not exactly such a message, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

import msgpack

from decentral.peer.entries import unpack_any
from decentral.peer.fields import Kind, bad

MAX_MESSAGE_BYTES = 2 << 20
MAX_CACHED_BYTES = 8192

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
    if len(payload) <= MAX_CACHED_BYTES:
        return _unpack_again(payload)
    if len(payload) > MAX_MESSAGE_BYTES:
        bad(f"a control message of {len(payload)} bytes is too large")
    return _unpack_large(payload)


@lru_cache(maxsize=2048)
def _unpack_again(payload: bytes) -> Any:
    """Messages cannot be changed: peers of one process share what was sent to all of them."""
    return _unpack(payload)


@lru_cache(maxsize=4)
def _unpack_large(payload: bytes) -> Any:
    """What a crowd is told at once: who takes part, what is proposed."""
    return _unpack(payload)


def _unpack(payload: bytes) -> Any:
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


def code_of(cls: type[Any]) -> str:
    """The code of a kind of message."""
    return _CODES[cls]


def message_types() -> tuple[type[Any], ...]:
    """Every kind of message there is."""
    return tuple(_CODES)
