"""What the coordinator does about rounds: collect, freeze, start, compare, propose.

    collecting ──▶ all members have offered ──▶ attempt ──▶ all roots equal ──▶ RoundEntry
        ▲  │                                     │  │            └─ majority root: the same, the
        │  └─ only stragglers missing: CloseRound│  │               odd ones fetch
        │     only the hung missing: evict them  │  └─ none: next attempt
        └───────── Abort ◀── failure, death, timeout

Nothing here is durable: a new coordinator collects afresh, and members refuse attempt numbers
that they have seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from decentral.peer.context import Context
from decentral.peer.member import ALIVE
from decentral.peer.membership import Membership
from decentral.peer.messages import Abort, Close, Failed, Offer, Result, Start, Stuck
from decentral.peer.protocol import RollbackEntry, RoundEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState
from decentral.types import Contribution, PeerId

MIN_GRACE_S = 1.0
UNLINKED_S = 6.0
"""A member that others have no link to for so long goes, however alive it seems to some."""
BLAMES = 3


@dataclass(slots=True)
class _Attempt:
    number: int
    round: int
    participants: tuple[PeerId, ...]
    contributions: tuple[Contribution, ...]
    started_at: float
    roots: dict[PeerId, bytes] = field(default_factory=dict)
    entry: RoundEntry | None = None


class Coordinator:
    def __init__(self, ctx: Context, replica: Replica, membership: Membership) -> None:
        self.ctx = ctx
        self.replica = replica
        self.membership = membership
        self.offers: dict[PeerId, Offer] = {}
        self.attempt: _Attempt | None = None
        self.evict: dict[PeerId, str] = {}
        """Members to be taken out of the view, and why."""
        self._attempt_seen = 0
        self._failures = 0
        self._retry_at = 0.0
        self._since = 0.0
        self._half_at: float | None = None
        self._blames: Counter[PeerId] = Counter()
        self._stuck: set[PeerId] = set()
        self._unlinked: dict[tuple[PeerId, PeerId], float] = {}
        self._closed: set[PeerId] = set()

    # -------------------------------------------------------------- collecting

    def on_offer(self, peer: PeerId, msg: Offer) -> None:
        if msg.lineage != self.replica.lineage:
            return
        self.replica.in_step(peer, msg.lineage, msg.slot)
        self.offers[peer] = msg
        self._attempt_seen = max(self._attempt_seen, msg.attempt_seen)
        pairs = {(peer, other) for other in msg.unlinked}
        for pair in [one for one in self._unlinked if one[0] == peer and one not in pairs]:
            del self._unlinked[pair]
        for pair in pairs:
            self._unlinked.setdefault(pair, self.ctx.now)
        self.ctx.dirty = True

    def on_stuck(self, peer: PeerId, msg: Stuck) -> None:
        state = self.replica.state
        if state is not None and (msg.lineage, msg.round) == (state.view.lineage, state.round):
            self._stuck.add(msg.peer)
            self.ctx.dirty = True

    def forget(self, peer: PeerId) -> None:
        """A new process of this peer, or none: what the old one offered is void."""
        self.offers.pop(peer, None)

    def new_round(self) -> None:
        self.attempt = None
        self._attempt_seen = self._failures = 0
        self._retry_at, self._since, self._half_at = 0.0, self.ctx.now, None
        self._blames.clear()
        self._stuck.clear()
        self._closed.clear()
        self.evict.clear()

    def new_view(self, members: tuple[PeerId, ...]) -> None:
        self.attempt = None
        self._retry_at = 0.0
        self.offers = {peer: one for peer, one in self.offers.items() if peer in members}
        self._unlinked = {
            pair: at for pair, at in self._unlinked.items() if set(pair) <= set(members)
        }
        self._blames.clear()
        self.evict.clear()

    def stop_reason(self) -> str:
        return next((one.stop for _, one in sorted(self.offers.items()) if one.stop), "")

    def durable_round(self, state: LogState) -> int:
        """The highest round that a majority of the view has on disk."""
        rounds = sorted(
            (self.offers[peer].durable_round if peer in self.offers else 0)
            for peer in state.view.members
        )
        held = rounds[len(rounds) - state.view.majority]
        return max(min(held, state.round), state.durable_round)

    # -------------------------------------------------------------- driving

    def drive(self, state: LogState, reachable: set[PeerId]) -> RoundEntry | RollbackEntry | None:
        """Do what is due; returns what is to be proposed now, if anything."""
        if state.stop or state.root == b"":
            return None
        attempt = self.attempt
        if attempt is not None:
            return self._watch(state, attempt, reachable)
        members = state.view.members
        back = self._rollback(state)
        if back is not None:
            return back
        missing = [peer for peer in members if not self._ready(state, peer)]
        if missing:
            self._hurry(state, missing)
        elif self.ctx.now >= self._retry_at and all(
            peer in reachable and (peer == self.ctx.me or self.membership.state(peer) == ALIVE)
            for peer in members
        ):
            self._start(state)
        return None

    def next_timer(self) -> float:
        if self.attempt is not None:
            return self.attempt.started_at + self.ctx.config.reduce_timeout_s
        return self._retry_at if self._retry_at else float("inf")

    def due(self) -> bool:
        """Whether a timer of ours has run out; a pause before the next attempt ends with it."""
        if self.attempt is not None:
            return self.ctx.now >= self.next_timer()
        over = 0.0 < self._retry_at <= self.ctx.now
        if over:
            self._retry_at = 0.0
        return over

    def _ready(self, state: LogState, peer: PeerId) -> bool:
        offer = self.offers.get(peer)
        return offer is not None and offer.ready and self.current(state, offer)

    @staticmethod
    def current(state: LogState, offer: Offer) -> bool:
        """Whether an offer is for the round that is due: no work counts for another (I6)."""
        return offer.round == state.round + 1

    def _start(self, state: LogState) -> None:
        self._retry_at = 0.0
        members = state.view.members
        contributions = []
        for peer in members:
            offer = self.offers[peer]
            one = Contribution(peer=peer, tokens=offer.tokens, leases=offer.leases)
            if state.ledger.allows(one):
                contributions.append(one)
            else:
                says = (
                    f"{self.ctx.called(peer)} used samples that are not leased to it: not counted."
                )
                self.ctx.fault("bad-lease", peer, says)
        # Unique among rival coordinators of this view, and above whatever anybody has seen.
        size = len(members)
        turn = self._attempt_seen // size + (1 if self._attempt_seen else 0)
        number = turn * size + members.index(self.ctx.me) + 1
        while number <= self._attempt_seen:
            number += size
        self._attempt_seen = number
        self.attempt = _Attempt(
            number, state.round + 1, members, tuple(contributions), self.ctx.now
        )
        self.ctx.send_all(
            members,
            Start(
                state.view.lineage,
                state.slot,
                state.round + 1,
                number,
                members,
                tuple(contributions),
            ),
        )

    def _watch(
        self, state: LogState, attempt: _Attempt, reachable: set[PeerId]
    ) -> RoundEntry | None:
        if attempt.entry is not None:
            return attempt.entry
        lost = [peer for peer in attempt.participants if peer not in reachable]
        if lost:
            self.abort(f"{self.ctx.called(lost[0])} is gone")
        elif self.ctx.now >= attempt.started_at + self.ctx.config.reduce_timeout_s:
            for peer in attempt.participants:
                if peer not in attempt.roots:
                    self._blames[peer] += 1
            self._fail("the attempt took too long")
        return None

    def abort(self, says: str) -> None:
        """Call the running attempt off everywhere."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            msg = Abort(self.replica.lineage, attempt.round, attempt.number, says[:1000])
            self.ctx.send_all(attempt.participants, msg)
            self.ctx.dirty = True

    def _fail(self, says: str) -> None:
        self.abort(says)
        self._failures += 1
        wait_s = self.ctx.config.retry_s * min(2**self._failures, 16)
        self._retry_at = self.ctx.now + self.ctx.jitter(wait_s)
        worst = self._blames.most_common(1)
        if worst and worst[0][1] >= BLAMES:
            self.evict[worst[0][0]] = f"{BLAMES} attempts failed because of it ({says})"

    # -------------------------------------------------------------- outcomes

    def on_result(self, peer: PeerId, msg: Result) -> None:
        attempt = self._attempt_of(peer, msg.lineage, msg.round, msg.attempt)
        state = self.replica.state
        if attempt is None or state is None:
            return
        attempt.roots[peer] = msg.root
        if len(attempt.roots) < len(attempt.participants):
            return
        self.ctx.dirty = True
        root, votes = Counter(attempt.roots.values()).most_common(1)[0]
        if 2 * votes <= len(attempt.participants):
            if self._failures >= 2:
                says = f"No majority of members agrees on the result of round {attempt.round}."
                self.ctx.fault("divergence", None, says)
            self._fail("the members' results differ")
            return
        attempt.entry = RoundEntry(
            round=attempt.round,
            attempt=attempt.number,
            contributions=attempt.contributions,
            state_root=root,
            durable_round=self.durable_round(state),
            stop=self.stop_reason(),
        )

    def on_failed(self, peer: PeerId, msg: Failed) -> None:
        self._attempt_seen = max(self._attempt_seen, msg.attempt_seen)
        attempt = self._attempt_of(peer, msg.lineage, msg.round, msg.attempt)
        if attempt is not None:
            if msg.suspect is not None:
                self._blames[msg.suspect] += 1
            self._fail(f"{self.ctx.called(peer)}: {msg.says}")

    def _attempt_of(self, peer: PeerId, lineage: str, number: int, attempt: int) -> _Attempt | None:
        mine = self.attempt
        if mine is None or lineage != self.replica.lineage or peer not in mine.participants:
            return None
        return mine if (mine.round, mine.number) == (number, attempt) else None

    # -------------------------------------------------------------- waiting for some

    def _hurry(self, state: LogState, missing: list[PeerId]) -> None:
        now, members = self.ctx.now, state.view.members
        ready = len(members) - len(missing)
        if 2 * ready >= len(members):
            self._half_at = self._half_at or now
        new = {peer for peer in members if state.entry_of(peer)[1] == state.round > 0}
        grace_s = self.ctx.config.straggler_grace * ((self._half_at or now) - self._since)
        late = self._half_at is not None and now > self._half_at + max(MIN_GRACE_S, grace_s)
        if (ready and set(missing) <= new) or late:
            hurried = [peer for peer in missing if peer not in self._closed]
            self._closed |= set(hurried)
            self.ctx.send_all(hurried, Close(state.view.lineage, state.round + 1))
        patience_s = self.ctx.config.hung_after_s
        if self._half_at is not None and now > self._half_at + patience_s:
            hung = [
                peer
                for peer in missing
                if peer in self._stuck or self.membership.stalled_s(peer) > patience_s
            ]
            if hung == missing:
                for peer in hung:
                    self.evict[peer] = f"no progress for {patience_s:.0f} s while all others wait"

    def unlinked(self, state: LogState) -> None:
        """Evict whoever most members have had no link to for too long."""
        long_ago = self.ctx.now - UNLINKED_S
        pairs = [pair for pair, at in self._unlinked.items() if at <= long_ago]
        count = Counter(peer for pair in pairs for peer in pair)
        if count:
            members = state.view.members
            inside = [peer for peer in count if peer in members]
            if inside:
                worst = max(inside, key=lambda peer: (count[peer], members.index(peer)))
                self.evict.setdefault(worst, "other members cannot link to it")

    def _rollback(self, state: LogState) -> RollbackEntry | None:
        """Nobody holds the last committed state any more: back to the newest that somebody does."""
        best: tuple[int, bytes] = (-1, b"")
        known = {(one.round, one.root) for one in state.history}
        for peer in state.view.members:
            offer = self.offers.get(peer)
            if offer is None or not offer.held_known or offer.slot != state.slot:
                return None
            held = (offer.held_round, offer.held_root)
            if held == (state.round, state.root):
                return None
            if held in known:
                best = max(best, held)
        return None if best[0] < 0 else RollbackEntry(round=best[0], state_root=best[1])
