"""What training needs of the mesh: the one seam between `decentral` and `decentral.peer.runtime`.

The trainer (the user's thread) calls methods; the mesh (its own thread) answers with *orders*:

    user's thread                                 the mesh's thread
    contribute(r, tokens, leases)  ──────────────▶  agree on who takes part
          ◀── StartReduce(r, attempt) ────────────
    Group.all_reduce …  (AbortReduce: call it off)
    reduced(r, attempt, root)      ──────────────▶  vote
          ◀── Committed(RoundEntry r) ────────────
    adopt; hold(state)             ──────────────▶  donors serve it
    checkpointed(r)                ──────────────▶  durable_round

`decentral.peer.runtime.Mesh` implements `MeshPort`; unit tests use an in-process fake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from decentral.peer.orders import MeshFailed, Order, StateArrived
from decentral.types import CommittedState, PeerId, Range, TensorSpec, View

if TYPE_CHECKING:
    from decentral.types import Array

__all__ = ["Group", "GroupFactory", "MeshFailed", "MeshPort", "Order", "StateArrived", "Work"]


class MeshPort(Protocol):
    """This peer's place in a run. Methods are thread-safe and return at once unless they say so."""

    me: PeerId
    name: str
    join_word: str
    """The whole word that a newcomer passes to `join` ("" where none can be made)."""
    native: Any
    """The native endpoint, for `decentral.collectives.Group`."""

    @property
    def run_id(self) -> bytes:
        """Which run this is (32 bytes; empty while a joiner of an open run has not been told)."""

    def start(
        self,
        *,
        schema: Sequence[TensorSpec],
        fingerprint: bytes,
        initial: CommittedState | None,
        resumed: CommittedState | None,
        lease_samples: int,
        on_order: Callable[[Order], None],
    ) -> None:
        """Become a member. `initial` (a founder's) or `resumed` (from disk) counts as held.

        Orders then arrive on the mesh's thread: Joined first, and a StateArrived where this
        peer does not hold the committed state yet. Raises a ConnectError or FingerprintError.
        """

    def contribute(self, round: int, tokens: int, leases: tuple[Range, ...]) -> None:
        """This peer's work for `round` is ready to be reduced."""

    def reduced(self, round: int, attempt: int, state_root: bytes) -> None:
        """The attempt succeeded here and would lead to the state with this root."""

    def reduce_failed(self, round: int, attempt: int, suspect: PeerId | None, says: str) -> None:
        """The attempt failed here; `suspect` is whom it blames."""

    def hold(self, state: CommittedState) -> None:
        """This peer has applied this committed state; others may fetch it from here."""

    def checkpointed(self, round: int) -> None:
        """The state of `round` is on this peer's disk, fsynced."""

    def progress(self, step: int) -> None:
        """Another inner step was made (`step` grows): not hung."""

    def busy(self, phase: str | None) -> None:
        """Suspend the eviction of the hung while `phase` lasts; None: it is over."""

    def leave(self, reason: str, timeout_s: float) -> None:
        """Leave by a committed entry; blocks until it is done, or for `timeout_s`."""

    def stop(self, reason: str) -> None:
        """Propose that the run ends for all at the next committed round."""

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received since the start, over all links."""

    def emit(self, event: dict[str, Any]) -> None:
        """Put an event on this peer's stream (`decentral peer --json`); `t` is added."""

    def telemetry(self, **fields: Any) -> None:
        """What `decentral status` shows of the training: strategy, loss, tokens."""

    def close(self) -> None:
        """Close links and stop the mesh's thread. Idempotent; blocks."""


class Work(Protocol):
    """A running all-reduce."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it finished in time. Raises a CollectiveError if it failed."""

    def abort(self, reason: str) -> None:
        """Call it off on all members; returns when no buffer is touched any more."""


class Group(Protocol):
    """The members of a view, ready for collectives (`decentral.collectives.Group`)."""

    def all_reduce(
        self,
        src: Array,
        dst: Array,
        codec: str = ...,
        *,
        weights: Sequence[float],
        round: int,
        attempt: int,
    ) -> Work:
        """dst = Σ weight_p · src_p / Σ weight_p, weights in rank order; the same bits for all."""


GroupFactory: TypeAlias = Callable[[Any, View, PeerId], Group]
