"""What goes into `Reach` and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from decentral.peer.reach.ways import Way
from decentral.types import PeerId

# ------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Want:
    """A link to this peer is wanted; these addresses of it are being dialled already."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Doubt:
    """Nothing is heard any more on the link to this peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DirectFailed:
    """None of its addresses answers."""

    peer: PeerId
    says: str
    there: bool = False
    """It did answer, and was only too slow, or said no: no other way is better."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    peer: PeerId
    way: Way
    dialled: str
    """Where it answered when we dialled it, ``IP:PORT``; "": it came to us, or by another way."""
    remote: str = ""
    """The address at the connection's other end."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Heard:
    """A message about reaching, from a linked peer."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class WayFailed:
    attempt: int
    says: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What came of `Probe`; address "": nothing."""

    observer: str
    address: str


@dataclass(frozen=True, slots=True)
class KnockDone:
    """What came of `KnockAt`."""

    asker: PeerId
    address: str
    got_in: bool


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """What was offered under this token is over, or nobody came for it."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Mapped:
    """A router maps this outer address to our port; "": no longer."""

    address: str


@dataclass(frozen=True, slots=True)
class Moved:
    """This machine's addresses are these now; `networks`: what is near, as ``IP/BITS``."""

    addresses: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event: TypeAlias = (
    Want
    | Doubt
    | DirectFailed
    | LinkUp
    | LinkDown
    | Heard
    | WayFailed
    | Observed
    | KnockDone
    | RelayEnded
    | Mapped
    | Moved
    | Tick
)

# ------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Say:
    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class Connect:
    """Try this way; `WayFailed(attempt)` or a link follows."""

    peer: PeerId
    way: Way
    attempt: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the observer at this address, from the listening port, what our address is."""

    observer: str


@dataclass(frozen=True, slots=True)
class KnockAt:
    asker: PeerId
    address: str


@dataclass(frozen=True, slots=True)
class OfferRelay:
    """Splice the two connections that show this token."""

    token: bytes
    between: tuple[PeerId, PeerId]


@dataclass(frozen=True, slots=True)
class Unreached:
    """No way has led to this peer; what each rung of the ladder met."""

    peer: PeerId
    rungs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class NatLearned:
    """What is known of our NAT has changed."""


Action: TypeAlias = Say | Connect | Probe | KnockAt | OfferRelay | Unreached | NatLearned
