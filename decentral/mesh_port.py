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

All of this is per *tag*: "" in a run with one model. In a run whose modules or fragments have
rounds of their own each has a tag, orders carry it, and rounds of several tags run at once.

`decentral.peer.runtime.Mesh` implements `MeshPort`; unit tests use an in-process fake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from decentral.peer.holding import Holding
from decentral.peer.orders import MeshFailed, Order, StateArrived, UpdateArrived
from decentral.peer.views_log import LogState
from decentral.types import CommittedState, PeerId, Range, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array, TensorSpec

__all__ = [
    "Group",
    "GroupFactory",
    "Holding",
    "MeshFailed",
    "MeshPort",
    "Order",
    "StateArrived",
    "UpdateArrived",
    "Wanted",
    "Work",
]


class MeshPort(Protocol):
    """This peer's place in a run. Methods are thread-safe and return at once unless they say so."""

    me: PeerId
    name: str
    join_word: str
    """The whole word that a newcomer passes to `join` ("" where none can be made)."""
    full_mesh_up_to: int
    """Up to so many members all are linked to all."""
    native: Any
    """The native endpoint, for `decentral.collectives.Group`."""

    @property
    def run_id(self) -> bytes:
        """Which run this is (32 bytes; empty while a joiner of an open run has not been told)."""

    def start(
        self,
        *,
        holdings: Mapping[str, Holding],
        fingerprint: bytes,
        lease_samples: int,
        on_order: Callable[[Order], None],
        tags: tuple[str, ...] = ("",),
        schemas: Mapping[str, Sequence[TensorSpec]] = ...,
        min_contributors: int = 0,
        grace_s: float = 0.0,
        copies: int = 0,
    ) -> None:
        """Become a member. `tags` are the run's, the same in the same order on all peers;
        `holdings` are this peer's: what it takes part in, and a founder's initial states of the
        rest. An `initial` (a founder's) or `resumed` (from disk) state counts as held.
        `schemas`: of tags that this peer may `read` without taking part.

        Orders then arrive on the mesh's thread: Joined first, and a StateArrived for each tag of
        which this peer does not hold the committed state yet. Raises a ConnectError or
        FingerprintError.
        """

    def contribute(
        self,
        round: int,
        tokens: int,
        leases: tuple[Range, ...],
        *,
        staleness: int = 0,
        steps: int = 0,
        step_s: float = 0.0,
        tag: str = "",
    ) -> None:
        """This peer's work for `round` is ready to be reduced (again: it replaces the former).

        `staleness`: rounds committed since the work began; `steps`: inner steps in it; `step_s`:
        how long one takes (median).
        """

    def reduced(self, round: int, attempt: int, state_root: bytes, *, tag: str = "") -> None:
        """The attempt succeeded here and would lead to the state with this root."""

    def reduce_failed(
        self, round: int, attempt: int, suspect: PeerId | None, says: str, *, tag: str = ""
    ) -> None:
        """The attempt failed here; `suspect` is whom it blames."""

    def take_part(self, tag: str, takes: bool) -> None:
        """Whether this peer takes part in the tag's rounds from now on. Where it does not, its
        state is neither held nor fetched, nor served."""

    def connect(self, peers: Sequence[PeerId], wanted: Wanted) -> None:
        """See to it that there are links to these members. Waits for them, for a while and as long
        as that is wanted; which of them there is none to becomes clear when they are used."""

    def linked(self, peer: PeerId) -> bool:
        """Whether there is a link to this peer now."""

    def hold(self, state: CommittedState, *, tag: str = "") -> None:
        """This peer has applied this committed state; others may fetch it from here."""

    def wants_updates(self, tag: str = "") -> bool:
        """Whether somebody fetches a state, so that the next rounds' updates are worth keeping."""

    def hold_update(self, state_root: bytes, update: CommittedState, *, tag: str = "") -> None:
        """What led to the state with that root; before `hold` of that state."""

    def refuse_update(self, round: int, *, tag: str = "") -> None:
        """The UpdateArrived of that round does not lead to the committed root."""

    def read(
        self, tag: str, round: int, root: bytes, prefix: str = "", *, timeout_s: float = ...
    ) -> Future[dict[str, NDArray[Any]]]:
        """The tensors of a committed state whose names begin with `prefix`, from whoever holds it,
        verified against `root`. Nobody may write to them. StateError: not to be had in time."""

    def serve(self, method: str, handler: Callable[[PeerId, bytes], bytes]) -> None:
        """Have `handler(caller, body)` answer calls, on threads of its own. Also before `start`."""

    def call(self, peer: PeerId, method: str, body: bytes, timeout_s: float) -> Future[bytes]:
        """What another peer's handler makes of it; up to 16 MiB both ways. CallError: the peer,
        and in `phase` what became of it."""

    def checkpointed(self, round: int, kept: tuple[int, ...] = (), *, tag: str = "") -> None:
        """The state of `round` is on this peer's disk, fsynced; `kept`: all that are there."""

    def progress(self, step: int) -> None:
        """Another inner step was made (`step` grows): not hung."""

    def busy(self, phase: str | None) -> None:
        """Suspend the eviction of the hung while `phase` lasts; None: it is over."""

    def leave(self, reason: str, timeout_s: float) -> None:
        """Leave by a committed entry; blocks until it is done, or for `timeout_s`."""

    def stop(self, reason: str) -> None:
        """Propose that the run ends for all at the next committed round."""

    def log(self) -> LogState | None:
        """What is committed, as far as this peer knows; None before it knows anything."""

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received since the start, over all links."""

    def emit(self, event: dict[str, Any]) -> None:
        """Put an event on this peer's stream (`decentral peer --json`); `t` is added."""

    def record(self, event: dict[str, Any]) -> None:
        """Put an event into this peer's log only (`events.jsonl` in its home)."""

    def telemetry(self, *, tag: str = "", **fields: Any) -> None:
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

    def broadcast(self, data: Array, root: int, **options: Any) -> Work:
        """The `data` of the member of rank `root` to all, in place."""

    def all_reduce(
        self,
        src: Array,
        dst: Array,
        codec: str = ...,
        *,
        weights: Sequence[float],
        round: int,
        attempt: int,
        tag: int,
        **options: Any,
    ) -> Work:
        """dst = Σ weight_p · src_p / Σ weight_p, weights in rank order; the same bits for all.

        (round, attempt, tag) name the operation; several may run at once. `options`: those that
        a strategy asks for.
        """


Wanted: TypeAlias = Callable[[], bool]
"""Whether what waits for something still should: asked again and again, on the waiting thread."""

GroupFactory: TypeAlias = Callable[[Any, View, PeerId, Wanted], Group]
"""Of the native endpoint, the members, this peer; operations begin only while they are wanted."""
