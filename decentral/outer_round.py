"""The life of an outer round in the user's thread.

    anchor = θ(r)                                                committed, held
      │  H inner steps change the model: θm
      ▼
    Δ = anchor − θm ──▶ contribute(r + 1)
      │  StartReduce: mean Δ ──▶ would-be θ(r + 1) ──▶ its root ──▶ reduced(…)
      │     failed, or AbortReduce: Δ is untouched; the next attempt takes it again
      ▼
    Committed(r + 1) ── our root ──▶ adopt          anchor = θ(r + 1), model = anchor
                     ── another  ──▶ StateArrived ──▶ adopt
                     └─ without our Δ ──▶ adopt, model = anchor − Δ: the work stays queued

Nothing is applied before the commit. Own work since the anchor is always `anchor − θm`, counted
whole by exactly one commit or discarded (I6).
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from decentral.anchor import Anchor
from decentral.errors import CollectiveError, ContributionError
from decentral.leases import LeaseBook
from decentral.mesh_port import GroupFactory, MeshFailed, MeshPort, Order, StateArrived
from decentral.model_tensors import ModelTensors
from decentral.peer.protocol import (
    AbortReduce,
    CloseRound,
    Committed,
    Evicted,
    Joined,
    Left,
    RollbackEntry,
    RoundEntry,
    StartReduce,
)
from decentral.running_reduce import RunningReduce
from decentral.state import HeldState, aligned_zeros, seal, unseal
from decentral.strategies.base import Strategy, rank_weights
from decentral.types import View

_MAX_REFUSALS = 5


@dataclass(slots=True)
class OwnWork:
    """What the model has over the anchor, and no commit has counted."""

    steps: int = 0
    """Inner steps, those carried over from an earlier round included."""
    steps_this_round: int = 0
    tokens: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    contributed_to: int = 0
    """The round that it was offered to; 0: not yet."""
    counted: bool = False
    """A commit has it; it goes with the next adoption."""

    def mean_loss(self) -> float | None:
        return float(torch.stack(self.losses).mean()) if self.losses else None


@dataclass(frozen=True, slots=True)
class Adoption:
    """A committed round that this peer has just applied."""

    entry: RoundEntry
    view: View
    held: HeldState
    loss: float | None
    """Mean training loss of this peer's own steps since the last adoption."""


class OuterRounds:
    """The committed state as this trainer holds it, its own work since, and the mesh's orders.

    `on_order` runs on the mesh's thread; everything else in the user's.
    """

    def __init__(
        self,
        *,
        mesh: MeshPort,
        tensors: ModelTensors,
        strategy: Strategy,
        make_group: GroupFactory,
        book: LeaseBook,
        on_adopted: Callable[[Adoption | None, HeldState], None],
        on_refused: Callable[[ContributionError], None],
    ) -> None:
        self.view: View | None = None
        self.work = OwnWork()
        self.ended: str | None = None
        """Why the run is over for this peer, once it is."""
        self._mesh, self._strategy = mesh, strategy
        self._make_group, self._book = make_group, book
        self._on_adopted, self._on_refused = on_adopted, on_refused
        self._layout = tensors.layout
        self._anchor = Anchor(tensors)
        self._mean = aligned_zeros(self._layout.exchanged)
        self._prepared: dict[bytes, HeldState] = {}
        self._entry: Committed | None = None  # committed, not adopted yet
        self._joined_at: int | None = None  # the round at which this peer became a member
        self._rollback: bytes | None = None  # the root that everybody goes back to
        self._close_round = 0
        self._refusals = 0
        self._inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._running = RunningReduce()

    # ------------------------------------------------------------------ the mesh's thread

    def on_order(self, order: Order) -> None:
        if isinstance(order, AbortReduce):
            self._running.abort(order.round, order.attempt, order.says)
            return
        if isinstance(order, Evicted | MeshFailed):
            self._running.abort_any("this peer is out of the view")
        self._inbox.put(order)

    # ------------------------------------------------------------------ the user's thread

    @property
    def held(self) -> HeldState:
        assert self._anchor.held is not None, "no committed state before the run has begun"
        return self._anchor.held

    def take(self, held: HeldState, *, write: bool) -> None:
        """Start from this state: a founder's own, or one from disk."""
        self._anchor.set(held, write=write)

    @property
    def current(self) -> bool:
        """Whether this peer is a member and holds the latest committed state that it knows of."""
        return (
            self._anchor.held is not None
            and self._joined_at is not None
            and self._anchor.held.round >= self._joined_at
            and self._entry is None
            and self._rollback is None
        )

    def wait_until_current(self) -> None:
        while self.ended is None and not self.current:
            self._obey(self._inbox.get())

    def stepped(self, tokens: int, loss: torch.Tensor) -> None:
        """The inner optimizer has stepped once."""
        self.work.steps += 1
        self.work.steps_this_round += 1
        self.work.tokens += tokens
        self.work.losses.append(loss)
        self._book.stepped()

    def drain(self) -> None:
        """Obey whatever has arrived; waits only where there is no state to train from."""
        while self.ended is None:
            try:
                self._obey(self._inbox.get_nowait())
            except queue.Empty:
                break
        self.wait_until_current()

    def wait_for_order(self) -> None:
        self._obey(self._inbox.get())

    @property
    def due(self) -> bool:
        """Whether it is time to contribute: enough steps, or the others wait only for us."""
        asked = self._close_round == self.held.round + 1
        return self.work.steps > 0 and (
            self.work.steps_this_round >= self._strategy.sync_every or asked
        )

    def synchronize(self) -> None:
        """Contribute own work and wait until a commit has counted it or the run is over.

        Returns early, with the work still this peer's own, when the round commits without it.
        """
        if not self._outer_gradient():
            return
        work, round = self.work, self.held.round + 1
        work.contributed_to = round
        self._mesh.contribute(round, work.tokens, self._book.used)
        while self.ended is None and self.work is work and work.contributed_to == round:
            self._obey(self._inbox.get())
        self.wait_until_current()

    def discard(self) -> None:
        """Own work goes: the model is the anchor again."""
        self.work = OwnWork()
        self._book.discard()
        if self._anchor.held is not None:
            self._anchor.set(self._anchor.held)

    # ------------------------------------------------------------------ orders

    def _obey(self, order: Order) -> None:
        match order:
            case StartReduce():
                self._reduce(order)
            case Committed():
                self._committed(order)
            case StateArrived(state):
                self._state_arrived(unseal(self._layout, state))
            case CloseRound(round):
                self._close_round = max(self._close_round, round)
            case Joined(view, round, leases):
                self._book.grant(leases)
                self.view, self._joined_at = view, round
            case Evicted():
                self._joined_at = None
                self._book.grant(())
                self.discard()
            case Left(says):
                self.ended = says
            case MeshFailed(error):
                self.ended = error.says
                raise error
            case _:
                pass  # a Fault is for people: the mesh has put it on the event stream

    def _reduce(self, order: StartReduce) -> None:
        """One attempt. Its failure is the mesh's to judge; the contribution stays as it is."""
        round, attempt = order.round, order.attempt
        me = self._mesh.me
        if self._anchor.held is None or self._anchor.held.round + 1 != round:
            says = f"this peer does not hold round {round - 1} yet"
            self._mesh.reduce_failed(round, attempt, None, says)
            return
        if any(c.peer == me for c in order.contributions) and self.work.contributed_to != round:
            says = f"this peer has no contribution to round {round} any more"
            self._mesh.reduce_failed(round, attempt, me, says)
            return
        weights = rank_weights(self._strategy, order.participants, order.contributions)
        view = View(lineage=order.view.lineage, epoch=order.view.epoch, members=order.participants)
        try:
            self._running.run(
                round,
                attempt,
                lambda: self._make_group(self._mesh.native, view, me).all_reduce(
                    self._anchor.delta,
                    self._mean,
                    self._strategy.codec,
                    weights=weights,
                    round=round,
                    attempt=attempt,
                ),
            )
        except CollectiveError as error:
            self._mesh.reduce_failed(round, attempt, error.peer, error.says)
            return
        prepared = self._next_state(sum(c.tokens for c in order.contributions))
        self._prepared[prepared.root] = prepared
        self._mesh.reduced(round, attempt, prepared.root)

    def _next_state(self, tokens: int) -> HeldState:
        """What a commit of this reduce would lead to, on fresh arrays: nothing is applied."""
        theta = aligned_zeros(self._layout.total)
        momentum = aligned_zeros(self._layout.trainable)
        self._strategy.outer_step(self._layout, self.held, self._mean, theta, momentum)
        return seal(self._layout, theta, momentum, self.held.meta.after(tokens))

    def _committed(self, order: Committed) -> None:
        self.view = order.view
        entry = order.entry
        self._book.grant(order.leases)
        if isinstance(entry, RoundEntry):
            self._running.forget(entry.round)
            held = self._anchor.held
            if held is not None and (held.round > entry.round or held.root == entry.state_root):
                return  # the state came first
            for contribution in entry.contributions:
                if contribution.peer == self._mesh.me:
                    self._book.counted(contribution.leases)
                    self.work.counted = True
            self._entry = order
            prepared = self._prepared.get(entry.state_root)
            if prepared is not None and prepared.round == entry.round:
                self._entry = None
                self._adopt(prepared, order)
        elif isinstance(entry, RollbackEntry):
            self._entry = None  # a later round, which nobody holds any more
            if self._joined_at is not None:
                self._joined_at = min(self._joined_at, entry.round)
            if self._anchor.held is None or self._anchor.held.root != entry.state_root:
                self._rollback = entry.state_root
                self.discard()

    def _state_arrived(self, arrived: HeldState) -> None:
        order: Committed | None = None
        expected = self._entry.entry if self._entry is not None else None
        if isinstance(expected, RoundEntry) and arrived.root == expected.state_root:
            order, self._entry = self._entry, None
        elif isinstance(expected, RoundEntry) and arrived.round < expected.round:
            pass  # on the way to a later round, whose state is still to come
        else:
            # Not the outcome of a round that we followed: a join, a rollback, another lineage.
            self._entry = None
            self.discard()
        if arrived.root == self._rollback:
            self._rollback = None
        self._adopt(arrived, order)

    # ------------------------------------------------------------------ adopting

    def _adopt(self, held: HeldState, order: Committed | None) -> None:
        entry = order.entry if order is not None else None
        assert entry is None or isinstance(entry, RoundEntry)
        if entry is not None and entry.stop:
            self.ended = entry.stop
        elif held.meta.complete:
            self.ended = f"the run reached its end at round {held.round}"
        loss = self.work.mean_loss()
        uncounted = self.work.steps > 0 and not self.work.counted
        keep = uncounted and self.ended is None and self._anchor.take_delta()
        if keep:
            self.work.contributed_to = 0
            self.work.steps_this_round = 0
            self.work.losses.clear()
        else:
            if uncounted:
                self._book.discard()
            self.work = OwnWork()
        self._prepared.clear()
        self._anchor.set(held, keep_own=keep)
        self._mesh.hold(held.state)
        if order is None or entry is None:
            self._on_adopted(None, held)
        else:
            self._on_adopted(Adoption(entry, order.view, held, loss), held)

    def _outer_gradient(self) -> bool:
        """Whether there is one to contribute. Work that is not finite never leaves this peer."""
        if self._anchor.take_delta():
            self._refusals = 0
            return True
        self._refusals += 1
        error = ContributionError(
            f"the work of {self.work.steps} steps since round {self.held.round} is not finite; "
            "it was thrown away, and the inner optimizer starts afresh",
            peer=self._mesh.me,
            phase=f"contribute to round {self.held.round + 1}",
        )
        self.discard()
        self._on_refused(error)
        if self._refusals >= _MAX_REFUSALS:
            raise error
        return False
