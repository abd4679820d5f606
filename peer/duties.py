"""What the state of things calls for, asked anew after every event that may have changed it.

    not a member ──▶ take a step towards joining
    a member     ──▶ offer work, fetch missing state, watch the quorum
    coordinator  ──▶ finish what was begun; else change the view; else drive the round

The coordinator is the first living member in rank order, by each peer's own opinion. A peer whose
coordinator leaves something undone acts in its place after a while; ballots settle the rivalry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.peer.acceptor import NO_BALLOT
from decentral.peer.member import DEAD
from decentral.peer.messages import Learned, LeaveRequest, Stuck
from decentral.peer.protocol import Left, ViewEntry
from decentral.peer.views_log import LogState
from decentral.types import PeerId, View

if TYPE_CHECKING:
    from decentral.peer.core import PeerCore

UNTOLD_S = 3.0
"""A member that says it is none gets this long to learn that it is one."""
FAREWELL_S = 2.0
"""A leaver waits this long for the others to know before it goes."""
REVIEW_S = 0.25
IDLE_S = 1.0
MEET_S = 2.0


class Duties:
    def __init__(self, core: PeerCore) -> None:
        self.core = core
        self.ctx = core.ctx
        self.leaving: dict[PeerId, str] = {}
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
        self._review_at = 0.0
        self._reachable: set[PeerId] = set()
        self._any_dead = False
        self._reachable_at = -1
        self._first: PeerId | None = None
        self._meet_at = 0.0

    # -------------------------------------------------------------- who is there

    def reachable(self) -> set[PeerId]:
        """Members of the view that can take part in a decision now, ourselves among them."""
        if self._reachable_at == self.ctx.standings:
            return self._reachable
        self._reachable_at = self.ctx.standings
        self._reachable = self._find_reachable()
        members = self.core.replica.state.view.members if self.core.replica.state else ()
        self._first = next((peer for peer in members if peer in self._reachable), None)
        self._any_dead = any(self.core.membership.dead(peer) for peer in members)
        return self._reachable

    def _find_reachable(self) -> set[PeerId]:
        core = self.core
        state = core.replica.state
        if state is None:
            return set()
        found = set()
        for peer in state.view.members:
            if peer == self.ctx.me:
                found.add(peer)
                continue
            peering = self.ctx.links.get(peer)
            hello = peering.hello if peering is not None else None
            if (
                hello is not None
                and hello.member
                and hello.lineage == state.view.lineage
                and not core.membership.dead(peer)
            ):
                found.add(peer)
        return found

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
        """It lives, but as no member any more: a wiped disk, or it went over to others."""
        peering = self.ctx.links.get(peer)
        if peering is None or peering.hello is None or peering.hello.member:
            return False
        since = max(peering.hello_at, self._entered_at.get(peer, 0.0))
        return self.ctx.now - since > UNTOLD_S

    # -------------------------------------------------------------- after every event

    def run(self) -> None:
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
        others = [peer for peer in state.view.members if peer != ctx.me]
        unlinked = tuple(peer for peer in others if peer not in ctx.links)
        core.membership.want(unlinked, 2.0)
        self._note_unlinked(unlinked)
        core.rounds.fetch(state, tuple(p for p in others if p in reachable))
        core.rounds.offer(unlinked)
        self._say_stuck(state)
        self._meet_others(state)
        self._take_leave(state, reachable)
        self._note_due(state, reachable)
        if core.forks.lost_since is None and self.acting() and not core.views.busy():
            self._coordinate(state, reachable)

    def _coordinate(self, state: LogState, reachable: set[PeerId]) -> None:
        core = self.core
        votes = core.replica.votes
        first = self.coordinator() == self.ctx.me
        if votes.accepted != NO_BALLOT and self._stale_vote():
            core.views.propose(None)
            return
        entry = self._next_view(state, reachable)
        if entry is not None:
            core.coordination.abort("the view is about to change")
            core.views.propose(entry)
        elif first:
            step = core.coordination.drive(state, reachable)
            if step is not None:
                core.views.propose(step)

    def _stale_vote(self) -> bool:
        return self.ctx.now - self.core.replica.voted_at > self.ctx.config.election_s

    def _note_due(self, state: LogState, reachable: set[PeerId]) -> None:
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

    def _next_view(self, state: LogState, reachable: set[PeerId]) -> ViewEntry | None:
        """The view as it should be, if it is not."""
        core, me = self.core, self.ctx.me
        core.coordination.unlinked(state)
        reasons: dict[PeerId, str] = {}
        for peer in state.view.members:
            if peer in self.leaving:
                reasons[peer] = "left"
            elif peer in core.coordination.evict:
                reasons[peer] = core.coordination.evict[peer]
            elif peer == me:
                continue
            elif core.membership.dead(peer):
                reasons[peer] = "died" if core.membership.state(peer) == DEAD else "left"
            elif self._gone(peer):
                reasons[peer] = "is no member any more"
            elif self.ctx.now - self._unlinked_at.get(peer, self.ctx.now) > 6.0:
                reasons[peer] = "cannot be linked"
        joiners = core.join.newcomers(state)
        urgent = any(why != "left" for why in reasons.values())
        if core.coordination.attempt is not None and not urgent:
            return None
        kept = [peer for peer in state.view.members if peer not in reasons]
        members = tuple(kept + [peer for peer in joiners if peer not in self.leaving])
        if not members:
            members = (me,)
            reasons.pop(me, None)
        if members == state.view.members:
            return None
        says = [f"{self.ctx.called(peer)} {why}" for peer, why in reasons.items()]
        says += [f"{self.ctx.called(peer)} joins" for peer in joiners]
        view = View(lineage=state.view.lineage, epoch=state.view.epoch + 1, members=members)
        return ViewEntry(view=view, reason="; ".join(says)[:1000])

    def _note_unlinked(self, unlinked: tuple[PeerId, ...]) -> None:
        for peer in unlinked:
            self._unlinked_at.setdefault(peer, self.ctx.now)
        for peer in [one for one in self._unlinked_at if one not in unlinked]:
            del self._unlinked_at[peer]

    def _say_stuck(self, state: LogState) -> None:
        """Report whoever shows no progress while our own work is done."""
        core = self.core
        if core.rounds.contribution is None or core.rounds.running is not None:
            return
        to = self.coordinator()
        if to is None:
            return
        for peer in state.view.members:
            if (
                peer not in self._stuck_said
                and peer != self.ctx.me
                and core.membership.stalled_s(peer) > self.ctx.config.hung_after_s
            ):
                self._stuck_said.add(peer)
                self.ctx.send(to, Stuck(state.view.lineage, state.round, peer))

    def _meet_others(self, state: LogState) -> None:
        """While two lineages touch, both keep comparing: the one that loses dissolves."""
        if self.ctx.now < self._meet_at:
            return
        self._meet_at = self.ctx.now + self.ctx.jitter(MEET_S)
        for peer, peering in self.ctx.links.items():
            hello = peering.hello
            if hello is not None and hello.member and hello.lineage != state.view.lineage:
                self.ctx.send(peer, self.core.greeting.standing())
                self.core.join.meet(peer, hello)

    # -------------------------------------------------------------- leaving

    def leave(self, reason: str) -> None:
        if self.ctx.me not in self.leaving:
            self.leaving[self.ctx.me] = reason
            self._leave_since = self.ctx.now
            self.ctx.send_all(sorted(self.ctx.links), LeaveRequest(reason[:1000]))
            self.ctx.dirty = True

    def on_leave_request(self, peer: PeerId, msg: LeaveRequest) -> None:
        state = self.core.replica.state
        if state is not None and peer in state.view.members:
            self.leaving[peer] = msg.reason
            self.ctx.dirty = True

    def greet(self, peer: PeerId) -> None:
        """A new link: what its other end asked for before is void, what we ask for is not."""
        self.leaving.pop(peer, None)
        if self.ctx.me in self.leaving:
            self.ctx.send(peer, LeaveRequest(self.leaving[self.ctx.me][:1000]))

    def _take_leave(self, state: LogState, reachable: set[PeerId]) -> None:
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
        for peer in after.view.members:
            if peer not in before.view.members:
                self._entered_at[peer] = self.ctx.now
        for peer in before.view.members:
            if peer in after.view.members or peer == me:
                continue
            if peer in self.leaving:
                core.membership.left(peer)
                self.ctx.fault("peer-left", peer, f"{self.ctx.called(peer)} has left.")
                del self.leaving[peer]
        gone = [p for p in before.view.members if p not in after.view.members and p != me]
        self.ctx.send_all(gone, Learned(after.view.lineage, after.slot))
        if me in before.view.members and me not in after.view.members:
            if me in self.leaving:
                self._remaining = after.view.members
                self._goodbye = ("left", self.ctx.now + FAREWELL_S)
            else:
                core.join.left_behind("the others went on without this peer")

    # -------------------------------------------------------------- time

    def next_timer(self) -> float:
        """Most waiting is done by looking again after a while, soon if something is afoot."""
        if self._pending():
            self._review_at = min(self._review_at, self.ctx.now + REVIEW_S)
        return self._review_at

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
            or bool(core.coordination.evict)
        )
