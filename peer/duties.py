"""What the state of things calls for, asked anew after every event that may have changed it.

    not a member ──▶ take a step towards joining
    a member     ──▶ offer work, fetch missing state, watch the quorum
    coordinator  ──▶ finish what was begun; else change the view; else drive the round

The coordinator is the first living member in rank order, by each peer's own opinion. A peer whose
coordinator leaves something undone acts in its place after a while; ballots settle the rivalry.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from decentral.peer.acceptor import NO_BALLOT
from decentral.peer.dialing import LOOK_AT
from decentral.peer.member import DEAD
from decentral.peer.messages import Learned, LeaveRequest, Stuck
from decentral.peer.protocol import Entry, Left, PauseEntry, RollbackEntry, ViewEntry
from decentral.peer.views_log import LogState, changes
from decentral.types import PeerId, View

if TYPE_CHECKING:
    from decentral.peer.core import PeerCore

UNTOLD_S = 3.0
"""A member that says it is none gets this long to learn that it is one."""
FAREWELL_S = 2.0
"""A leaver waits this long for the others to know before it goes."""
MIN_BATCH = 4
"""So many newcomers may always enter together."""
BATCH_S = 4.0
"""Newcomers enter once in a round, or after so long: a stream of them makes few views."""
REVIEW_S = 0.25
IDLE_S = 2.0
HELD_UP_AGAIN_S = 0.05
MEET_S = 2.0
LONELY_S = 5.0
"""A member without any link dials all whom it has ever known, so often."""


class Duties:
    def __init__(self, core: PeerCore) -> None:
        self.core = core
        self.ctx = core.ctx
        self.leaving: dict[PeerId, int] = {}
        """Members that want to leave, and which start of theirs does."""
        self._leave_reason = ""
        self._goodbye: tuple[str, float] | None = None
        self._leave_since = 0.0
        self._left = False
        self._learned: set[PeerId] = set()
        self._remaining: tuple[PeerId, ...] = ()
        self._entered_at: dict[PeerId, float] = {}
        self._due_since: float | None = None
        self._due_wait_s = 0.0
        self._unlinked_at: dict[PeerId, float] = {}
        self._stuck_said: set[PeerId] = set()
        self._stuck_at = 0.0
        self._review_at = 0.0
        self._looked_at = -1
        """The `standings` of which these four were found:"""
        self._reachable: frozenset[PeerId] = frozenset()
        self._wanted: tuple[PeerId, ...] = ()
        self._unlinked: tuple[PeerId, ...] = ()
        self._any_dead = False
        self._first: PeerId | None = None
        self._meet_at = 0.0
        self._let_in: tuple[tuple[str, int], ...] = ()
        self._let_in_at = 0.0
        self._makes_room = False
        """Newcomers have waited long enough for a moment without a round: none begins."""
        self._rounds_at = float("inf")
        """When the rounds that we coordinate are to be looked at."""
        self._afoot = True
        """Something is waited for: look again soon."""

    # -------------------------------------------------------------- who is there

    def reachable(self) -> frozenset[PeerId]:
        """Members of the view that can take part in a decision now, ourselves among them."""
        if self._looked_at != self.ctx.standings:
            self._looked_at = self.ctx.standings
            self._look_around()
        return self._reachable

    def _look_around(self) -> None:
        state, membership = self.core.replica.state, self.core.membership
        if state is None:
            self._reachable, self._first, self._any_dead = frozenset(), None, False
            return
        members = state.view.members
        self._wanted = membership.links_wanted(members)
        self._unlinked = tuple(peer for peer in self._wanted if peer not in self.ctx.links)
        inside = self.ctx.inside.get(state.view.lineage, {})
        away = frozenset(self._wanted).difference(inside)
        living = membership.living(members)
        self._reachable = living - away
        self._first = next((peer for peer in members if peer in self._reachable), None)
        self._any_dead = len(living) < len(members)

    def coordinator(self) -> PeerId | None:
        if not self.core.replica.member:
            return None
        self.reachable()
        return self._first

    def acting(self) -> bool:
        """Whether we do the coordinator's work, being it or in doubt of it."""
        if not self.core.replica.member:
            return False
        return self.coordinator() == self.ctx.me or self._doubting()

    def _doubting(self) -> bool:
        return self._due_since is not None and self.ctx.now >= self._due_since + self._due_wait_s

    def _gone(self, peer: PeerId) -> bool:
        """It lives, but not as a member of ours: a wiped disk, or it went over to others."""
        peering = self.ctx.links.get(peer)
        if peering is None or peering.hello is None:
            return False
        if peering.hello.member and peering.hello.lineage == self.core.replica.lineage:
            return False
        since = max(peering.hello_at, self._entered_at.get(peer, 0.0))
        return self.ctx.now - since > UNTOLD_S

    # -------------------------------------------------------------- after every event

    def run(self) -> None:
        self._do_what_is_due()
        self._afoot = self._pending()
        self.ctx.acting = self.acting()
        at = min(one.next_timer() for one in self.core.coordination.values())
        # What is due and could not be done just now (a vote is under way, others coordinate) must
        # not keep this peer spinning.
        self._rounds_at = at if at > self.ctx.now else self.ctx.now + HELD_UP_AGAIN_S

    def _do_what_is_due(self) -> None:
        core, ctx = self.core, self.ctx
        state = core.replica.state
        if ctx.now >= self._review_at:
            self._review_at = ctx.now + ctx.jitter(REVIEW_S if self._pending() else IDLE_S)
        self._farewell()
        if self._left:
            return
        if not core.replica.member or state is None:
            core.forks.watch(set())
            if ctx.me in self.leaving:
                if self._goodbye is None:
                    self._go("left before it was a member")
            else:
                core.join.drive()
            return
        reachable = self.reachable()
        core.forks.watch(reachable)
        core.membership.want(self._unlinked, 2.0)
        self._note_unlinked(self._unlinked)
        for rounds in core.rounds.values():
            if not rounds.holds(state):
                rounds.fetch(state, tuple(p for p in self._wanted if p in reachable))
            rounds.offer(self._unlinked)
        core.wishes.drive(self.coordinator())
        self._say_stuck(state)
        self._meet_others(state)
        self._take_leave(state, reachable)
        self._note_due(state, reachable)
        if core.forks.lost_since is None and self.acting() and not core.views.busy():
            self._coordinate(state, reachable)

    def _coordinate(self, state: LogState, reachable: Set[PeerId]) -> None:
        core = self.core
        votes = core.replica.votes
        first = self.coordinator() == self.ctx.me
        if votes.accepted != NO_BALLOT and self._stale_vote():
            core.views.propose(None)
            return
        entry: Entry | None = self._next_view(state, reachable)
        if entry is not None:
            self._abort_all("the view is about to change")
            core.views.propose(entry)
        elif first:
            entry = self._wished(state) or self._drive_rounds(state, reachable)
            if entry is not None:
                core.views.propose(entry)

    def _wished(self, state: LogState) -> Entry | None:
        """What somebody has asked for, once it can be proposed."""
        entry = self.core.wishes.entry(state)
        if isinstance(entry, RollbackEntry):
            self._abort_all("the run is about to go back")
        elif isinstance(entry, PauseEntry) and entry.paused and self._attempting():
            return None  # what has begun may finish
        return entry

    def _drive_rounds(self, state: LogState, reachable: Set[PeerId]) -> Entry | None:
        pausing = self._makes_room or self.core.wishes.entry(state) is not None
        # One slot at a time: what another tag has ready too waits for the next one.
        steps = [
            one.drive(state, reachable)
            for one in self.core.coordination.values()
            if one.attempt is not None or not pausing
        ]
        return next((step for step in steps if step is not None), None)

    def _attempting(self) -> bool:
        return any(one.attempt is not None for one in self.core.coordination.values())

    def _reduces(self, peers: Set[PeerId]) -> bool:
        """Whether an attempt is under way that will fail because of one of these."""
        attempts = (one.attempt for one in self.core.coordination.values())
        return any(one is not None and not peers.isdisjoint(one.participants) for one in attempts)

    def _abort_all(self, says: str) -> None:
        for coordination in self.core.coordination.values():
            coordination.abort(says)

    def _stale_vote(self) -> bool:
        return self.ctx.now - self.core.replica.voted_at > self.ctx.config.election_s

    def _note_due(self, state: LogState, reachable: Set[PeerId]) -> None:
        """Is something undone that the coordinator should have done?"""
        core = self.core
        votes = core.replica.votes
        due = (
            self._any_dead
            or (votes.accepted != NO_BALLOT and self._stale_vote())
            or self.ctx.me in self.leaving
        )
        if not due:
            self._due_since = None
        elif self._due_since is None:
            rank = [peer for peer in state.view.members if peer in reachable].index(self.ctx.me)
            self._due_since = self.ctx.now
            self._due_wait_s = self.ctx.jitter(self.ctx.config.election_s * (1 + 2 * rank))

    def _next_view(self, state: LogState, reachable: Set[PeerId]) -> ViewEntry | None:
        """The view as it should be, if it is not."""
        core, me = self.core, self.ctx.me
        core.evictions.find_unlinked(state, reachable)
        if len(reachable) == len(state.view.members) and not (
            self.leaving or core.evictions.due or self._unlinked_at or core.join.anybody_ready()
        ):
            self._makes_room = False
            return None
        reasons: dict[PeerId, str] = {}
        for peer in state.view.members:
            if peer in self.leaving:
                reasons[peer] = "left"
            elif peer in core.evictions.due:
                reasons[peer] = core.evictions.due[peer]
            elif peer == me:
                continue
            elif core.membership.dead(peer):
                reasons[peer] = "died" if core.membership.state(peer) == DEAD else "left"
            elif self._gone(peer):
                reasons[peer] = "is no member any more"
            elif self.ctx.now - self._unlinked_at.get(peer, self.ctx.now) > 6.0:
                reasons[peer] = "cannot be linked"
        # In batches: whoever enters while a round closes holds it up, a stream of them for long.
        # And no more than doubles the view: each links to all others, at the same moment.
        joiners = core.join.newcomers(state)
        self._makes_room = core.join.kept_out(state, joiners)
        just_let_in = state.rounds() == self._let_in and self.ctx.now < self._let_in_at + BATCH_S
        if just_let_in and not self._makes_room:
            joiners = []
        if joiners and not self._makes_room:
            closing = {tag for tag, one in core.coordination.items() if one.closing(state)}
            joiners = [peer for peer in joiners if not closing & core.join.takes(peer)]
        joiners = joiners[: max(MIN_BATCH, len(state.view.members))]
        lost = {peer for peer, why in reasons.items() if why != "left"}
        if self._attempting() and not self._reduces(lost):
            return None
        kept = [peer for peer in state.view.members if peer not in reasons]
        members = tuple(kept + [peer for peer in joiners if peer not in self.leaving])
        if not members:
            members = (me,)
            reasons.pop(me, None)
        if members == state.view.members:
            return None
        says = [f"{self.ctx.called(peer)} {why}" for peer, why in reasons.items()]
        says += [f"{self.ctx.called(peer)} {core.join.how_it_comes(peer)}" for peer in joiners]
        view = View(lineage=state.view.lineage, epoch=state.view.epoch + 1, members=members)
        return ViewEntry(view=view, reason="; ".join(says)[:1000])

    def _note_unlinked(self, unlinked: tuple[PeerId, ...]) -> None:
        if not unlinked:
            self._unlinked_at.clear()
            return
        for peer in unlinked:
            self._unlinked_at.setdefault(peer, self.ctx.now)
        for peer in self._unlinked_at.keys() - set(unlinked):
            del self._unlinked_at[peer]

    def _say_stuck(self, state: LogState) -> None:
        """Report whoever shows no progress while our own work is done."""
        core = self.core
        if self.ctx.now < self._stuck_at:
            return
        self._stuck_at = self.ctx.now + IDLE_S
        idle = all(
            one.contribution is not None and one.running is None
            for one in core.rounds.values()
            if one.takes
        )
        to = self.coordinator()
        if not idle or to is None:
            return
        for peer in core.membership.links_wanted(state.view.members):
            if peer not in self._stuck_said and core.membership.stalled_s(
                peer
            ) > core.evictions.patience_s(peer):
                self._stuck_said.add(peer)
                self.ctx.send(to, Stuck(state.view.lineage, state.slot, peer))

    def _meet_others(self, state: LogState) -> None:
        """While two lineages touch, both keep comparing: the one that loses dissolves."""
        if self.ctx.now < self._meet_at:
            return
        self._meet_at = self.ctx.now + self.ctx.jitter(MEET_S)
        if not self.ctx.links:
            # Behind a NAT nobody can come to us: look whether those who left are back.
            met = list(self.core.membership.members)
            some = self.ctx.rng.sample(met, min(LOOK_AT, len(met)))
            self.core.membership.want((*state.view.members, *some), LONELY_S, left=True)
        for peer, peering in self.ctx.links.items():
            hello = peering.hello
            if hello is not None and hello.member and hello.lineage != state.view.lineage:
                self.ctx.send(peer, self.core.greeting.standing())
                self.core.join.meet(peer, hello)

    # -------------------------------------------------------------- leaving

    def leave(self, reason: str) -> None:
        if self.ctx.me not in self.leaving:
            self.leaving[self.ctx.me] = self.ctx.boot_seq
            self._leave_reason = reason[:1000]
            self._leave_since = self.ctx.now
            self.ctx.send_all(sorted(self.ctx.links), LeaveRequest(self._leave_reason))
            for rounds in self.core.rounds.values():
                rounds.give_up("this peer leaves")
            self.ctx.dirty = True

    def on_leave_request(self, peer: PeerId, msg: LeaveRequest) -> None:
        state, peering = self.core.replica.state, self.ctx.links.get(peer)
        hello = peering.hello if peering is not None else None
        if hello is not None and state is not None and peer in state.view.members:
            self.leaving[peer] = hello.boot_seq
            self.ctx.dirty = True

    def greet(self, peer: PeerId) -> None:
        """A new link: what its other end asked for before is void, what we ask for is not."""
        self.leaving.pop(peer, None)
        if self.ctx.me in self.leaving:
            self.ctx.send(peer, LeaveRequest(self._leave_reason))

    def _take_leave(self, state: LogState, reachable: Set[PeerId]) -> None:
        if self.ctx.me not in self.leaving:
            return
        if state.view.members == (self.ctx.me,):
            self._go("left as the last member; the run can go on from this peer's disk")
        elif len(reachable) < state.view.majority and self.ctx.now - self._leave_since > FAREWELL_S:
            self._go("left without agreement: a majority of the members cannot be reached")

    def _go(self, says: str) -> None:
        if not self._left:
            self._left = True
            self.ctx.out.append(Left(says))

    def on_learned(self, peer: PeerId, msg: Learned) -> None:
        if self._goodbye is not None and msg.slot >= self.core.replica.slot:
            self._learned.add(peer)
            self._farewell()

    def _farewell(self) -> None:
        """Go once a majority of those who stay know that we have left."""
        if self._goodbye is None:
            return
        says, until = self._goodbye
        known = len(self._learned & set(self._remaining))
        if known >= len(self._remaining) // 2 + 1 or self.ctx.now >= until:
            self._goodbye = None
            self._go(says)

    # -------------------------------------------------------------- the log moved

    def moved(self) -> None:
        self._due_since = None
        self._stuck_said.clear()

    def view_changed(self, slot: int, before: LogState, after: LogState) -> None:
        core, me = self.core, self.ctx.me
        came, gone = changes(before.view, after.view)
        core.membership.vouched(came)
        core.join.quarantine.entered(came, self.ctx.now)
        for peer in came:
            self._entered_at[peer] = self.ctx.now
        if came:
            self._let_in, self._let_in_at = after.rounds(), self.ctx.now
        for peer in gone:
            if peer == me:
                continue
            core.join.quarantine.removed(peer, self.ctx.now, clean=peer in self.leaving)
            if peer in self.leaving:
                core.membership.left(peer, self.leaving[peer])
                self.ctx.fault("peer-left", peer, f"{self.ctx.called(peer)} has left.")
                del self.leaving[peer]
        others = [peer for peer in gone if peer != me]
        self.ctx.send_all(others, Learned(after.view.lineage, after.slot))
        if me in gone:
            if me in self.leaving:
                self._remaining = after.view.members
                self._goodbye = ("left", self.ctx.now + FAREWELL_S)
            else:
                core.join.left_behind("the others went on without this peer")

    # -------------------------------------------------------------- time

    def next_timer(self) -> float:
        """Most waiting is done by looking again after a while, soon if something is afoot; else
        together with a probe, which is due soon anyway."""
        if self._afoot or self.core.replica.votes.accepted != NO_BALLOT:
            self._review_at = min(self._review_at, self.ctx.now + REVIEW_S)
            return min(self._review_at, self._rounds_at)
        return self._rounds_at

    def due(self) -> bool:
        return self.ctx.now >= min(self._review_at, self._rounds_at)

    def _pending(self) -> bool:
        core = self.core
        state = core.replica.state
        return (
            state is None
            or not core.replica.member
            or self._any_dead
            or bool(self._unlinked_at)
            or bool(self.leaving)
            or core.replica.votes.accepted != NO_BALLOT
            or len(self._reachable) != len(state.view.members)
            or bool(core.evictions.due)
        )
