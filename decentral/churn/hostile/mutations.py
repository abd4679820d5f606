"""Messages as an attacker writes them: real ones with wrong fields, and wrong bytes altogether.

    real message ──▶ msgpack value ──▶ one field, at any depth, is another one ──▶ bytes
                └──▶ bytes with some flipped, cut, doubled

Bytes inside a message that are msgpack again (log entries, log states) are opened too.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

NUMBERS = (
    *(-(1 << 63), -1, 0, 1, 2, 127, 128, 255, 256, (1 << 16), (1 << 20)),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 53),
    *((1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0.5, float("nan"), float("inf"), "", "x" * 70, "x" * 5000, "\x1b[2J\x00"),
    *("peer:" + "a" * 52, "0" * 16, "g" * 16, b"", bytes(8), bytes(32), bytes(5000)),
    *([], [[]], [0] * 70, [[0, 1]] * 5, {}, {"a": 1}, {b"k": []}, msgpack.ExtType(7, b"x")),
    msgpack.Timestamp(1, 2),
)
DEEP = 400
BOMBS: tuple[bytes, ...] = (
    b"\xdd\x00\x1f\xff\xff" * 1000,
    b"\xdf\x00\x0f\xff\xff" * 1000,
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff" + bytes(100),
    b"\xdb\x7f\xff\xff\xff" + b"a" * 100,
    b"",
    b"\xc1",
)
"""Sizes that are announced and do not come, and nesting without end."""


class Mutator:
    """All from one seed."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def __call__(self, payload: bytes, other: bytes) -> bytes:
        """`payload` with one to three things wrong; `other` is a real message to take from."""
        rng = self.rng
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            how: Callable[[bytes, bytes], bytes] = rng.choices(
                (self.field, self.shape, self.raw), (12, 2, 2)
            )[0]
            payload = how(payload, other)
        return payload

    # -------------------------------------------------------------- in the values

    def field(self, payload: bytes, other: bytes) -> bytes:
        """One value, at any depth, is another one."""
        try:
            value = msgpack.unpackb(payload, strict_map_key=False)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            return self.raw(payload, other)
        return self._pack(self._changed(value, 0))

    def _changed(self, value: Any, depth: int) -> Any:
        rng = self.rng
        if isinstance(value, list) and value and depth < 12:
            value = list(value)
            # The first item of a message is its code: what has another one is another message.
            at = rng.randrange(1 if depth == 0 and len(value) > 1 else 0, len(value))
            value[at] = self._changed(value[at], depth + 1)
            return value
        if (
            isinstance(value, bytes)
            and len(value) > 1
            and value[0] >> 4 == 9
            and rng.random() < 0.8
        ):
            return self.field(value, value)
        if type(value) is int and rng.random() < 0.7:
            near = (value + 1, value - 1, value + 1000, 2 * value)
            return rng.choice((*NUMBERS, *near))
        if isinstance(value, str) and value and rng.random() < 0.5:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice("a7z~\x00é") + value[at + 1 :]
        if isinstance(value, bytes) and value and rng.random() < 0.5:
            at = rng.randrange(len(value))
            return value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
        if isinstance(value, bool) and rng.random() < 0.5:
            return not value
        return rng.choice((*NUMBERS, *ODD))

    # -------------------------------------------------------------- in their number and order

    def shape(self, payload: bytes, other: bytes) -> bytes:
        """A field is missing, doubled, swapped with another one, or from another message."""
        rng = self.rng
        try:
            value = msgpack.unpackb(payload, strict_map_key=False)
            theirs = msgpack.unpackb(other, strict_map_key=False)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            return self.raw(payload, other)
        if not isinstance(value, list) or not isinstance(theirs, list) or not (value and theirs):
            return self.raw(payload, other)
        at, to = rng.randrange(len(value)), rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                del value[at]
            case 1:
                value.insert(at, value[to])
            case 2:
                value[at], value[to] = value[to], value[at]
            case 3:
                value[at] = theirs[rng.randrange(len(theirs))]
            case 4:
                value[1:] = theirs[1:]
            case 5:
                for _ in range(rng.choice((2, DEEP))):
                    value[at] = [value[at]]
        return self._pack(value)

    def _pack(self, value: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(value)
        except (ValueError, OverflowError, TypeError, RecursionError):
            return self.rng.choice(BOMBS)
        return packed

    # -------------------------------------------------------------- in the bytes

    def raw(self, payload: bytes, other: bytes) -> bytes:
        rng = self.rng
        data = bytearray(payload or b"\x90")
        at = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xDD, 0xDF, 0xFF))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                data += other
            case 5:
                data = bytearray(rng.randbytes(rng.randrange(64)))
            case 6:
                return rng.choice(BOMBS)
        return bytes(data)
