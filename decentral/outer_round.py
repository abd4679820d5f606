"""The life of one tag's outer rounds in the user's thread (`decentral.outer_loop` drives them).

    anchor = θ(r)                                                committed, held
      │  H inner steps change the model: θm
      ▼
    Δ = anchor − θm ──▶ contribute(r + 1)
      │  StartReduce: mean Δ … ReduceEnded ──▶ would-be θ(r + 1) ──▶ its root ──▶ reduced(…)
      │     failed, or AbortReduce: Δ is untouched; the next attempt takes it again
      ▼
    Committed(r + 1) ── our root ──▶ adopt          anchor = θ(r + 1), model = anchor
                     ── another  ──▶ StateArrived ──▶ adopt
                     └─ without our Δ ──▶ adopt, model = anchor − Δ: the work stays queued

Nothing is applied before the commit. Own work since the anchor is always `anchor − θm`, counted
whole by exactly one commit or discarded (I6).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from decentral import failpoints
from decentral.anchor import Anchor
from decentral.compute import Tensors
from decentral.errors import CollectiveError, ContributionError, DivergenceError
from decentral.leases import LeaseBook
from decentral.mesh_port import (
    GroupFactory,
    MeshFailed,
    MeshPort,
    Order,
    StateArrived,
    UpdateArrived,
)
from decentral.outer_work import Adoption, Disk, OwnWork, ReduceEnded, Witness
from decentral.peer.protocol import (
    AbortReduce,
    CloseRound,
    Committed,
    Evicted,
    Fault,
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
from decentral.updates import pack_update, unpack_update

if TYPE_CHECKING:
    from decentral.types import Array

_MAX_REFUSALS = 5
_MEDIAN_OF = 32
_QUORUM = ("quorum-lost", "quorum-regained", "fork")
"""Faults that say whether a majority can be reached."""


class OuterRounds:
    """One tag's committed state as this trainer holds it, its own work since, and its orders.

    `abort` and `abort_any` run on the mesh's thread; everything else in the user's.
    """

    def __init__(
        self,
        *,
        mesh: MeshPort,
        tensors: Tensors,
        strategy: Strategy,
        make_group: GroupFactory,
        book: LeaseBook,
        on_adopted: Callable[[Adoption | None, HeldState], None],
        on_refused: Callable[[ContributionError], None],
        on_stopped: Callable[[], None],
        disk: Disk,
        post: Callable[[ReduceEnded], None],
        witness: Witness,
        tag: str = "",
        number: int = 0,
    ) -> None:
        """`tensors`: the part of the model that has this tag; `post`: called on another thread with
        what `obey` is to be given soon; `number`: the tag's, for the wire."""
        self.tag, self.tensors = tag, tensors
        self.leads = True
        """Whether the leases of this peer's samples are named by, and consumed with, this tag's
        contributions (`decentral.outer_loop`)."""
        self.view: View | None = None
        self.work = OwnWork()
        self.ended: str | None = None
        """Why the run is over for this peer, once it is."""
        self._mesh, self._strategy = mesh, strategy
        self._make_group, self._book = make_group, book
        self._on_adopted, self._on_refused = on_adopted, on_refused
        self._on_stopped, self._disk, self._witness = on_stopped, disk, witness
        self._post, self._number = post, number
        self._layout = tensors.layout
        self._anchor = Anchor(tensors)
        self._mean = aligned_zeros(self._layout.exchanged)
        self._mean_root = b""  # of the state that `_mean` would lead to
        self._prepared: dict[bytes, HeldState] = {}
        self._entry: Committed | None = None  # committed, not adopted yet
        self._joined_at: int | None = None  # the round at which this peer became a member
        self._rollback: bytes | None = None  # the root that everybody goes back to
        self._close_round = 0
        self._stop = ""  # why the run ends for all, once another tag's round has said so
        self._alone = False  # no majority can be reached
        self._stepped_at = 0.0
        self._step_times: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._refusals = 0
        self._running = RunningReduce()
        self._reducing: StartReduce | None = None

    # ------------------------------------------------------------------ the mesh's thread

    def abort(self, order: AbortReduce) -> None:
        self._running.abort(order.round, order.attempt, order.says)

    def abort_any(self, says: str) -> None:
        self._running.abort_any(says)

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

    @property
    def reducing(self) -> bool:
        """Whether an all-reduce borrows this tag's buffers."""
        return self._reducing is not None

    @property
    def waiting(self) -> bool:
        """Whether what this peer has contributed waits for a commit."""
        return self.ended is None and self.work.contributed_to > 0

    def stepped(self, tokens: int, loss: Any) -> None:
        """The inner optimizer has stepped once."""
        now = time.monotonic()
        if self._stepped_at:
            self._step_times.append(now - self._stepped_at)
        self._stepped_at = now
        if not self.work.steps:
            self.work.began_at = self.held.round
        self.work.steps += 1
        self.work.tokens += tokens
        self.work.losses.append(loss)
        self._book.stepped()

    @property
    def asked(self) -> bool:
        """Whether the others wait only for us."""
        return self._close_round == self.held.round + 1

    @property
    def due(self) -> bool:
        """Whether it is time to contribute: enough steps, or the others wait only for us."""
        if self.ended is not None or not self.work.steps:
            return False
        enough = self._strategy.sync_every + (self._strategy.steps_alone if self._alone else 0)
        return self.work.steps >= enough or self.asked

    def contribute(self) -> None:
        """Offer own work to the next round; `waiting` until a commit has counted it, or until it is
        this peer's own again: the round commits without it, or it may go on alone for a while."""
        if not self._outer_gradient():
            return
        work, round = self.work, self.held.round + 1
        work.contributed_to = round
        if not work.steps:  # nothing to add, but others wait for that word
            work.began_at = self.held.round
        leases = self._book.used if self.leads else ()
        lineage = self.view.lineage if self.view is not None else ""
        self._witness.contributes(lineage, self.held, work, leases, self._anchor.delta)
        self._mesh.contribute(
            round,
            work.tokens,
            leases,
            staleness=self.held.round - work.began_at,
            step_s=statistics.median(self._step_times) if self._step_times else 0.0,
            tag=self.tag,
        )

    def reconsider(self) -> None:
        """While no majority can be reached, training may go on for some steps."""
        if self._alone and self.waiting and not self.due and self._book.may_draw:
            self.work.contributed_to = 0  # contributed anew, with what is added, once it is due

    def resume(self) -> None:
        """Training goes on: the wait was no step."""
        self._stepped_at = 0.0

    def put_back(self) -> None:
        """The model is the anchor again, where no work of this tag counts any more."""
        self._anchor.set(self.held)

    def discard(self) -> None:
        """Own work goes: the model is the anchor again."""
        self.work = OwnWork()
        if self.leads:
            self._book.discard()
        if self._anchor.held is not None:
            self._anchor.set(self._anchor.held)

    def close(self, says: str) -> None:
        """Nothing borrows this tag's buffers when this returns."""
        self._running.end(says)
        self._reducing = None

    # ------------------------------------------------------------------ orders

    def obey(self, order: Order | ReduceEnded) -> None:
        """One order for this tag, or for all. Raises the error of a mesh that has failed."""
        match order:
            case StartReduce():
                self._reduce(order)
            case ReduceEnded():
                self._reduced(order)
            case Committed():
                self._committed(order)
            case StateArrived(state):
                self._state_arrived(unseal(self._layout, state))
            case UpdateArrived():
                self._update_arrived(order)
            case CloseRound(round):
                self._close_round = max(self._close_round, round)
            case Joined(view, round, leases, rounds):
                self._book.grant(leases)
                if self.view is not None and self.view.lineage != view.lineage:
                    self._disk.superseded(self.held, self.view.lineage)
                self.view, self._joined_at = view, dict(rounds).get(self.tag, round)
            case Evicted():
                self._joined_at = None
                self._book.grant(())
                self.discard()
            case Left(says):
                self.ended = says
            case MeshFailed(error):
                self.ended = error.says
                raise error
            case Fault(kind):
                # For people, on the event stream; but training alone begins and ends with two.
                self._alone = self._alone if kind not in _QUORUM else kind == "quorum-lost"
            case _:
                pass

    def _reduce(self, order: StartReduce) -> None:
        """One attempt. Its failure is the mesh's to judge; the contribution stays as it is."""
        round, attempt = order.round, order.attempt
        me = self._mesh.me
        if self._anchor.held is None or self._anchor.held.round + 1 != round:
            says = f"this peer does not hold round {round - 1} yet"
            self._mesh.reduce_failed(round, attempt, None, says, tag=self.tag)
            return
        if self._withdrawn(order):
            return
        weights = rank_weights(self._strategy, order.participants, order.contributions)
        view = View(lineage=order.view.lineage, epoch=order.view.epoch, members=order.participants)
        self.close("a newer attempt begins")
        self._mean_root = b""
        try:
            self._running.start(
                round,
                attempt,
                lambda: self._make_group(self._mesh.native, view, me).all_reduce(
                    self._anchor.delta,
                    self._mean,
                    self._strategy.codec,
                    weights=weights,
                    round=round,
                    attempt=attempt,
                    tag=self._number,
                ),
                lambda error: self._post(ReduceEnded(order, error)),
            )
        except CollectiveError as error:
            self._mesh.reduce_failed(round, attempt, error.peer, error.says, tag=self.tag)
            return
        self._reducing = order

    def _reduced(self, ended: ReduceEnded) -> None:
        """The attempt is over here: what it would lead to, or why it failed, goes to the mesh."""
        order = ended.order
        if order is not self._reducing:
            return  # called off in favour of a newer one
        self._running.end()
        self._reducing = None
        if ended.error is None and self._withdrawn(order):
            return
        try:
            if ended.error is not None:
                raise ended.error
            prepared = self._next_state(self._mean, sum(c.tokens for c in order.contributions))
            failpoints.passing("reduced")
        except CollectiveError as error:
            says = error.says
            self._mesh.reduce_failed(order.round, order.attempt, error.peer, says, tag=self.tag)
            return
        self._mean_root = prepared.root
        self._prepared[prepared.root] = prepared
        self._mesh.reduced(order.round, order.attempt, prepared.root, tag=self.tag)

    def _withdrawn(self, order: StartReduce) -> bool:
        """Whether the attempt counts work that is not offered any more; then it fails."""
        me, round = self._mesh.me, order.round
        mine = any(c.peer == me for c in order.contributions)
        if not mine or self.work.contributed_to == round:
            return False
        says = f"this peer has no contribution to round {round} any more"
        self._mesh.reduce_failed(round, order.attempt, me, says, tag=self.tag)
        return True

    def _next_state(self, mean: Array, tokens: int) -> HeldState:
        """What a commit of this reduce would lead to, on fresh arrays: nothing is applied."""
        theta = aligned_zeros(self._layout.total)
        momentum = aligned_zeros(self._layout.trainable)
        self._strategy.outer_step(self._layout, self.held, mean, theta, momentum)
        return seal(self._layout, theta, momentum, self.held.meta.after(tokens))

    def _committed(self, order: Committed) -> None:
        self.view = order.view
        entry = order.entry
        self._book.grant(order.leases)
        if isinstance(entry, RoundEntry | RollbackEntry) and entry.tag != self.tag:
            if isinstance(entry, RoundEntry) and entry.stop:
                self._stop = entry.stop
                self._stop_if_current()
                if self.ended is not None:
                    self._on_stopped()
        elif isinstance(entry, RoundEntry):
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
                if self._mean_root == prepared.root and self._mesh.wants_updates(self.tag):
                    tokens = sum(c.tokens for c in entry.contributions)
                    update = pack_update(entry.round, self._mean, self._strategy.codec, tokens)
                    self._mesh.hold_update(prepared.root, update, tag=self.tag)
                self._adopt(prepared, order)
        elif isinstance(entry, RollbackEntry):
            self._witness.rolls_back(order.view.lineage, entry)
            self._entry = None  # a later round, which nobody holds any more
            if self._joined_at is not None:
                self._joined_at = min(self._joined_at, entry.round)
            # A round that is undone may have counted it; and nobody waits for what was offered.
            self.discard()
            if self._anchor.held is None or self._anchor.held.root != entry.state_root:
                self._rollback = entry.state_root
                kept = self._disk.rolled_back(entry.round, entry.state_root)
                if kept is not None:
                    self._rollback = None
                    self._adopt(kept, None)

    def _update_arrived(self, order: UpdateArrived) -> None:
        held = self._anchor.held
        if held is None or held.round + 1 != order.round:
            return  # another state came first
        try:
            mean, tokens = unpack_update(order.data, order.how, self._layout.exchanged)
        except DivergenceError:
            self._mesh.refuse_update(order.round, tag=self.tag)
            return
        arrived = self._next_state(mean, tokens)
        if arrived.root == order.state_root:
            self._state_arrived(arrived)
        else:
            self._mesh.refuse_update(order.round, tag=self.tag)

    def _state_arrived(self, arrived: HeldState) -> None:
        if self._anchor.held is not None and arrived.root == self._anchor.held.root:
            return  # it came from the disk meanwhile
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

    def _stop_if_current(self) -> None:
        """Another tag's round has ended the run: so it has for this one, as it stands."""
        if self._stop and self.ended is None and self.current:
            self.ended = self._stop

    def _adopt(self, held: HeldState, order: Committed | None) -> None:
        failpoints.passing("adopt")
        entry = order.entry if order is not None else None
        assert entry is None or isinstance(entry, RoundEntry)
        self.close("the state has moved on")
        if entry is not None and entry.stop:
            self.ended = entry.stop
        elif held.meta.complete:
            self.ended = f"the run reached its end at round {held.round}"
        loss = self.work.mean_loss()
        uncounted = self.work.steps > 0 and not self.work.counted
        keep = uncounted and self.ended is None and self._anchor.take_delta()
        if keep:
            self.work.contributed_to = 0
            self.work.losses.clear()
        else:
            if uncounted and self.leads:
                self._book.discard()
            self.work = OwnWork()
        self._prepared.clear()
        self._anchor.set(held, keep_own=keep)
        self._mesh.hold(held.state, tag=self.tag)
        self._stop_if_current()
        if order is None or entry is None:
            self._on_adopted(None, held)
        else:
            self._on_adopted(Adoption(entry, order.view, held, loss), held)

    def _outer_gradient(self) -> bool:
        """Whether there is one to contribute. Work that is not finite never leaves this peer."""
        try:
            failpoints.passing("contribute")
            if not self._anchor.take_delta():
                raise ContributionError(
                    f"the work of {self.work.steps} steps since round {self.held.round} is not "
                    "finite; it was thrown away, and the inner optimizer starts afresh",
                    peer=self._mesh.me,
                    phase=f"contribute to round {self.held.round + 1}",
                )
        except ContributionError as error:
            self._refusals += 1
            self.discard()
            self._on_refused(error)
            if self._refusals >= _MAX_REFUSALS:
                raise
            return False
        self._refusals = 0
        return True
