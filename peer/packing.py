"""Strict msgpack: bounded before it is parsed, and every field checked before it is believed.

Whatever is wrong with foreign bytes, `unpack` and the checkers below raise `ProtocolError` and
nothing else. Records travel as arrays, in the order of their fields: short, and one encoding each.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack

from decentral.errors import ProtocolError

MAX_ITEMS = 4096
"""Default cap on the items of one array. Bounds memory too: the parser reserves an array's
announced size before its items have come, at up to 1024 levels of nesting."""


def pack(value: object) -> bytes:
    """The one encoding of `value` (arrays, str, bytes, int, bool, None, float; maps in order)."""
    return cast(bytes, msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, *, max_bytes: int, max_items: int = MAX_ITEMS) -> Any:
    """Parse one value. No extension types; strings are UTF-8; map keys are strings or bytes."""
    if len(data) > max_bytes:
        raise ProtocolError(f"a message of {len(data)} bytes exceeds the limit of {max_bytes}")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        why = str(error) or type(error).__name__
        raise ProtocolError(f"a message cannot be parsed: {why[:120]}") from None


def integer(value: object, what: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """`value` as an int within [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise ProtocolError(f"{what} is not an integer from {low} to {high}")
    return value


def flag(value: object, what: str) -> bool:
    """`value` as a bool."""
    if type(value) is not bool:
        raise ProtocolError(f"{what} is not a boolean")
    return value


def text(value: object, what: str, max_bytes: int) -> str:
    """`value` as a printable string of at most `max_bytes` UTF-8 bytes."""
    if type(value) is not str or len(value.encode("utf-8", "surrogatepass")) > max_bytes:
        raise ProtocolError(f"{what} is not a string of at most {max_bytes} bytes")
    if not value.isprintable():  # control characters would reach a person's terminal
        raise ProtocolError(f"{what} holds unprintable characters")
    return value


def binary(value: object, what: str, low: int, high: int | None = None) -> bytes:
    """`value` as `low` bytes exactly, or from `low` to `high`."""
    top = low if high is None else high
    if type(value) is not bytes or not low <= len(value) <= top:
        size = f"{low}" if top == low else f"{low} to {top}"
        raise ProtocolError(f"{what} is not a string of {size} bytes")
    return value


def array(value: object, what: str, low: int, high: int | None = None) -> list[Any]:
    """`value` as a list of `low` items exactly, or from `low` to `high`."""
    top = low if high is None else high
    if type(value) is not list or not low <= len(value) <= top:
        size = f"{low}" if top == low else f"{low} to {top}"
        raise ProtocolError(f"{what} is not an array of {size} items")
    return value
