"""One attempt to reach one peer, as its caller sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from decentral.peer.reach.nat import Nat
from decentral.peer.reach.talk import Answer
from decentral.peer.reach.ways import Punch, Way
from decentral.types import PeerId

ANSWER_S = 3.0
INFINITY = float("inf")


@dataclass(slots=True)
class Session:
    peer: PeerId
    nonce: bytes
    deadline: float
    call_at: float
    """When to call it through neighbours; its addresses get a head start."""
    better: bool = False
    """It is linked already, through a relay, and this looks for a better way."""
    dialled: set[str] = field(default_factory=set)
    """Addresses that are being dialled for its user."""
    direct_over: bool = False
    called_at: float | None = None
    asked: set[PeerId] = field(default_factory=set)
    """Neighbours that were to carry the call."""
    lost: set[PeerId] = field(default_factory=set)
    """Those of them that are not linked to it."""
    yielded: bool = False
    call_over: bool = False
    no_path: bool = False
    """It is over because nobody was there to carry it."""
    answer: Answer | None = None
    rtt_s: float = 0.0
    """From the call to its answer."""
    punch: Punch | None = None
    nats: tuple[Nat, Nat] | None = None
    """Ours and its, as they were known for the punch."""
    punch_at: float = INFINITY
    relay_at: float = INFINITY
    relays: list[tuple[PeerId, str, str]] = field(default_factory=list)
    """(relay, where we reach it, where the other end does), best first; those left to try."""
    waits_for: tuple[PeerId, str, str] | None = None
    """The relay whose word is awaited, until `grant_by`."""
    grant_by: float = INFINITY
    relays_asked: set[PeerId] = field(default_factory=set)
    granted: tuple[PeerId, str, bytes] | None = None
    """A relay that has agreed before it was needed: who, where we reach it, its token."""
    attempts: dict[int, Way] = field(default_factory=dict)
    """Connections that are being tried."""
    rungs: dict[str, str] = field(default_factory=dict)
    """What was tried in vain, and why."""

    def to_call(self) -> bool:
        """It is still to be called through neighbours."""
        return self.called_at is None and not self.call_over

    def wait(self, now: float, nonce: bytes) -> None:
        """It calls us: ours can wait until that should be over, and is another call then. Only
        once, for a call may be forged."""
        if not self.yielded:
            self.yielded, self.called_at, self.call_at = True, None, now + 2 * ANSWER_S
            self.nonce = nonce
            self.asked.clear()
            self.lost.clear()

    def answer_by(self) -> float:
        waits = self.called_at is not None and self.answer is None and not self.call_over
        return self.called_at + ANSWER_S if waits and self.called_at is not None else INFINITY

    def next_timer(self, may_call: bool) -> float:
        """`may_call`: what calls have to tell is known."""
        call_at = self.call_at if may_call and self.to_call() else INFINITY
        return min(
            self.deadline, self.punch_at, self.relay_at, self.grant_by, self.answer_by(), call_at
        )

    def over(self) -> bool:
        """Nothing is left that could lead to it."""
        return (
            (self.direct_over or self.better)
            and self.call_over
            and not self.attempts
            and not self.relays
            and self.waits_for is None
            and self.granted is None
            and self.punch_at == self.relay_at == INFINITY
        )
