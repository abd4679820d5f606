"""What the coordinator does about the rounds of one tag: collect, freeze, start, compare, propose.

    collecting ──▶ all have offered, or K and the ──▶ attempt ──▶ all roots equal ──▶ RoundEntry
        ▲  │       grace window is over                │  │        └─ majority root: the same,
        │  └─ only stragglers missing: CloseRound      │  │           the odd ones fetch
        │     only the hung missing: evict them        │  └─ none: next attempt
        └───────── Abort ◀── failure, death, timeout ──┘

Nothing here is durable: a new coordinator collects afresh, and members refuse attempt numbers
that they have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from math import inf

from decentral.peer.context import Context
from decentral.peer.evictions import Evictions
from decentral.peer.fields import HEARSAY, no_leap
from decentral.peer.member import ALIVE
from decentral.peer.membership import Membership
from decentral.peer.messages import Abort, Close, Failed, Offer, Result, Start
from decentral.peer.patience import Patience
from decentral.peer.protocol import RollbackEntry, RoundEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState
from decentral.types import Contribution, PeerId

HELD_UP_S = 1.0
"""An attempt that lasts so long is looked at: does it wait for somebody who may be dead?"""
CUT_AGAIN_S = 0.25
"""While two wait for their link, whom to do without is looked at so often."""
SUSPECTS = 2
"""Whoever so many attempts at a round have failed because of is left out of the next one."""
BLAMES = 3
"""After so many it goes; also after being left out of so many rounds in a row."""
NOBODY_HOLDS = "nobody holds a later one any more"
"""Why a run goes back that nobody has asked to."""


@dataclass(slots=True)
class _Attempt:
    number: int
    round: int
    participants: tuple[PeerId, ...]
    contributions: tuple[Contribution, ...]
    started_at: float
    roots: dict[PeerId, bytes] = field(default_factory=dict)
    entry: RoundEntry | None = None
    looked_at: bool = False
    """After `HELD_UP_S`."""


class Coordinator:
    def __init__(
        self,
        ctx: Context,
        replica: Replica,
        membership: Membership,
        evictions: Evictions,
        tag: str,
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.membership = membership
        self.evictions = evictions
        self.tag = tag
        self.offers: dict[PeerId, Offer] = {}
        self._idle: set[PeerId] = set()
        """Whoever says that it takes no part in this tag."""
        self._due = -1
        self._ready: set[PeerId] = set()
        """Whose offers are work for round `_due`."""
        self.attempt: _Attempt | None = None
        self._attempt_seen = 0
        self._seen_here = 0
        """The same, of attempts that this peer has begun or seen itself."""
        self._failures = 0
        self._retry_at = 0.0
        self._blames: Counter[PeerId] = Counter()
        self._left_out: Counter[PeerId] = Counter()
        """Of how many rounds in a row, because of failed attempts."""
        self._patience = Patience(ctx, membership, evictions)

    # -------------------------------------------------------------- collecting

    def on_offer(self, peer: PeerId, msg: Offer) -> None:
        if msg.lineage != self.replica.lineage:
            return
        self._believe(peer, msg.attempt_seen)
        self.replica.in_step(peer, msg.lineage, msg.slot)
        self.offers[peer] = msg
        (self._idle.discard if msg.takes else self._idle.add)(peer)
        (self._ready.add if msg.ready and msg.round == self._due else self._ready.discard)(peer)
        self.evictions.heard(peer, msg.unlinked, msg.step_ms)
        self.ctx.dirty = True

    def _believe(self, peer: PeerId, attempt_seen: int) -> None:
        """Our next attempt needs a number above all that members have seen."""
        if not self.replica.counts(peer):
            return
        if peer == self.ctx.me:
            self._seen_here = max(self._seen_here, attempt_seen)
        else:
            no_leap(attempt_seen, self._seen_here, "attempt", HEARSAY)
        self._attempt_seen = max(self._attempt_seen, attempt_seen)

    def forget(self, peer: PeerId) -> None:
        """A new process of this peer, or none: what the old one offered is void."""
        self.offers.pop(peer, None)
        self._idle.discard(peer)
        self._ready.discard(peer)

    def new_round(self) -> None:
        done = self.attempt.participants if self.attempt is not None else tuple(self._blames)
        blamed = [peer for peer in self._blames if self._suspect(peer) and peer not in done]
        self._left_out = Counter({peer: self._left_out[peer] + 1 for peer in blamed})
        # It may try again, once.
        self._blames = Counter(dict.fromkeys(blamed, SUSPECTS - 1))
        self.attempt = None
        self._attempt_seen = self._seen_here = self._failures = 0
        self._retry_at = 0.0
        self._patience.new_round()

    def new_view(self, members: tuple[PeerId, ...]) -> None:
        self.attempt = None
        self._retry_at = 0.0
        for peer in self.offers.keys() - set(members):
            self.forget(peer)
        self._blames.clear()

    def stop_reason(self) -> str:
        return next((one.stop for _, one in sorted(self.offers.items()) if one.stop), "")

    def durable_round(self, state: LogState) -> int:
        """The highest round that a majority of those who take part has on disk."""
        scope = state.scope(self.tag)
        rounds = sorted(
            self.offers[peer].durable_round if peer in self.offers else 0
            for peer in self._takers(state)
        )
        held = rounds[len(rounds) - (len(rounds) // 2 + 1)] if rounds else 0
        return max(min(held, scope.round), scope.durable_round)

    def kept(self, state: LogState, number: int) -> bool:
        """Whether some member's disk can give the state of that round back."""
        offers = (self.offers.get(peer) for peer in state.view.members)
        return any(
            one is not None and (number in one.kept or one.held_round == number) for one in offers
        )

    def _takers(self, state: LogState) -> Sequence[PeerId]:
        """Members that take part in this tag, as far as they have said."""
        members = state.view.members
        return [peer for peer in members if peer not in self._idle] if self._idle else members

    def _with_work(self, state: LogState) -> set[PeerId]:
        """Whoever has work for the round that is due: no work counts for another (I6)."""
        due = state.scope(self.tag).round + 1
        if due != self._due:
            self._due = due
            self._ready = {p for p, one in self.offers.items() if one.ready and one.round == due}
        return self._ready

    # -------------------------------------------------------------- driving

    def drive(self, state: LogState, reachable: Set[PeerId]) -> RoundEntry | RollbackEntry | None:
        """Do what is due; returns what is to be proposed now, if anything."""
        if state.stop or not state.founded:
            return None
        self._patience.look()
        attempt = self.attempt
        if attempt is not None:
            return self._watch(state, attempt, reachable)
        back = self._rollback(state)
        if back is not None or state.paused:
            return back
        takers, work = self._takers(state), self._with_work(state)
        there = [peer for peer in takers if self._heard(peer, reachable)]
        if not self._can_commit(state, there, reachable):
            there = list(takers)  # without those in doubt nothing could be committed
        # Nor does it wait for the few who cannot reduce now: what they have is counted in the next.
        trusted = [peer for peer in there if not self._suspect(peer)]
        new = self._newcomers(state)
        able, cut = self.evictions.linked(trusted, new)
        if 2 * len(able) > len(takers) and self._can_commit(state, able, reachable):
            there = able
        else:
            able, cut = self.evictions.linked(there, new)
            cut |= set(there) - set(able)
        if cut:
            self._patience.come(self.ctx.now + CUT_AGAIN_S)
        ready = [peer for peer in there if peer in work and peer not in cut]
        missing = [peer for peer in there if peer not in work or peer in cut]
        if self.ctx.config.copies:
            begins = self._worked_out(state, ready)
        else:
            begins = self._patience.over(ready, missing, new)
            if not begins:
                close = Close(state.view.lineage, self.tag, state.scope(self.tag).round + 1)
                self.ctx.send_all(self._patience.to_hurry(ready, missing, new), close)
        if (
            begins
            and ready
            and self._patience.come(self._retry_at)
            and all(self._heard(peer, reachable) for peer in ready)
        ):
            self._start(state, tuple(ready))
        return None

    def _heard(self, peer: PeerId, reachable: Set[PeerId]) -> bool:
        """Nobody doubts that it lives. Whoever is doubted is still a member and may be back in a
        moment, but a round does not wait for that: its work is counted in the next one."""
        return peer == self.ctx.me or (peer in reachable and self.membership.state(peer) == ALIVE)

    def _suspect(self, peer: PeerId) -> bool:
        return self._blames[peer] >= SUSPECTS

    def _newcomers(self, state: LogState) -> set[PeerId]:
        """Who entered after the last round, and has no full round's work to show yet."""
        slot = state.scope(self.tag).slot
        return {peer for peer, entered in state.entered if entered >= slot > 0}

    def _can_commit(self, state: LogState, heard: list[PeerId], reachable: Set[PeerId]) -> bool:
        """Whether a round of these could be voted through: by those who do not take part, too."""
        if len(heard) >= state.view.majority:
            return True
        votes = sum(self._heard(peer, reachable) for peer in state.view.members)
        return bool(heard) and votes >= state.view.majority

    def _worked_out(self, state: LogState, ready: list[PeerId]) -> bool:
        """Whether somebody has the round's result, and enough are there to keep it."""
        copies = min(self.ctx.config.copies, len(state.view.members))
        return len(ready) >= copies and any(self.offers[peer].tokens for peer in ready)

    def next_timer(self) -> float:
        attempt = self.attempt
        if attempt is not None:
            patience_s = self.ctx.config.reduce_timeout_s if attempt.looked_at else HELD_UP_S
            return attempt.started_at + patience_s
        return self._patience.look_at

    def due(self) -> bool:
        """Whether a timer of ours has run out; it does so once."""
        over = self.ctx.now >= self.next_timer()
        if over:
            self._patience.look_at = inf
        return over

    def closing(self, state: LogState) -> bool:
        """Whether half of those who have been in since its begin have contributed to the round."""
        if state.paused:
            return False
        takers, begun = self._takers(state), state.scope(self.tag).slot
        entered = dict(state.entered)
        there = [peer for peer in takers if entered[peer] < begun] or takers
        ready = self._with_work(state).intersection(there)
        return bool(there) and 2 * len(ready) >= len(there)

    def _start(self, state: LogState, participants: tuple[PeerId, ...]) -> None:
        self._retry_at = 0.0
        contributions = []
        for peer in participants:
            offer = self.offers[peer]
            one = Contribution(
                peer=peer,
                tokens=offer.tokens,
                leases=offer.leases,
                staleness=offer.staleness,
                steps=offer.steps,
            )
            if state.ledger.allows(one):
                contributions.append(one)
            else:
                says = (
                    f"{self.ctx.called(peer)} used samples that are not leased to it: not counted."
                )
                self.ctx.fault("bad-lease", peer, says)
        # Unique among rival coordinators of this view, and above whatever anybody has seen.
        members, due = state.view.members, state.scope(self.tag).round + 1
        size = len(members)
        turn = self._attempt_seen // size + (1 if self._attempt_seen else 0)
        number = turn * size + members.index(self.ctx.me) + 1
        while number <= self._attempt_seen:
            number += size
        self._attempt_seen = self._seen_here = number
        who = (participants, tuple(contributions))
        self.attempt = _Attempt(number, due, *who, self.ctx.now)
        start = Start(state.view.lineage, state.slot, self.tag, due, number, *who)
        self.ctx.send_all(participants, start)

    def _watch(
        self, state: LogState, attempt: _Attempt, reachable: Set[PeerId]
    ) -> RoundEntry | None:
        if attempt.entry is not None:
            return attempt.entry
        lost = [peer for peer in attempt.participants if peer not in reachable]
        if lost:
            self.abort(f"{self.ctx.called(lost[0])} is gone")
        elif self._held_up(state, attempt, reachable):
            self._fail("a participant has not been heard of for a while")
        elif self.ctx.now >= attempt.started_at + self.ctx.config.reduce_timeout_s:
            for peer in attempt.participants:
                if peer not in attempt.roots:
                    self._blames[peer] += 1
            self._fail("the attempt took too long")
        return None

    def _held_up(self, state: LogState, attempt: _Attempt, reachable: Set[PeerId]) -> bool:
        """Whether it waits for somebody in doubt, and the others could do without."""
        if self.ctx.now < attempt.started_at + HELD_UP_S:
            return False
        attempt.looked_at = True
        heard = [peer for peer in attempt.participants if self._heard(peer, reachable)]
        silent = [peer for peer in attempt.participants if peer not in heard]
        return self._can_commit(state, heard, reachable) and any(
            peer not in attempt.roots for peer in silent
        )

    def abort(self, says: str) -> None:
        """Call the running attempt off everywhere."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            lineage = self.replica.lineage
            msg = Abort(lineage, self.tag, attempt.round, attempt.number, says[:1000])
            self.ctx.send_all(attempt.participants, msg)
            self.ctx.dirty = True

    def _fail(self, says: str) -> None:
        self.abort(says)
        self._failures += 1
        wait_s = self.ctx.config.retry_s * min(2 ** max(0, self._failures - 2), 16)
        self._retry_at = self.ctx.now + self.ctx.jitter(wait_s)
        for worst, times in self._blames.most_common(1):
            again = self._suspect(worst) and self._left_out[worst] >= BLAMES - 1
            if times >= BLAMES or again:
                self.evictions.due[worst] = f"attempts fail because of it ({says})"

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
            tag=self.tag,
        )

    def on_failed(self, peer: PeerId, msg: Failed) -> None:
        self._believe(peer, msg.attempt_seen)
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

    # -------------------------------------------------------------- a state that nobody holds

    def _rollback(self, state: LogState) -> RollbackEntry | None:
        """Nobody holds the last committed state any more: back to the newest that somebody does.

        Not where states are kept on leases: whoever has it may be about to take part again, and
        what others made from it cannot be taken back."""
        if self.ctx.config.copies:
            return None
        best: tuple[int, bytes] = (-1, b"")
        scope = state.scope(self.tag)
        for peer in self._takers(state):
            offer = self.offers.get(peer)
            if offer is None or not offer.held_known or offer.round != scope.round + 1:
                return None
            held = (offer.held_round, offer.held_root)
            if held == (scope.round, scope.root):
                return None
            if scope.committed(*held):
                best = max(best, held)
        if best[0] < 0:
            return None
        return RollbackEntry(round=best[0], state_root=best[1], tag=self.tag, reason=NOBODY_HOLDS)
