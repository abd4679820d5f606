"""One peer's part in the rounds of one tag: offer its work, reduce when told to, report, apply.

    trainer        this peer                      coordinator
    Contribute ──▶ Offer ───────────────────────▶ all have offered
    StartReduce ◀─ ◀──────────────── Start ────── freezes the contributions
    Reduced ─────▶ Result ──────────────────────▶ all roots equal: RoundEntry into the log
    Committed ◀─── (views)

Only the commit decides. Until then the contribution stays here and is offered again; after a
commit that did not count it, the trainer keeps the work and contributes it to the next round (I6).
Each tag has a machine of its own; their rounds overlap, and one log orders their commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_

from decentral.peer.context import Context
from decentral.peer.fields import MAX_KEPT, no_leap
from decentral.peer.messages import Abort, Close, Failed, Offer, Result, Start
from decentral.peer.protocol import (
    AbortReduce,
    Checkpointed,
    CloseRound,
    Contribute,
    FetchState,
    Reduced,
    ReduceFailed,
    RollbackEntry,
    RoundEntry,
    StartReduce,
)
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState, Scope
from decentral.types import Contribution, PeerId

REFETCH_S = 3.0
APPLY_S = 30.0
"""A trainer that reduced a round has it applied by then; else it fetches like the others."""


LINKS_S = 1.0
"""Links come and go in crowds: which ones are missing is said no more often than this."""


@dataclass(slots=True)
class _Running:
    round: int
    attempt: int
    by: PeerId


class Rounds:
    def __init__(
        self, ctx: Context, replica: Replica, coordinator: Callable[[], PeerId | None], tag: str
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.coordinator = coordinator
        self.tag = tag
        self.takes = ctx.config.takes is None or tag in ctx.config.takes
        """Whether this peer takes part in this tag now; else it only votes on its rounds."""
        self.contribution: Contribute | None = None
        self.held: tuple[int, bytes] | None = None
        """(round, root) of the state that the trainer holds; None: not yet known."""
        self.durable = 0
        self.kept: tuple[int, ...] = ()
        self.stop = ""
        self.running: _Running | None = None
        self.result: RoundEntry | None = None
        """Our own outcome of the running attempt: only round, attempt and root count."""
        self.attempt_seen = 0
        self.offered_at = 0.0
        self._offered: tuple[object, ...] = ()
        self._missed: tuple[PeerId, ...] = ()
        self._seen: tuple[object, ...] = (None,)
        """What the last look at the offer was at: where all is the very same, nothing is news."""
        self._step_ms = 0
        self._fetching: tuple[int, bytes] | None = None
        self._holders: tuple[PeerId, ...] = ()
        self._fetch_at = 0.0
        self._closed = -1
        self._applying = False

    # -------------------------------------------------------------- from the trainer

    def on_contribute(self, event: Contribute) -> None:
        scope = self.scope()
        if scope is not None and event.round == scope.round + 1:
            self.contribution = event
            self.ctx.dirty = True

    def on_reduced(self, event: Reduced) -> None:
        running = self.running
        if running is None or (running.round, running.attempt) != (event.round, event.attempt):
            return
        self.result = RoundEntry(
            round=event.round,
            attempt=event.attempt,
            contributions=(),
            state_root=event.state_root,
            durable_round=0,
            tag=self.tag,
        )
        lineage = self.replica.lineage
        report = Result(lineage, self.tag, event.round, event.attempt, event.state_root)
        self.ctx.send(running.by, report)

    def on_reduce_failed(self, event: ReduceFailed) -> None:
        running = self.running
        if running is None or (running.round, running.attempt) != (event.round, event.attempt):
            return
        self.running = self.result = None
        self._fail(running.by, event.round, event.attempt, event.suspect, event.says)

    def on_state_held(self, number: int, root: bytes) -> None:
        self.held = (number, root)
        self._applying = False
        scope = self.scope()
        if self.replica.member and scope and scope.round == number and root != scope.root != b"":
            self.ctx.fault(
                "divergence",
                self.ctx.me,
                f"This peer holds other bits than round {number} has: fetching the committed ones.",
            )
            self._fetch_at = 0.0
        if self._fetching == self.held:
            self._fetching = None
        self.ctx.dirty = True

    def on_take_part(self, takes: bool) -> None:
        if takes == self.takes:
            return
        self.takes = takes
        if not takes:
            self.give_up("this peer takes no part in it any more")
            self.held = self._fetching = None
            self._holders, self._applying = (), False
        self.ctx.dirty = True

    def _fail(
        self, to: PeerId, number: int, attempt: int, suspect: PeerId | None, says: str
    ) -> None:
        lineage, seen = self.replica.lineage, self.attempt_seen
        report = Failed(lineage, self.tag, number, attempt, seen, suspect, says[:1000])
        self.ctx.send(to, report)

    def on_checkpointed(self, event: Checkpointed) -> None:
        self.durable = max(self.durable, event.round)
        self.kept = event.kept[-MAX_KEPT:]
        self.ctx.dirty = True

    def scope(self) -> Scope | None:
        """What is committed under our tag."""
        state = self.replica.state
        return None if state is None else state.scope(self.tag)

    # -------------------------------------------------------------- to the coordinator

    def offer(self, unlinked: tuple[PeerId, ...]) -> None:
        """Tell the coordinator where we stand, when that is news to it."""
        state, to = self.replica.state, self.coordinator()
        if state is None or to is None or not self.replica.member:
            return
        if self._applying:
            return  # the next state is here in a moment, and that is worth an offer
        peering = self.ctx.links.get(to)
        hello = peering.hello if peering else None
        seen = (
            *(to, hello, state, unlinked, self.contribution, self.takes),
            *(self.held, self._applying, self.durable, self.kept, self.stop),
        )
        if all(map(is_, seen, self._seen)):
            return
        mine, scope = self.contribution, state.scope(self.tag)
        ready = mine is not None and self.held == (scope.round, scope.root)
        boot = hello.boot if hello else b""
        known = self.held is not None and not self._applying
        # A person's rollback goes to what disks keep: that must be news at once.
        news = (
            *(to, boot, state.view, scope.round, mine, ready, self.takes),
            *(known, self.held, self.durable, self.kept, self.stop, not unlinked),
        )
        if news == self._offered:
            if unlinked == self._missed:
                self._seen = seen
            if unlinked == self._missed or self.ctx.now <= self.offered_at + LINKS_S:
                return
        self._seen = seen
        self._offered, self._missed, self.offered_at = news, unlinked, self.ctx.now
        held_round, held_root = self.held or (0, b"")
        msg = Offer(
            lineage=state.view.lineage,
            slot=state.slot,
            tag=self.tag,
            takes=self.takes,
            round=scope.round + 1,
            ready=ready,
            tokens=mine.tokens if mine else 0,
            staleness=mine.staleness if mine else 0,
            steps=mine.steps if mine else 0,
            leases=mine.leases if mine else (),
            step_ms=round(1000 * mine.step_s) if mine else self._step_ms,
            attempt_seen=self.attempt_seen,
            unlinked=unlinked,
            held_known=known,
            held_round=held_round,
            held_root=held_root,
            durable_round=self.durable,
            kept=self.kept,
            stop=self.stop,
        )
        self._step_ms = msg.step_ms
        self.ctx.send(to, msg)

    # -------------------------------------------------------------- from the coordinator

    def on_start(self, peer: PeerId, msg: Start) -> None:
        state = self.replica.state
        if (
            state is None
            or not self.replica.in_step(peer, msg.lineage, msg.slot)
            or not self.replica.member
        ):
            return
        if peer != self.ctx.me:
            no_leap(msg.attempt, self.attempt_seen, "attempt")
        mine = next((one for one in msg.contributions if one.peer == self.ctx.me), None)
        scope = state.scope(self.tag)
        wrong = ""
        if msg.round != scope.round + 1 or self.ctx.me not in msg.participants:
            wrong = "not our round"
        elif self.held != (scope.round, scope.root):
            wrong = f"the state of round {scope.round} is not here yet"
        elif msg.attempt <= self.attempt_seen:
            wrong = f"attempt {self.attempt_seen} was seen already"
        elif mine is not None and not self.ours(mine):
            wrong = "this contribution is not ours any more"
        if wrong:
            self._fail(peer, msg.round, msg.attempt, None, wrong)
            return
        self.abort("a newer attempt begins")
        self.attempt_seen = msg.attempt
        self.running = _Running(msg.round, msg.attempt, peer)
        who = (msg.participants, msg.contributions)
        self.ctx.out.append(StartReduce(state.view, msg.round, msg.attempt, *who, self.tag))

    def ours(self, counted: Contribution) -> bool:
        """Whether this is the very work that waits here to be counted."""
        one = self.contribution
        return one is not None and (one.tokens, one.staleness, one.steps, one.leases) == (
            counted.tokens,
            counted.staleness,
            counted.steps,
            counted.leases,
        )

    def on_abort(self, msg: Abort) -> None:
        running = self.running
        if running is None or msg.lineage != self.replica.lineage:
            return
        if (running.round, running.attempt) == (msg.round, msg.attempt):
            self.abort(msg.says)

    def abort(self, says: str) -> None:
        """Call the running attempt off here."""
        if self.running is not None:
            running = self.running
            self.ctx.out.append(AbortReduce(running.round, running.attempt, says, self.tag))
        self.running = self.result = None

    def give_up(self, says: str) -> None:
        """The trainer works no more: an attempt that waits for it would wait until it times out."""
        running, self.contribution = self.running, None
        if running is not None and self.result is None:
            self.abort(says)
            self._fail(running.by, running.round, running.attempt, None, says)

    def on_close(self, msg: Close) -> None:
        scope = self.scope()
        if scope is None or msg.lineage != self.replica.lineage or msg.round != scope.round + 1:
            return
        if self.contribution is None and self._closed != msg.round:
            self._closed = msg.round
            self.ctx.out.append(CloseRound(msg.round, self.tag))

    def vouches(self, entry: RoundEntry) -> bool:
        """Whether we may vote for this outcome: it is our own, or we took no part in it and the
        participants, who all reported the same root, answer for it."""
        running = self.running
        took_part = running is not None and running.attempt == entry.attempt
        counted = any(one.peer == self.ctx.me for one in entry.contributions)
        return self.witnessed(entry) if took_part or counted else True

    def witnessed(self, entry: RoundEntry) -> bool:
        """Whether our own reduce of this very attempt came to the same root."""
        mine = self.result
        return mine is not None and (mine.round, mine.attempt, mine.state_root) == (
            entry.round,
            entry.attempt,
            entry.state_root,
        )

    # -------------------------------------------------------------- the log moves

    def on_round(self, entry: RoundEntry) -> None:
        """A round is committed: ours to apply if we came to the same root, else to fetch."""
        mine = self.result
        same = self.witnessed(entry)
        if not same and mine is not None and mine.attempt == entry.attempt:
            self.ctx.fault(
                "divergence",
                self.ctx.me,
                f"This peer's result of round {entry.round} differs from the committed one: "
                f"fetching the committed state.",
            )
        if same:
            self.running = self.result = None
            # The trainer holds what it reduced as soon as it applies it, which it does next.
            self._fetching = (entry.round, entry.state_root)
            self._fetch_at = self.ctx.now + APPLY_S
            self._applying = True
        else:
            self.abort(f"round {entry.round} is committed")
        self.next_round()

    def next_round(self) -> None:
        """Whatever was about the former round is over."""
        self.contribution = None
        self.attempt_seen = 0
        self._closed = -1

    def on_rollback(self, entry: RollbackEntry) -> None:
        self.abort(f"the run goes back to round {entry.round}")
        self.durable = min(self.durable, entry.round)
        self.next_round()

    # -------------------------------------------------------------- state that is missing

    def holds(self, state: LogState) -> bool:
        """Whether the trainer holds the state of the last round, as far as it takes part."""
        if not self.takes:
            return True
        scope = state.scope(self.tag)
        return self.held == (scope.round, scope.root) or scope.root == b""

    def near(self, state: LogState, rounds: int) -> bool:
        """Whether the trainer holds a committed state at most so many rounds old, as far as it
        takes part."""
        if self.holds(state):
            return True
        scope, held = state.scope(self.tag), self.held
        return held is not None and scope.round - held[0] <= rounds and scope.committed(*held)

    def fetch(self, state: LogState, holders: tuple[PeerId, ...]) -> None:
        """Have the state of the last round fetched."""
        if self.held is None and not self._fetching and self.replica.restarted:
            return
        scope = state.scope(self.tag)
        goal = (scope.round, scope.root)
        if self._fetching != goal:
            self._fetching, self._holders, self._fetch_at = goal, (), 0.0
        # Not all members hold every tag: a link more may be the first to one who does.
        more = not set(holders) <= set(self._holders)
        if holders != self._holders and (more or (holders and self.ctx.now >= self._fetch_at)):
            self._holders, self._fetch_at = holders, self.ctx.now + REFETCH_S
            # What is worked out, and no sum, has no updates that could be replayed.
            history = () if self.ctx.config.copies else scope.history
            past = tuple((one.round, one.root) for one in history)
            self.ctx.out.append(FetchState(*goal, holders, past, self.tag))
