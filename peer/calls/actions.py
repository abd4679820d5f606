"""What a `Caller` and a `Callee` want done, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from decentral.errors import CallError
from decentral.peer.donor import Tell
from decentral.types import PeerId

__all__ = ["CallAction", "Connect", "Ended", "Expect", "Forget", "Run", "SendBody", "Tell"]


@dataclass(frozen=True, slots=True)
class Connect:
    """Get a link to it; `Caller.link_up` once there is one, `Caller.down` if there will be none."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class SendBody:
    """Send this as blob `key`."""

    peer: PeerId
    key: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Expect:
    """Make room for `size` bytes, post it as blob `key`, then send `message`.

    Report `arrived(key, body)`, or `lost(key)`.
    """

    peer: PeerId
    key: int
    size: int
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Forget:
    """Blob `key` is not wanted any more."""

    key: int


@dataclass(frozen=True, slots=True)
class Run:
    """Callee: have the handler do this, elsewhere; report `finished(ticket, …)`."""

    ticket: int
    peer: PeerId
    method: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """Caller: the call is over; its answer, or why there is none."""

    number: int
    outcome: bytes | CallError = field(repr=False)


CallAction: TypeAlias = Tell | Connect | SendBody | Expect | Forget | Run | Ended
