"""The vocabulary of the sans-IO core: what goes in (events) and what comes out (actions).

    event + now ──▶ PeerCore.handle ──▶ [action, action, …]   executed in order

The runtime and the simulator are the two drivers. Order is part of the contract: a `Persist` is
durable (fsync) before anything behind it in the list happens, so that a vote is on disk before it
is on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from decentral.peer.core_config import CoreConfig as CoreConfig
from decentral.peer.core_config import CoreStatus as CoreStatus
from decentral.types import Contribution, PeerId, Range, View

# ---------------------------------------------------------------------------- events: from links


@dataclass(frozen=True, slots=True)
class LinkUp:
    """An admitted link. `address` is where the peer can be dialled ("host:port"; "" unknown)."""

    peer: PeerId
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link is gone; `closed` if the other end closed it (a dead process does), else silent."""

    peer: PeerId
    closed: bool
    says: str


@dataclass(frozen=True, slots=True)
class DialFailed:
    """Nobody could be reached under this peer's address; `refused`: no process listens there."""

    peer: PeerId
    refused: bool
    says: str


@dataclass(frozen=True, slots=True)
class Received:
    """A control message as it came off the wire, not yet parsed."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class ProbeAcked:
    """Native code of `peer` is alive; `progress` is its trainer's step counter."""

    peer: PeerId
    seq: int
    incarnation: int
    progress: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due timers run. Sent at `PeerCore.next_timer()` or later."""


# ------------------------------------------------------------------------ events: from the trainer


@dataclass(frozen=True, slots=True)
class Contribute:
    """The trainer's work for `round` is ready to be reduced.

    Sent again for a new round, or to replace what was offered: an attempt that has begun with the
    former work fails, the next one takes this.
    """

    round: int
    tokens: int
    leases: tuple[Range, ...] = ()
    staleness: int = 0
    step_s: float = 0.0
    """Median inner step of this trainer: who is called hung depends on it. 0: not known."""
    tag: str = ""
    steps: int = 0
    """Inner steps in this work."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """The attempt's all-reduce succeeded here and would lead to `state_root` (I1)."""

    round: int
    attempt: int
    state_root: bytes
    tag: str = ""


@dataclass(frozen=True, slots=True)
class ReduceFailed:
    """The attempt's all-reduce failed here; `suspect` is whom it blames, if anybody."""

    round: int
    attempt: int
    suspect: PeerId | None
    says: str
    tag: str = ""


@dataclass(frozen=True, slots=True)
class StateHeld:
    """The trainer now holds the committed state of `round`, applied or fetched."""

    round: int
    state_root: bytes
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The state of `round` is on this peer's disk (fsynced)."""

    round: int
    tag: str = ""
    kept: tuple[int, ...] = ()
    """Every round that this disk can give back now: where the run may be rolled back to."""


@dataclass(frozen=True, slots=True)
class TakePart:
    """From now on the trainer takes part in this tag's rounds, or does no more: then its state is
    neither held nor fetched."""

    tag: str
    takes: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave cleanly: out of the view by a committed entry, leases returned, then `Left`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Propose that the run ends for all at the next committed round."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A person wants the run changed; `PeerCore.wish` tells how it went."""

    what: str
    """"pause", "resume" or "rollback"."""
    round: int = 0
    """Where a rollback goes to."""
    reason: str = ""
    tag: str = ""
    """Whose rounds a rollback undoes."""


@dataclass(frozen=True, slots=True)
class Moved:
    """This peer can be dialled elsewhere now."""

    address: str


Event: TypeAlias = (
    Moved
    | LinkUp
    | LinkDown
    | DialFailed
    | Received
    | ProbeAcked
    | Tick
    | Contribute
    | Reduced
    | ReduceFailed
    | StateHeld
    | Checkpointed
    | TakePart
    | Leave
    | Stop
    | Ask
)

# ---------------------------------------------------------------------------- log entries


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewEntry:
    """The next view. Joiners get leases from the ledger; those of the removed return to it."""

    view: View
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEntry:
    """A committed outer step."""

    round: int
    attempt: int
    contributions: tuple[Contribution, ...]
    state_root: bytes
    durable_round: int
    """A majority of the view had checkpointed this round or a later one when this was proposed."""
    stop: str = ""
    """Not empty: the run ends here for all, and this is why."""
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackEntry:
    """Go back to a round that somebody still holds: everybody died, or a person asked for it."""

    round: int
    state_root: bytes
    tag: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseEntry:
    """No round is begun from here on, until an entry with `paused` False."""

    paused: bool
    reason: str


Entry: TypeAlias = ViewEntry | RoundEntry | RollbackEntry | PauseEntry

# ---------------------------------------------------------------------------- actions: to links


@dataclass(frozen=True, slots=True)
class Send:
    peer: PeerId
    payload: bytes
    urgent: bool = False
    """Ahead of bulk-like traffic (state chunks' manifests, gossip)."""


@dataclass(frozen=True, slots=True)
class Probe:
    peer: PeerId
    seq: int
    suspected_incarnation: int
    """0: a plain probe; else the suspect refutes natively by raising its incarnation above it."""


@dataclass(frozen=True, slots=True)
class Dial:
    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseLink:
    peer: PeerId
    says: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Durable before any later action of the list: replaces the previous record."""

    record: bytes


# ------------------------------------------------------------------------ actions: to the trainer


@dataclass(frozen=True, slots=True)
class StartReduce:
    """Run the all-reduce of `round` over the participants, then report Reduced or ReduceFailed.

    Participants are in rank order and all take part in the exchange; those without a
    contribution count with weight 0. Members that are no participants fetch the outcome.
    """

    view: View
    round: int
    attempt: int
    participants: tuple[PeerId, ...]
    contributions: tuple[Contribution, ...]
    tag: str = ""


@dataclass(frozen=True, slots=True)
class AbortReduce:
    """Call the running attempt off (idempotent; a late one hits nothing newer)."""

    round: int
    attempt: int
    says: str
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry of the log, in order, exactly once. For a RoundEntry that this peer reduced itself:
    apply the outer step; if it did not (or its root differs), a FetchState follows."""

    slot: int
    entry: Entry
    view: View
    """The view after the entry."""
    leases: tuple[Range, ...]
    """This peer's sample ranges from here on (unchanged unless the entry granted new ones)."""


@dataclass(frozen=True, slots=True)
class CloseRound:
    """Contribute to `round` now with what you have: the others wait only for you."""

    round: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class FetchState:
    """Get the committed state of `round` with this root from any of the holders, then StateHeld."""

    round: int
    state_root: bytes
    holders: tuple[PeerId, ...]
    past: tuple[tuple[int, bytes], ...] = ()
    """(round, root) of committed rounds before it, whose states lead to it by replay."""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """This peer is a member now, or again, or it has missed entries that nobody keeps any more.

    Entries committed before are not delivered: whatever work the trainer has not seen counted is
    void, because one of them may have counted it (I6). A FetchState follows where the trainer
    does not hold the state of `round`.
    """

    view: View
    round: int
    """The last committed round of the first tag."""
    leases: tuple[Range, ...] = ()
    """This peer's sample ranges from here on."""
    rounds: tuple[tuple[str, int], ...] = ()
    """(tag, last committed round), for every tag."""


@dataclass(frozen=True, slots=True)
class Left:
    """The leave that was asked for is committed (or nobody was left to agree to it)."""

    says: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """The others went on without this peer; it is rejoining. Its uncommitted work is discarded."""

    says: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another process runs with this peer's identity: this one must not vote, and ends."""

    says: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something a person should know, in a sentence: a death, a fork, a pause, a divergence."""

    kind: str
    """"peer-died", "peer-left", "suspect", "quorum-lost", "fork", "merge", "divergence", …"""
    peer: PeerId | None
    says: str


Action: TypeAlias = (
    Send
    | Probe
    | Dial
    | CloseLink
    | Persist
    | StartReduce
    | AbortReduce
    | Committed
    | CloseRound
    | FetchState
    | Joined
    | Left
    | Evicted
    | Fenced
    | Fault
)
