"""One tag's rounds as the user's thread lives them: own work, when it is offered, what is adopted.

    anchor = θ(r)                                          adopted
      │  H inner steps change the model: θm
      ▼
    own = anchor − θm ──▶ Δ offered for round r + 1        `decentral.exchange` reduces it
      │  the strategy's overlap: more inner steps, or none
      ▼
    Advanced(θ(r + 1)), own work counted ──▶ anchor = θ(r + 1), θm as the strategy blends it
                        … not counted    ──▶ anchor = θ(r + 1), θm = anchor − all own work

The model changes here and nowhere else. Own work is counted whole by exactly one commit, or
discarded (I6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from decentral import failpoints
from decentral.anchor import Anchor
from decentral.compute import Tensors
from decentral.errors import ContributionError
from decentral.exchange import Exchange
from decentral.feedback import Feedback
from decentral.leases import LeaseBook
from decentral.mesh_port import MeshFailed, MeshPort
from decentral.outer_work import Adoption, Advanced, Disk, Heard, OwnWork, Restored, Witness
from decentral.pace import Pace
from decentral.peer.protocol import (
    CloseRound,
    Committed,
    Evicted,
    Fault,
    Joined,
    Left,
    RollbackEntry,
    RoundEntry,
)
from decentral.state import HeldState
from decentral.strategies.base import Strategy
from decentral.types import View

if TYPE_CHECKING:
    from decentral.types import Array

_MAX_REFUSALS = 5
_QUORUM = ("quorum-lost", "quorum-regained", "fork")
"""Faults that say whether a majority can be reached."""


class OuterRounds:
    """Used from the user's thread only."""

    def __init__(
        self,
        *,
        mesh: MeshPort,
        tensors: Tensors,
        strategy: Strategy,
        exchange: Exchange,
        book: LeaseBook,
        on_adopted: Callable[[Adoption | None, HeldState], None],
        on_refused: Callable[[ContributionError], None],
        on_stopped: Callable[[], None],
        restore: Callable[[Restored], None],
        disk: Disk,
        witness: Witness,
        tag: str = "",
        first_after: int | None = None,
    ) -> None:
        """`tensors`: the part of the model that has this tag; `restore`: gives the exchange a state
        from disk; `first_after`: inner steps before the first offer (default: as between others).
        """
        self.tag, self.tensors, self.exchange = tag, tensors, exchange
        self.leads = True
        """Whether the leases of this peer's samples are named by, and consumed with, this tag's
        contributions (`decentral.outer_loop`)."""
        self.view: View | None = None
        self.work = OwnWork()
        """Steps since the last offer, and those whose offer was not counted."""
        self.offered: OwnWork | None = None
        """What waits for a commit."""
        self._counted: OwnWork | None = None  # a commit has it, whose state is not adopted yet
        self.ended: str | None = None
        """Why the run is over for this peer, once it is."""
        self._mesh, self._strategy, self._book = mesh, strategy, book
        self._on_adopted, self._on_refused = on_adopted, on_refused
        self._on_stopped, self._restore = on_stopped, restore
        self._disk, self._witness = disk, witness
        decay = strategy.feedback_decay
        count = tensors.layout.exchanged
        feedback = Feedback(strategy.codec, decay, count) if decay is not None else None
        self._anchor = Anchor(tensors, feedback)
        self._pace = Pace(strategy, first_after)
        self._arrived: deque[tuple[Advanced, bool]] = deque()
        """States that are committed and not adopted yet, and whether they count the last offer."""
        self._counted_round = 0  # the last round that counted this peer's work
        self._offered_to = 0
        self._snapshot: Array | None = None  # θm at the offer
        self._own: Array | None = None  # own work in the offer
        self._carried: Array | None = None  # own work that is not in θm any more, and not counted
        self._carried_steps = 0  # of `work`: they were offered, and make no phase shorter
        self._memory: dict[str, Array] = {}
        self._awaiting = False  # a commit's state is still to come
        self._joined_at: int | None = None  # the round at which this peer became a member
        self._rollback: bytes | None = None  # the root that everybody goes back to
        self._close_round = 0
        self._stop = ""  # why the run ends for all, once another tag's round has said so
        self._alone = False  # no majority can be reached
        self._refusals = 0

    # ------------------------------------------------------------------ where it stands

    @property
    def held(self) -> HeldState:
        """The committed state that was adopted last."""
        assert self._anchor.held is not None, "no committed state before the run has begun"
        return self._anchor.held

    @property
    def _newest(self) -> HeldState | None:
        return self._arrived[-1][0].held if self._arrived else self._anchor.held

    @property
    def unadopted(self) -> HeldState | None:
        """A newer committed state than the one that was adopted last."""
        tip, held = self.exchange.tip, self._anchor.held
        return tip if tip is not None and held is not None and tip.round > held.round else None

    def take(self, held: HeldState, *, write: bool) -> None:
        """Start from this state: a founder's own, or one from disk."""
        self.exchange.take(held)
        self._anchor.set(held, write=write)

    @property
    def current(self) -> bool:
        """Whether this peer is a member and holds a committed state to train from: the latest that
        it knows of, unless its strategy goes on without."""
        newest = self._newest
        return (
            newest is not None
            and self._joined_at is not None
            and newest.round >= self._joined_at
            and not (self._awaiting and self._strategy.overlap is not None)
            and self._rollback is None
        )

    @property
    def held_up(self) -> bool:
        """Whether training waits for the outcome of what was offered."""
        return self.ended is None and self.offered is not None and self._pace.waits(self.work.steps)

    @property
    def asked(self) -> bool:
        """Whether the others wait only for us."""
        newest = self._newest
        return newest is not None and self._close_round == newest.round + 1

    @property
    def due(self) -> bool:
        """Whether it is time to contribute: enough steps, or the others wait only for us."""
        if self.ended is not None or self.offered is not None or not self.work.steps:
            return False
        steps = self.work.steps - self._carried_steps
        return steps >= self._pace.enough(alone=self._alone) or self.asked

    @property
    def uncommitted(self) -> tuple[int, int]:
        """Own (steps, tokens) since the state that was adopted last."""
        parts = [one for one in (self._counted, self.offered, self.work) if one is not None]
        return sum(one.steps for one in parts), sum(one.tokens for one in parts)

    def private(self) -> dict[str, Array]:
        """Copies of what this peer alone holds of the tag beside its model: error feedback, and
        whatever the strategy keeps."""
        kept = {f"memory/{name}": array.copy() for name, array in self._memory.items()}
        if self._anchor.residual is not None:
            kept["residual"] = self._anchor.residual.copy()
        return kept

    def recall(self, private: Mapping[str, Array]) -> None:
        """Go on from what `private` gave, at the state that it was kept with."""
        for name, array in private.items():
            if array.shape != (self.tensors.layout.exchanged,):
                continue
            if name == "residual" and self._anchor.residual is not None:
                self._anchor.residual[:] = array
            elif name.startswith("memory/"):
                self._memory[name.removeprefix("memory/")] = array.copy()

    # ------------------------------------------------------------------ training

    def stepped(self, tokens: int, loss: Any) -> None:
        """The inner optimizer has stepped once."""
        self._pace.stepped()
        if not self.work.steps:
            self.work.began_at = self.held.round
        self.work.steps += 1
        self.work.tokens += tokens
        self.work.losses.append(loss)
        self._book.stepped()

    def contribute(self) -> None:
        """Offer own work to the next round; it is `offered` until that round is over."""
        if self.offered is not None:
            return
        whole_rounds = self._pace.whole_rounds
        if not whole_rounds:
            self._adopt_all()
        progress = self._anchor.own()
        own = progress if self._carried is None else progress + self._carried
        delta = self._finite(own)
        if delta is None:
            return
        if whole_rounds:
            self._start_over(own, progress)
        work, round = self.work, self.held.round + 1
        if not work.steps:  # nothing to add, but others wait for that word
            work.began_at = self.held.round
        self.offered, self.work, self._offered_to = work, OwnWork(), round
        self._carried_steps = 0
        if self._strategy.overlap != 0:
            self._snapshot = self._anchor.local()
            self._own = own
        leases = self._book.used if self.leads else ()
        lineage = self.view.lineage if self.view is not None else ""
        self._witness.contributes(lineage, self.held, work, leases, delta)
        self._pace.offered()
        self.exchange.offer(round, delta)
        self._mesh.contribute(
            round,
            work.tokens,
            leases,
            staleness=self.held.round - work.began_at,
            steps=work.steps,
            step_s=self._pace.step_s,
            tag=self.tag,
        )

    def reconsider(self) -> None:
        """While no majority can be reached, training may go on for some steps."""
        if self._alone and self.held_up and self.offered is not None and not self.asked:
            enough = self.offered.steps >= self._pace.enough(alone=True)
            if self._strategy.overlap == 0 and not enough and self._book.may_draw:
                # Contributed anew, with what is added, once it is due.
                self.exchange.withdraw("this peer goes on alone for a while")
                self.work, self.offered = self.offered.with_later(self.work), None

    def resume(self) -> None:
        """Training goes on: the wait was no step."""
        self._pace.resume()

    def put_back(self) -> None:
        """The model is the anchor again, where no work of this tag counts any more."""
        self._anchor.set(self.held)

    def discard(self) -> None:
        """Own work goes: the model is the newest committed state."""
        self.exchange.withdraw("this peer's work was thrown away")
        self._forget_own()
        if self._arrived:
            self._adopt_all()
        elif self._anchor.held is not None:
            self._anchor.set(self._anchor.held)

    def _forget_own(self) -> None:
        self.work, self.offered, self._counted = OwnWork(), None, None
        self._carried_steps = 0
        self._carried = self._own = self._snapshot = None
        self._memory.clear()
        if self.leads:
            self._book.discard()

    # ------------------------------------------------------------------ news

    def obey(self, news: Heard | Advanced) -> None:
        """Raises the error of a mesh that has failed."""
        if isinstance(news, Advanced):
            self._advanced(news)
            return
        match news.order:
            case Committed():
                self._committed(news.order, news.late)
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

    def _committed(self, order: Committed, late: bool) -> None:
        self.view = order.view
        entry = order.entry
        self._book.grant(order.leases)
        if isinstance(entry, RoundEntry | RollbackEntry) and entry.tag != self.tag:
            if isinstance(entry, RoundEntry) and entry.stop:
                self._stop = entry.stop
                self._stop_if_current()
                if self.ended is not None:
                    self._on_stopped()
        elif isinstance(entry, RoundEntry) and not late:
            self._awaiting = True
            for contribution in entry.contributions:
                if contribution.peer == self._mesh.me:
                    self._book.counted(contribution.leases)
                    self._counted_round = entry.round
        elif isinstance(entry, RollbackEntry):
            self._rolled_back(order, entry)

    def _rolled_back(self, order: Committed, entry: RollbackEntry) -> None:
        self._witness.rolls_back(order.view.lineage, entry)
        self._awaiting = False
        if self._joined_at is not None:
            self._joined_at = min(self._joined_at, entry.round)
        # A round that is undone may have counted it; and nobody waits for what was offered.
        self.discard()
        if self._anchor.held is None or self._anchor.held.root != entry.state_root:
            self._rollback = entry.state_root
            kept = self._disk.rolled_back(entry.round, entry.state_root)
            if kept is not None:
                self._restore(Restored(kept, self.tag))

    def _advanced(self, news: Advanced) -> None:
        self._awaiting = self._awaiting and news.order is None and not news.replaces
        if news.held.root == self._rollback:
            self._rollback = None
        counted = self._counted_round == self._offered_to == news.held.round
        if counted:
            self._anchor.counted()
            self._carried = None
        if news.replaces or (counted and self.offered is None):
            # In the second case it had been withdrawn and trained on, and was counted all the same.
            self._forget_own()
        elif counted:
            self._counted, self.offered = self.offered, None
        elif self.offered is not None and self._offered_to <= news.held.round:
            self._missed(self.offered)
        self._pace.advanced()
        self._arrived.append((news, counted))
        if news.replaces or _ends(news):
            self._adopt_all()
        self.settle()

    def _missed(self, offered: OwnWork) -> None:
        """The round went on without this peer's work, which stays queued."""
        self.work, self.offered = offered.with_later(self.work), None
        if self._pace.whole_rounds:
            # The model has been moved away from it; this phase goes on as if it had been counted.
            self._carried, self._carried_steps = self._own, offered.steps

    # ------------------------------------------------------------------ adopting

    def settle(self) -> None:
        """Adopt what has arrived, when the strategy's overlap is over."""
        while self._arrived and self._pace.adopts(self.work.steps, counted=self._arrived[0][1]):
            self._adopt(*self._arrived.popleft())
        self._stop_if_current()

    def _adopt_all(self) -> None:
        while self._arrived:
            self._adopt(*self._arrived.popleft())

    def _adopt(self, news: Advanced, counted: bool) -> None:
        held = news.held
        failpoints.passing("adopt")
        ends = _ends(news)
        if ends:
            self.ended = ends
            if self.leads and (self.work.steps or self.offered is not None):
                self._book.discard()
            self.work, self.offered = OwnWork(losses=self.work.losses), None
            self._anchor.set(held)
        elif counted and self._snapshot is not None:
            theta = held.theta[: len(self._snapshot)]
            blended = self._strategy.blend(theta, self._anchor.local(), self._snapshot)
            self._anchor.place(held, blended)
        elif self.work.steps or self.offered is not None:
            self._anchor.rebase(held)
        else:
            self._anchor.set(held)
        self._tell(news, counted)

    def _start_over(self, own: Array, progress: Array) -> None:
        """Where whole rounds overlap: adopt, and let the next steps start where the strategy says
        while `own` is reduced."""
        adopted = list(self._arrived)
        self._arrived.clear()
        held = adopted[-1][0].held if adopted else self.held
        failpoints.passing("adopt")
        members = len(self.view.members) if self.view is not None else 1
        start = self._strategy.restart(held.theta[: len(own)], own, progress, members, self._memory)
        self._anchor.place(held, start, base=start)
        self._carried = None
        for news, counted in adopted:
            self._tell(news, counted)

    def _tell(self, news: Advanced, counted: bool) -> None:
        """What has been adopted, to whoever reports and checkpoints."""
        held, order = news.held, news.order
        loss = (self._counted if counted and self._counted is not None else self.work).mean_loss()
        if counted:
            self._counted = None
        else:
            self.work.losses.clear()
        entry = order.entry if order is not None else None
        if order is None or not isinstance(entry, RoundEntry):
            self._on_adopted(None, held)
        else:
            self._on_adopted(Adoption(entry, order.view, held, loss), held)

    def _stop_if_current(self) -> None:
        """Another tag's round has ended the run: so it has for this one, as it stands."""
        if self._stop and self.ended is None and self.current:
            self.ended = self._stop

    def _finite(self, own: Array) -> Array | None:
        """Δ, if there is one to contribute. Work that is not finite never leaves this peer."""
        try:
            failpoints.passing("contribute")
            delta = self._anchor.offer(own)
            if delta is None:
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
            return None
        self._refusals = 0
        return delta


def _ends(news: Advanced) -> str:
    """Why the run is over for all with this state, if it is."""
    entry = news.order.entry if news.order is not None else None
    if isinstance(entry, RoundEntry) and entry.stop:
        return entry.stop
    if news.held.meta.complete:
        return f"the run reached its end at round {news.held.round}"
    return ""
