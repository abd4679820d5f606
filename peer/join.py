"""Coming in: a newcomer's way to membership, and how members let it in.

    joiner ── JoinRequest ──▶ any member
           ◀── Snapshot ───── view, round, root, addresses
           ── Dial all, FetchState, StateHeld ──
           ── Enter ────────▶ coordinator ── ViewEntry (all who are ready) ──▶ log
           ◀── Snapshot ───── the view with us in it: Joined

An evicted member, and a member of a lineage that lost, walk the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from decentral.peer.context import Context
from decentral.peer.member import ALIVE, SUSPECT
from decentral.peer.membership import Membership
from decentral.peer.messages import Enter, Gossip, Hello, JoinRequest, Snapshot
from decentral.peer.protocol import Evicted
from decentral.peer.replica import Replica, beats
from decentral.peer.rounds import Rounds
from decentral.peer.views_log import LogState
from decentral.types import PeerId

ASK_AGAIN_S = 1.0
GIVE_UP_S = 10.0
"""A deposed member goes back to its own lineage when nobody of a better one is left so long."""
FORGET_S = 5.0
PATIENCE_ROUNDS = 8


class Join:
    def __init__(
        self,
        ctx: Context,
        replica: Replica,
        membership: Membership,
        rounds: Rounds,
        coordinator: Callable[[], PeerId | None],
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.membership = membership
        self.rounds = rounds
        self.coordinator = coordinator
        self.target: LogState | None = None
        self.ask_at = 0.0
        self._asked: tuple[str, int] = ("", 0)
        self._via: PeerId | None = None
        self._alone_since: float | None = None
        self._first_round: dict[PeerId, int] = {}
        self._ready: dict[PeerId, tuple[str, int, bytes, float]] = {}
        self.waiting: dict[PeerId, float] = {}
        """Joiners that have asked this member lately."""

    # -------------------------------------------------------------- the newcomer

    def meet(self, peer: PeerId, theirs: Hello) -> None:
        """A member of another lineage: if it wins, ask it for its log, and then for entry."""
        standing = (theirs.samples, theirs.lineage, theirs.ancestry)
        if beats(standing, self.replica.standing()):
            self.ctx.send(peer, JoinRequest("", 0))

    def drive(self) -> None:
        """One step towards membership; called while we are none."""
        best = self._best()
        if best is None:
            self._perhaps_go_back()
            return
        self._alone_since = None
        target = self.target
        if target is not None and target.view.lineage != best.lineage:
            target = self.target = None
        ready = target is not None and self._prepare(target)
        if self.ctx.now < self.ask_at:
            return
        self.ask_at = self.ctx.now + self.ctx.jitter(ASK_AGAIN_S)
        contact = self._contact(best.lineage)
        if contact is None:
            return
        if target is not None and ready:
            self.ctx.send(
                contact, Enter(target.view.lineage, target.slot, target.round, target.root)
            )
        slot = -1 if target is None else target.slot
        lineage = "" if target is None else target.view.lineage
        self.ctx.send(contact, JoinRequest(lineage, max(slot, 0)))

    def _best(self) -> Hello | None:
        """The winning lineage among those whose members we are linked to."""
        best: Hello | None = None
        for peering in self.ctx.links.values():
            one = peering.hello
            if one is not None and one.member and one.lineage:
                mine = (one.samples, one.lineage, one.ancestry)
                if best is None or beats(mine, (best.samples, best.lineage, best.ancestry)):
                    best = one
        return best

    def _contact(self, lineage: str) -> PeerId | None:
        able = sorted(
            peer
            for peer, peering in self.ctx.links.items()
            if peering.hello is not None
            and peering.hello.member
            and peering.hello.lineage == lineage
        )
        if self._via in able:
            # For once only: if it does not answer, another member may.
            via, self._via = self._via, None
            return via
        return able[self.ctx.rng.randrange(len(able))] if able else None

    def _prepare(self, target: LogState) -> bool:
        """Links to all living members and the current state: what entering takes."""
        members = [peer for peer in target.view.members if peer != self.ctx.me]
        self.membership.want((p for p in members if p not in self.ctx.links), 0.0)
        linked = tuple(peer for peer in members if peer in self.ctx.links)
        held = self.rounds.fetch(target, linked)
        living = [peer for peer in members if not self.membership.dead(peer)]
        return held and all(peer in self.ctx.links for peer in living)

    def _perhaps_go_back(self) -> None:
        state = self.replica.state
        if not self.replica.deposed or state is None or self.ctx.me not in state.view.members:
            return
        if self._alone_since is None:
            self._alone_since = self.ctx.now
        elif self.ctx.now - self._alone_since > GIVE_UP_S:
            self._alone_since = None
            self.target = None
            self.replica.deposed = False
            self.ctx.changed()
            self.replica.hooks.installed(None, state)

    def on_snapshot(self, peer: PeerId, msg: Snapshot) -> None:
        self.membership.on_gossip(peer, Gossip(msg.book))
        theirs, mine = msg.state, self.replica.state
        same = mine is not None and mine.view.lineage == theirs.view.lineage
        if mine is not None and same and theirs.slot < mine.slot:
            return
        standing = (theirs.samples, theirs.view.lineage, theirs.ancestry)
        kept = self.replica.member or self.replica.deposed
        if kept and not same and not beats(standing, self.replica.standing()):
            return
        if self._asked[0] != theirs.view.lineage:
            self._asked = (theirs.view.lineage, theirs.slot)
        self._via = msg.coordinator
        if self.ctx.me in theirs.view.members and self._safe(theirs, same):
            if not (same and mine is not None and theirs.slot == mine.slot and self.replica.member):
                self.target = None
                self.replica.install(theirs)
            return
        if self.replica.member:
            if same and mine is not None and theirs.slot == mine.slot:
                return
            self.depose(
                "the others went on without this peer"
                if same
                else f"lineage {theirs.view.lineage} has more committed work than "
                f"{self.replica.lineage}; this peer's uncommitted work is dropped"
            )
        self.target = theirs
        self.ctx.dirty = True

    def _safe(self, theirs: LogState, same: bool) -> bool:
        """Whether taking our place in that view could make us forget a vote of ours."""
        lineage = theirs.view.lineage
        remembers = self.replica.state is not None and (same or lineage not in self.replica.past)
        admitted = self._asked[0] == lineage and theirs.entry_of(self.ctx.me)[0] >= self._asked[1]
        return remembers or admitted

    def depose(self, says: str) -> None:
        """We are a member no longer, whether our own log says so or not."""
        self.replica.deposed = True
        self.ctx.changed()
        self.left_behind(says)

    def left_behind(self, says: str) -> None:
        self.rounds.abort("no longer a member")
        self.rounds.next_round()
        self.ask_at = 0.0
        self.ctx.out.append(Evicted(says))
        self.ctx.dirty = True

    # -------------------------------------------------------------- the members

    def on_join_request(self, peer: PeerId, msg: JoinRequest) -> None:
        state = self.replica.state
        if state is None or not self.replica.member:
            return
        if peer not in state.view.members:
            self.waiting[peer] = self.ctx.now
        if msg.lineage != state.view.lineage or msg.slot != state.slot:
            self.replica.send_snapshot(peer, self.coordinator())

    def on_enter(self, peer: PeerId, msg: Enter) -> None:
        state = self.replica.state
        if state is None or not self.replica.member:
            return
        if self.coordinator() != self.ctx.me:
            self.replica.send_snapshot(peer, self.coordinator())
            return
        if msg.lineage == state.view.lineage and self._committed(state, msg.round, msg.root):
            self._ready[peer] = (msg.lineage, msg.round, msg.root, self.ctx.now)
            self._first_round.setdefault(peer, state.round)
            self.ctx.dirty = True
        if msg.round != state.round:
            self.replica.send_snapshot(peer, self.ctx.me)

    @staticmethod
    def _committed(state: LogState, number: int, root: bytes) -> bool:
        return (number, root) == (state.round, state.root) or any(
            (number, root) == (one.round, one.root) for one in state.history
        )

    def _close_enough(self, state: LogState, peer: PeerId, number: int) -> bool:
        """At the current round, or, once that has proved too fast to catch, one behind; whoever
        has waited for long is let in with what it has, and the next round waits for it."""
        waited = state.round - self._first_round.get(peer, state.round)
        behind = state.round - number
        return behind == 0 or (behind == 1 and waited >= 1) or waited >= PATIENCE_ROUNDS

    def newcomers(self, state: LogState) -> list[PeerId]:
        """Who holds a recent enough state and may enter the view now."""
        now = self.ctx.now
        return sorted(
            peer
            for peer, (lineage, number, root, at) in self._ready.items()
            if lineage == state.view.lineage
            and self._committed(state, number, root)
            and self._close_enough(state, peer, number)
            and now - at < FORGET_S
            and peer in self.ctx.links
            and peer not in state.view.members
            and self.membership.state(peer) in (ALIVE, SUSPECT)
        )

    def spread(self, before: tuple[PeerId, ...]) -> None:
        """The log has moved: those who wait outside should know at once."""
        now = self.ctx.now
        self.waiting = {p: at for p, at in self.waiting.items() if now - at < FORGET_S}
        state = self.replica.state
        for peer in self.waiting:
            if peer in before:
                continue  # a member: it gets the entry itself
            self.replica.send_snapshot(peer, self.coordinator())
            peering = self.ctx.links.get(peer)
            if peering is not None:
                peering.told_slot = self.replica.slot
        if state is not None:
            self.waiting = {p: at for p, at in self.waiting.items() if p not in state.view.members}
            self._ready = {p: one for p, one in self._ready.items() if p in self.waiting}
            self._first_round = {p: n for p, n in self._first_round.items() if p in self.waiting}
