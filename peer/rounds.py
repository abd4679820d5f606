"""One peer's part in the rounds: offer its work, reduce when told to, report, apply what commits.

    trainer        this peer                      coordinator
    Contribute ──▶ Offer ───────────────────────▶ all have offered
    StartReduce ◀─ ◀──────────────── Start ────── freezes the contributions
    Reduced ─────▶ Result ──────────────────────▶ all roots equal: RoundEntry into the log
    Committed ◀─── (views)

Only the commit decides. Until then the contribution stays here and is offered again; after a
commit that did not count it, the trainer keeps the work and contributes it to the next round (I6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from decentral.peer.context import Context
from decentral.peer.messages import Abort, Close, Failed, Offer, Result, Start
from decentral.peer.protocol import (
    AbortReduce,
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
from decentral.peer.views_log import LogState
from decentral.types import Contribution, PeerId

REFETCH_S = 3.0
APPLY_S = 30.0
"""A trainer that reduced a round has it applied by then; else it fetches like the others."""


@dataclass(slots=True)
class _Running:
    round: int
    attempt: int
    by: PeerId


class Rounds:
    def __init__(
        self, ctx: Context, replica: Replica, coordinator: Callable[[], PeerId | None]
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.coordinator = coordinator
        self.contribution: Contribute | None = None
        self.held: tuple[int, bytes] | None = None
        """(round, root) of the state that the trainer holds; None: not yet known."""
        self.durable = 0
        self.stop = ""
        self.running: _Running | None = None
        self.result: RoundEntry | None = None
        """Our own outcome of the running attempt: only round, attempt and root count."""
        self.attempt_seen = 0
        self.offered_at = 0.0
        self._offered: tuple[object, ...] = ()
        self._fetching: tuple[int, bytes] | None = None
        self._holders: tuple[PeerId, ...] = ()
        self._fetch_at = 0.0
        self._closed = -1
        self._applying = False

    # -------------------------------------------------------------- from the trainer

    def on_contribute(self, event: Contribute) -> None:
        state = self.replica.state
        if state is not None and event.round == state.round + 1:
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
        )
        report = Result(self.replica.lineage, event.round, event.attempt, event.state_root)
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
        state = self.replica.state
        if self.replica.member and state and state.round == number and root != state.root != b"":
            self.ctx.fault(
                "divergence",
                self.ctx.me,
                f"This peer holds other bits than round {number} has: fetching the committed ones.",
            )
            self._fetch_at = 0.0
        if self._fetching == self.held:
            self._fetching = None
        self.ctx.dirty = True

    def _fail(
        self, to: PeerId, number: int, attempt: int, suspect: PeerId | None, says: str
    ) -> None:
        lineage = self.replica.lineage
        report = Failed(lineage, number, attempt, self.attempt_seen, suspect, says[:1000])
        self.ctx.send(to, report)

    # -------------------------------------------------------------- to the coordinator

    def offer(self, unlinked: tuple[PeerId, ...]) -> None:
        """Tell the coordinator where we stand, when that is news to it."""
        state, to = self.replica.state, self.coordinator()
        if state is None or to is None or not self.replica.member:
            return
        mine = self.contribution
        ready = mine is not None and self.held == (state.round, state.root) and not unlinked
        peering = self.ctx.links.get(to)
        boot = peering.hello.boot if peering and peering.hello else b""
        known = self.held is not None and not self._applying
        news = (
            *(to, boot, state.view, state.round, mine, ready, unlinked),
            *(known, self.held, self.durable, self.stop),
        )
        if news == self._offered:
            return
        self._offered, self.offered_at = news, self.ctx.now
        held_round, held_root = self.held or (0, b"")
        msg = Offer(
            lineage=state.view.lineage,
            slot=state.slot,
            round=state.round + 1,
            ready=ready,
            tokens=mine.tokens if mine else 0,
            leases=mine.leases if mine else (),
            attempt_seen=self.attempt_seen,
            unlinked=unlinked,
            held_known=known,
            held_round=held_round,
            held_root=held_root,
            durable_round=self.durable,
            stop=self.stop,
        )
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
        mine = next((one for one in msg.contributions if one.peer == self.ctx.me), None)
        wrong = ""
        if msg.round != state.round + 1 or self.ctx.me not in msg.participants:
            wrong = "not our round"
        elif self.held != (state.round, state.root):
            wrong = f"the state of round {state.round} is not here yet"
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
        self.ctx.out.append(
            StartReduce(state.view, msg.round, msg.attempt, msg.participants, msg.contributions)
        )

    def ours(self, counted: Contribution) -> bool:
        """Whether this is the very work that waits here to be counted."""
        one = self.contribution
        return one is not None and (one.tokens, one.leases) == (counted.tokens, counted.leases)

    def on_abort(self, msg: Abort) -> None:
        running = self.running
        if running is None or msg.lineage != self.replica.lineage:
            return
        if (running.round, running.attempt) == (msg.round, msg.attempt):
            self.abort(msg.says)

    def abort(self, says: str) -> None:
        """Call the running attempt off here."""
        if self.running is not None:
            self.ctx.out.append(AbortReduce(self.running.round, self.running.attempt, says))
        self.running = self.result = None

    def on_close(self, msg: Close) -> None:
        state = self.replica.state
        if state is None or msg.lineage != state.view.lineage or msg.round != state.round + 1:
            return
        if self.contribution is None and self._closed != msg.round:
            self._closed = msg.round
            self.ctx.out.append(CloseRound(msg.round))

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

    def fetch(self, state: LogState, holders: tuple[PeerId, ...]) -> bool:
        """Whether the trainer holds the state of the last round; if not, have it fetched."""
        goal = (state.round, state.root)
        if self.held == goal or state.root == b"":
            return True
        if self.held is None and not self._fetching and self.replica.restarted:
            return False
        if self._fetching != goal:
            self._fetching, self._holders, self._fetch_at = goal, (), 0.0
        if holders and holders != self._holders and self.ctx.now >= self._fetch_at:
            self._holders, self._fetch_at = holders, self.ctx.now + REFETCH_S
            self.ctx.out.append(FetchState(*goal, holders))
        return False
