"""The committed side of one tag: the state that all agree on, and the all-reduce that leads on.

    Offer(Δ) ──▶ StartReduce: mean Δ … ReduceEnded ──▶ would-be θ(r + 1) ──▶ its root ──▶ reduced(…)
                   │  failed, or AbortReduce: Δ is untouched; the next attempt takes it again
                   ▼
    Committed(r + 1) ── our root ──▶ tip = θ(r + 1)
                     ── another  ──▶ StateArrived or UpdateArrived ──▶ tip = θ(r + 1)

It runs on a thread of its own (`decentral.outer_loop`), so that a round goes on while the user's
thread computes. What it borrows of that thread is the offered Δ, and only until the offer is over
or withdrawn. The model is never touched here: `tell` says what has become of the run, and the
user's thread adopts it when the strategy says so (`decentral.outer_round`).

Nothing is applied before the commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decentral import failpoints
from decentral.errors import CollectiveError, DivergenceError
from decentral.mesh_port import GroupFactory, MeshPort, Order, StateArrived, UpdateArrived
from decentral.outer_work import Advanced, Heard, News, ReduceEnded, Restored
from decentral.peer.protocol import (
    AbortReduce,
    Committed,
    Evicted,
    RollbackEntry,
    RoundEntry,
    StartReduce,
)
from decentral.running_reduce import RunningReduce
from decentral.state import HeldState, Layout, aligned_zeros, seal, unseal
from decentral.strategies.base import Strategy, rank_weights
from decentral.types import View
from decentral.updates import pack_update, unpack_update

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(frozen=True, slots=True)
class _Offer:
    round: int
    delta: Array


class Exchange:
    """`abort` and `abort_any` run on the mesh's thread; `take`, `offer`, `withdraw` and closing in
    the user's; everything else on the exchange's own."""

    def __init__(
        self,
        *,
        mesh: MeshPort,
        layout: Layout,
        strategy: Strategy,
        make_group: GroupFactory,
        post: Callable[[ReduceEnded], None],
        tell: Callable[[News], None],
        tag: str = "",
        number: int = 0,
    ) -> None:
        """`post`: called on another thread with what `obey` is to be given soon; `tell`: gets what
        the user's thread should know, in order; `number`: the tag's, for the wire."""
        self.tag = tag
        self.tip: HeldState | None = None
        """The newest committed state that this peer holds."""
        self._mesh, self._layout, self._strategy = mesh, layout, strategy
        self._make_group, self._post, self._tell, self._number = make_group, post, tell, number
        self._lock = threading.Lock()
        self._offer: _Offer | None = None  # guarded by _lock
        self._closed = ""  # guarded by _lock
        self._running = RunningReduce()
        self._reducing: StartReduce | None = None
        self._settled = threading.Event()
        """No attempt is under way whose outcome the others wait for."""
        self._settled.set()
        self._mean = aligned_zeros(layout.exchanged)
        self._mean_root = b""  # of the state that `_mean` would lead to
        self._prepared: dict[bytes, HeldState] = {}
        self._entry: Committed | None = None  # committed, and its state is not here yet
        self._rollback: bytes | None = None  # the root that everybody goes back to

    # ------------------------------------------------------------------ the mesh's thread

    def abort(self, order: AbortReduce) -> None:
        self._running.abort(order.round, order.attempt, order.says)

    def abort_any(self, says: str) -> None:
        self._running.abort_any(says)

    # ------------------------------------------------------------------ the user's thread

    def take(self, held: HeldState) -> None:
        """Start from this state, before the first order: a founder's own, or one from disk."""
        self.tip = held

    def offer(self, round: int, delta: Array) -> None:
        """`delta` is this peer's outer gradient for `round`. It is borrowed, and stays as it is,
        until that round is over or `withdraw` returns."""
        with self._lock:
            self._offer = _Offer(round, delta)

    def withdraw(self, says: str) -> None:
        """The offer does not hold any more; nothing borrows it when this returns."""
        with self._lock:
            self._offer = None
        self._running.settle(says)

    def begin_no_more(self, says: str) -> None:
        """No reduce begins any more. What has begun may finish: the others wait for it."""
        with self._lock:
            self._closed = says

    def wait_until_settled(self, timeout_s: float) -> None:
        """Until no attempt is under way here, or not so long."""
        self._settled.wait(timeout_s)

    # ------------------------------------------------------------------ orders

    def obey(self, order: Order | ReduceEnded | Restored) -> None:
        match order:
            case StartReduce():
                self._reduce(order)
            case ReduceEnded():
                self._reduced(order)
            case Committed():
                self._committed(order)
            case StateArrived(state):
                self._state_arrived(unseal(self._layout, state))
            case Restored(held):
                self._state_arrived(held)
            case UpdateArrived():
                self._update_arrived(order)
            case Evicted():
                self._end_reduce("this peer is out of the view")
                self._tell(Heard(order, self.tag))
            case _:
                self._tell(Heard(order, self.tag))

    def _reduce(self, order: StartReduce) -> None:
        """One attempt. Its failure is the mesh's to judge; the contribution stays as it is."""
        round, attempt, me = order.round, order.attempt, self._mesh.me
        if self.tip is None or self.tip.round + 1 != round:
            self._failed(order, None, f"this peer does not hold round {round - 1} yet")
            return
        weights = rank_weights(self._strategy, order.participants, order.contributions)
        view = View(lineage=order.view.lineage, epoch=order.view.epoch, members=order.participants)
        self._end_reduce("a newer attempt begins")
        self._mean_root = b""
        idle = self.tip.theta[: self._layout.exchanged]
        with self._lock:
            if self._closed:
                self._failed(order, me, self._closed)
                return
            if self._withdrawn(order):
                return
            delta = self._offer.delta if self._offer is not None else idle
            self._settled.clear()
            try:
                self._running.start(
                    round,
                    attempt,
                    lambda wanted: self._make_group(self._mesh.native, view, me, wanted).all_reduce(
                        delta,
                        self._mean,
                        self._strategy.codec,
                        weights=weights,
                        round=round,
                        attempt=attempt,
                        tag=self._number,
                        **self._strategy.reduce_options(),
                    ),
                    lambda error: self._post(ReduceEnded(order, error)),
                )
            except CollectiveError as error:
                self._settled.set()
                self._failed(order, error.peer, error.says)
                return
        self._reducing = order

    def _reduced(self, ended: ReduceEnded) -> None:
        """The attempt is over here: what it would lead to, or why it failed, goes to the mesh."""
        if ended.order is not self._reducing:
            return  # called off in favour of a newer one
        self._running.end()
        try:
            self._report(ended)
        finally:
            self._reducing = None
            self._settled.set()

    def _report(self, ended: ReduceEnded) -> None:
        order = ended.order
        with self._lock:
            if ended.error is None and self._withdrawn(order):
                return
        try:
            if ended.error is not None:
                raise ended.error
            prepared = self._next_state(self._mean, sum(c.tokens for c in order.contributions))
            failpoints.passing("reduced")
        except CollectiveError as error:
            self._failed(order, error.peer, error.says)
            return
        self._mean_root = prepared.root
        self._prepared[prepared.root] = prepared
        self._mesh.reduced(order.round, order.attempt, prepared.root, tag=self.tag)

    def _withdrawn(self, order: StartReduce) -> bool:
        """Whether the attempt counts work that is not offered any more; then it fails."""
        me = self._mesh.me
        mine = any(c.peer == me for c in order.contributions)
        if not mine or (self._offer is not None and self._offer.round == order.round):
            return False
        self._failed(order, me, f"this peer has no contribution to round {order.round} any more")
        return True

    def _failed(self, order: StartReduce, suspect: str | None, says: str) -> None:
        self._mesh.reduce_failed(order.round, order.attempt, suspect, says, tag=self.tag)

    def _end_reduce(self, says: str) -> None:
        """Call it off: no buffer is touched when this returns."""
        self._running.end(says)
        self._reducing = None
        self._settled.set()

    def _next_state(self, mean: Array, tokens: int) -> HeldState:
        """What a commit of this reduce would lead to, on fresh arrays: nothing is applied."""
        assert self.tip is not None
        theta = aligned_zeros(self._layout.total)
        momentum = aligned_zeros(self._layout.trainable)
        self._strategy.outer_step(self._layout, self.tip, mean, theta, momentum)
        self._layout.clear_padding(theta)
        self._layout.clear_padding(momentum)
        return seal(self._layout, theta, momentum, self.tip.meta.after(tokens))

    def _committed(self, order: Committed) -> None:
        entry = order.entry
        if isinstance(entry, RoundEntry) and entry.tag == self.tag:
            self._running.forget(entry.round)
            tip = self.tip
            late = tip is not None and (tip.round > entry.round or tip.root == entry.state_root)
            self._tell(Heard(order, self.tag, late))
            if late:
                return
            self._entry = order
            prepared = self._prepared.get(entry.state_root)
            if prepared is not None and prepared.round == entry.round:
                self._keep_update(entry, prepared)
                self._advance(prepared, order)
        elif isinstance(entry, RollbackEntry) and entry.tag == self.tag:
            self._entry = None  # a later round, which nobody holds any more
            if self.tip is None or self.tip.root != entry.state_root:
                self._rollback = entry.state_root
            self._end_reduce("the run goes back")
            self._tell(Heard(order, self.tag))
        else:
            self._tell(Heard(order, self.tag))

    def _keep_update(self, entry: RoundEntry, prepared: HeldState) -> None:
        """Whoever was no participant may take the outer step itself."""
        missed = self._strategy.min_contributors > 0 or self._mesh.wants_updates(self.tag)
        if self._mean_root == prepared.root and missed:
            tokens = sum(c.tokens for c in entry.contributions)
            update = pack_update(entry.round, self._mean, self._strategy.codec, tokens)
            self._mesh.hold_update(prepared.root, update, tag=self.tag)

    def _update_arrived(self, order: UpdateArrived) -> None:
        tip = self.tip
        if tip is None or tip.round + 1 != order.round:
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
        if self.tip is not None and arrived.root == self.tip.root:
            return  # it came from the disk meanwhile
        order: Committed | None = None
        replaces = False
        expected = self._entry.entry if self._entry is not None else None
        if isinstance(expected, RoundEntry) and arrived.root == expected.state_root:
            order = self._entry
        elif isinstance(expected, RoundEntry) and arrived.round < expected.round:
            pass  # on the way to a later round, whose state is still to come
        else:
            # Not the outcome of a round that we followed: a join, a rollback, another lineage.
            self._entry = None
            replaces = True
        if arrived.root == self._rollback:
            self._rollback = None
        self._advance(arrived, order, replaces=replaces)

    def _advance(self, held: HeldState, order: Committed | None, *, replaces: bool = False) -> None:
        self._end_reduce("the state has moved on")
        if order is not None:
            self._entry = None
        self._prepared.clear()
        with self._lock:
            if self._offer is not None and (replaces or self._offer.round <= held.round):
                self._offer = None
        self.tip = held
        self._mesh.hold(held.state, tag=self.tag)
        self._tell(Advanced(held, order, replaces, self.tag))
