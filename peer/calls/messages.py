"""What is said about calls. The caller numbers its calls, upwards; all that is said names one."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import ClassVar, TypeAlias

from decentral.errors import ProtocolError
from decentral.peer import packing

INLINE_BYTES = 32 << 10
"""A body that is larger travels beside the control stream, as a blob."""
MAX_BODY_BYTES = 16 << 20
MAX_METHOD_BYTES = 64
MAX_SAYS_BYTES = 500
_MAX_MESSAGE_BYTES = INLINE_BYTES + 1024
_MAX_NUMBER = 2**62

PHASES = ("busy", "method", "handler", "body", "cancelled")
"""Why a callee may say that there will be no answer (`decentral.errors.CallError`)."""


def is_call(payload: bytes) -> bool:
    """Is this control message one of ours? (An array whose first item is a string "c/…".)"""
    return (
        len(payload) >= 4
        and payload[0] & 0xF0 == 0x90  # msgpack: a short array …
        and payload[1] & 0xE0 == 0xA0  # … that starts with a short string
        and payload[1] & 0x1F > 2
        and payload[2:4] == b"c/"
    )


@dataclass(frozen=True, slots=True)
class _Message:
    KIND: ClassVar[str] = ""

    number: int
    """Which of the caller's calls."""

    def pack(self) -> bytes:
        return packing.pack([self.KIND, *astuple(self)])


@dataclass(frozen=True, slots=True)
class Call(_Message):
    """Caller: do this for me. `body` is empty if it is too large to be in here."""

    KIND: ClassVar[str] = "c/call"

    method: str
    size: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Send(_Message):
    """Callee: send me the body of that call as the blob `key`."""

    KIND: ClassVar[str] = "c/send"

    key: int


@dataclass(frozen=True, slots=True)
class Answer(_Message):
    """Callee: this came of it."""

    KIND: ClassVar[str] = "c/answer"

    size: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Fetch(_Message):
    """Caller: send me the answer as the blob `key`."""

    KIND: ClassVar[str] = "c/fetch"

    key: int


@dataclass(frozen=True, slots=True)
class Failed(_Message):
    """Callee: there will be no answer to that call."""

    KIND: ClassVar[str] = "c/failed"

    phase: str
    says: str


@dataclass(frozen=True, slots=True)
class Cancel(_Message):
    """Caller: nobody waits for that any more."""

    KIND: ClassVar[str] = "c/cancel"


CallMessage: TypeAlias = Call | Send | Answer | Fetch | Failed | Cancel


def unpack_message(payload: bytes) -> CallMessage:
    """Parse one message; ProtocolError if anything about it is off."""
    kind, number, *rest = packing.array(
        packing.unpack(payload, max_bytes=_MAX_MESSAGE_BYTES, max_items=8), "a message", 2, 8
    )
    number = packing.integer(number, "a call's number", 1, _MAX_NUMBER)
    match kind, len(rest):
        case "c/call", 3:
            method = packing.text(rest[0], "a method's name", MAX_METHOD_BYTES)
            return Call(number, method, *_body(rest[1], rest[2]))
        case "c/answer", 2:
            return Answer(number, *_body(rest[0], rest[1]))
        case "c/send", 1:
            return Send(number, _key(rest[0]))
        case "c/fetch", 1:
            return Fetch(number, _key(rest[0]))
        case "c/failed", 2:
            if rest[0] not in PHASES:
                raise ProtocolError("a call that failed for no known reason")
            return Failed(number, rest[0], packing.text(rest[1], "a reason", MAX_SAYS_BYTES))
        case "c/cancel", 0:
            return Cancel(number)
        case _:
            raise ProtocolError("a message about calls of an unknown kind or shape")


def inline(body: bytes) -> tuple[int, bytes]:
    """The size, and what of the body goes into the message itself."""
    return len(body), body if len(body) <= INLINE_BYTES else b""


def _body(size: object, body: object) -> tuple[int, bytes]:
    size = packing.integer(size, "a body's size", 0, MAX_BODY_BYTES)
    return size, packing.binary(body, "a body", size if size <= INLINE_BYTES else 0)


def _key(value: object) -> int:
    return packing.integer(value, "a blob key", 1, 2**64 - 1)


def sayable(says: str) -> str:
    """As much of a text as may be said, in one printable line."""
    line = "".join(one if one.isprintable() else " " for one in says)
    return line.encode("utf-8", "replace")[:MAX_SAYS_BYTES].decode("utf-8", "ignore")
