"""Coming in: a newcomer's way to membership, and how members let it in.

    joiner ── JoinRequest ──▶ any member
           ◀── Snapshot ───── view, round, root, addresses
           ── Dial all, FetchState, StateHeld ──
           ── Enter ────────▶ coordinator ── ViewEntry (all who are ready) ──▶ log
           ◀── Snapshot ───── the view with us in it: Joined

An evicted member, and a member of a lineage that lost, walk the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from decentral.peer.context import Context
from decentral.peer.dialing import LOOK_AT
from decentral.peer.fields import bad
from decentral.peer.member import ALIVE, SUSPECT
from decentral.peer.membership import Membership
from decentral.peer.messages import Enter, Gossip, Hello, JoinRequest, Quarantined, Snapshot
from decentral.peer.protocol import Evicted
from decentral.peer.quarantine import Quarantine
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
        rounds: Mapping[str, Rounds],
        coordinator: Callable[[], PeerId | None],
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.membership = membership
        self.rounds = rounds
        self.coordinator = coordinator
        self.target: LogState | None = None
        self.ask_at = 0.0
        self._knocked = False  # whether we have asked to enter since we are outside
        self._asked: tuple[str, int] = ("", 0)
        self._via: PeerId | None = None
        self._alone_since: float | None = None
        self.quarantine = Quarantine()
        self._first_slot: dict[PeerId, int] = {}
        self._ready: dict[PeerId, tuple[Enter, float]] = {}
        self._told_to_wait = 0
        self.waiting: dict[PeerId, float] = {}
        """Joiners that have asked this member lately."""
        self._came_from: dict[PeerId, str] = {}
        """The other lineage that a peer was in when it last greeted us."""
        self._met: set[str] = set()
        """Other lineages of which this peer has told a person."""

    # -------------------------------------------------------------- the newcomer

    def meet(self, peer: PeerId, theirs: Hello) -> None:
        """A member of another lineage: if it wins, ask it for its log, and then for entry."""
        if self.note_met(peer, theirs):
            self.ctx.send(peer, JoinRequest("", 0))

    def note_met(self, peer: PeerId, theirs: Hello) -> bool:
        """Whether their lineage wins; a person is told once that the two have met."""
        standing = (theirs.samples, theirs.lineage, theirs.ancestry)
        theirs_wins = beats(standing, self.replica.standing())
        self._came_from[peer] = theirs.lineage
        self._say_met(peer, theirs.lineage, theirs_wins)
        return theirs_wins

    def _say_met(self, peer: PeerId, lineage: str, theirs_wins: bool) -> None:
        if lineage not in self._met:
            self._met.add(lineage)
            ours = self.replica.lineage
            more, less = (lineage, ours) if theirs_wins else (ours, lineage)
            self.ctx.fault(
                "merge",
                peer,
                f"Lineages {ours} (here) and {lineage} (of {self.ctx.called(peer)}) have "
                f"met: {more} has more committed work, and the members of {less} go over to it.",
            )

    def drive(self) -> None:
        """One step towards membership; called while we are none."""
        best = self._best()
        if best is None:
            self._look_for_members()
            self._perhaps_go_back()
            return
        self._alone_since = None
        target = self.target
        if target is not None and target.view.lineage != best.lineage:
            target = self.target = None
        ready = target is not None and self._prepare(target)
        if self.ctx.now < self.ask_at and not (ready and self._knocks_at_once(target)):
            return
        self.ask_at = self.ctx.now + self.ctx.jitter(ASK_AGAIN_S)
        contact = self._contact(best.lineage)
        if contact is None:
            return
        if target is not None and ready and not self.ctx.config.spectator:
            self._knocked = True
            self.ctx.send(contact, Enter(target.view.lineage, target.slot, self._held(target)))
        if target is None or self._lacks_an_address(target):
            self.ctx.send(contact, JoinRequest("", 0))  # answered with everything
        else:
            self.ctx.send(contact, JoinRequest(target.view.lineage, target.slot))

    def _lacks_an_address(self, target: LogState) -> bool:
        """Whether some member can neither be dialled nor knows of us: what told others where it is
        went by while we had no link."""
        found = self.membership.members
        return any(
            peer not in self.ctx.links and not (peer in found and found[peer].address)
            for peer in self.membership.links_wanted(target.view.members)
        )

    def _look_for_members(self) -> None:
        """No member is linked. Dial those of the newest view that we know of: whoever is in it has
        come back since, whatever old rumours say of its leave. A newcomer whose links all lead to
        others outside (relays, observers, newcomers) has been told by them of more."""
        known = self.replica.state if self.target is None else self.target
        if known is not None:
            members = self.membership.links_wanted(known.view.members)
            self.membership.want((p for p in members if p not in self.ctx.links), 1.0, left=True)
        elif self.ctx.links:
            found = self.membership.members
            others = (p for p in found if p not in self.ctx.links and not self.membership.dead(p))
            self.membership.want(islice(others, LOOK_AT), 0.0)

    def _best(self) -> Hello | None:
        """The winning lineage among those whose members we are linked to."""
        best: Hello | None = None
        for lineage, there in self.ctx.inside.items():
            one = self.ctx.links[next(iter(there))].hello
            if one is not None and lineage:
                mine = (one.samples, one.lineage, one.ancestry)
                if best is None or beats(mine, (best.samples, best.lineage, best.ancestry)):
                    best = one
        return best

    def _contact(self, lineage: str) -> PeerId | None:
        able = list(self.ctx.inside.get(lineage, ()))
        if self._via in able:
            # For once only: if it does not answer, another member may.
            via, self._via = self._via, None
            return via
        return able[self.ctx.rng.randrange(len(able))] if able else None

    def _knocks_at_once(self, target: LogState | None) -> bool:
        """The first time; whoever has asked already asks again from time to time."""
        newest = target is not None and all(one.holds(target) for one in self.rounds.values())
        return newest and not self._knocked and not self.ctx.config.spectator

    def _held(self, target: LogState) -> tuple[tuple[str, int, bytes], ...]:
        """(tag, round, root) that this peer comes in with."""
        mine = [one for one in target.scopes if self.rounds[one.tag].takes]
        held = ((one, self.rounds[one.tag].held if one.root else None) for one in mine)
        return tuple((one.tag, *(state or (one.round, one.root))) for one, state in held)

    def _prepare(self, target: LogState) -> bool:
        """All links that a member would want, and a recent state: what entering takes. Not the
        newest: where rounds are quicker than messages, that one is always still to come."""
        members = self.membership.links_wanted(target.view.members)
        self.membership.want((p for p in members if p not in self.ctx.links), 0.0)
        behind = [one for one in self.rounds.values() if not one.holds(target)]
        if behind:
            linked = tuple(peer for peer in members if peer in self.ctx.links)
            for rounds in behind:
                rounds.fetch(target, linked)
        living = [peer for peer in members if not self.membership.dead(peer)]
        near = all(one.near(target, PATIENCE_ROUNDS) for one in behind)
        return near and all(peer in self.ctx.links for peer in living)

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
        onlooker = self.ctx.config.spectator and self.ctx.config.takes == ()
        if theirs.tags() != self.ctx.config.tags and not onlooker:
            bad("the run's state has other tags than this peer's recipe")
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
            if not same:
                self._say_met(peer, theirs.view.lineage, True)
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
        admitted = self._asked[0] == lineage and theirs.slot_of(self.ctx.me) >= self._asked[1]
        return remembers or admitted

    def depose(self, says: str) -> None:
        """We are a member no longer, whether our own log says so or not."""
        self.replica.deposed = True
        self.ctx.changed()
        self.left_behind(says)

    def left_behind(self, says: str) -> None:
        for rounds in self.rounds.values():
            rounds.abort("no longer a member")
            rounds.next_round()
        self.ask_at, self._knocked = 0.0, False
        self.ctx.out.append(Evicted(says))
        self.ctx.dirty = True

    # -------------------------------------------------------------- the members

    def on_join_request(self, peer: PeerId, msg: JoinRequest) -> None:
        state = self.replica.state
        if state is None or not self.replica.member:
            return
        if peer not in state.view.members:
            self.waiting[peer] = self.ctx.now
        if msg.lineage != state.view.lineage:
            self.replica.send_snapshot(peer, self.coordinator())
        elif msg.slot != state.slot:
            self.replica.send_snapshot(peer, self.coordinator(), msg.slot)

    def on_enter(self, peer: PeerId, msg: Enter) -> None:
        state = self.replica.state
        if state is None or not self.replica.member:
            return
        if self.coordinator() != self.ctx.me:
            self.replica.send_snapshot(peer, self.coordinator(), msg.slot)
            return
        hello = self.ctx.links[peer].hello
        if hello is not None and not hello.fingerprint and self.ctx.config.fingerprint:
            bad("it came to watch, without a recipe: it cannot enter")
        wait_s = self.quarantine.wait_s(peer, self.ctx.now)
        if wait_s:
            stays = self.quarantine.stays(peer)
            self.ctx.send(peer, Quarantined(round(1000 * wait_s), stays))
        elif msg.lineage == state.view.lineage and self._committed(state, msg):
            self._ready[peer] = (msg, self.ctx.now)
            self._first_slot.setdefault(peer, state.slot)
            self.ctx.dirty = True
        if self._behind(state, msg):
            self.replica.send_snapshot(peer, self.ctx.me, msg.slot)

    def on_quarantined(self, peer: PeerId, msg: Quarantined) -> None:
        """We have come and gone too often: say so once per sentence, and keep asking."""
        if not self.replica.member and msg.stays != self._told_to_wait:
            self._told_to_wait = msg.stays
            says = (
                f"This peer has died {msg.stays} times soon after it came in: the others let it in "
                f"again in {msg.wait_ms / 1000:.0f} s."
            )
            self.ctx.fault("quarantine", self.ctx.me, says)

    @staticmethod
    def _committed(state: LogState, msg: Enter) -> bool:
        known = {one.tag: one for one in state.scopes}
        return all(
            tag in known and known[tag].committed(number, root) for tag, number, root in msg.held
        )

    @staticmethod
    def _behind(state: LogState, msg: Enter) -> int:
        """By how many rounds, in the tag where it is most."""
        known = dict(state.rounds())
        return max((known.get(tag, number) - number for tag, number, _ in msg.held), default=0)

    def _close_enough(self, state: LogState, peer: PeerId, msg: Enter) -> bool:
        """At the current round, or, once that has proved too fast to catch, one behind; whoever
        has waited for long is let in with what it has, and the next round waits for it."""
        waited = state.slot - self._first_slot.get(peer, state.slot)
        behind = self._behind(state, msg)
        patience = PATIENCE_ROUNDS * len(state.scopes)
        return behind == 0 or (behind == 1 and waited >= 1) or waited >= patience

    def anybody_ready(self) -> bool:
        return bool(self._ready)

    def newcomers(self, state: LogState) -> list[PeerId]:
        """Who holds a recent enough state and may enter the view now."""
        now = self.ctx.now
        return sorted(
            peer
            for peer, (msg, at) in self._ready.items()
            if msg.lineage == state.view.lineage
            and self._committed(state, msg)
            and self._close_enough(state, peer, msg)
            and now - at < FORGET_S
            and peer in self.ctx.links
            and peer not in state.view.members
            and self.membership.state(peer) in (ALIVE, SUSPECT)
        )

    def takes(self, peer: PeerId) -> set[str]:
        """The tags that a newcomer holds: those that it will take part in."""
        return {tag for tag, _, _ in self._ready[peer][0].held}

    def kept_out(self, state: LogState, newcomers: Sequence[PeerId]) -> bool:
        """Whether somebody could have entered long ago: where rounds of several tags overlap,
        one is always under way. Where cells are kept on leases, each is short, and a newcomer has
        nothing to catch up with: it is let in soon."""
        patience = 2 if self.ctx.config.copies else 2 * len(state.scopes)
        return any(state.slot - self._first_slot[peer] >= patience for peer in newcomers)

    def how_it_comes(self, peer: PeerId) -> str:
        """For the log, which reaches members whom nobody of the other lineage has greeted."""
        lineage = self._came_from.get(peer, "")
        return f"joins, coming over from lineage {lineage}" if lineage else "joins"

    def spread(self, before: tuple[PeerId, ...]) -> None:
        """The log has moved: those who wait outside should know at once."""
        now = self.ctx.now
        self.waiting = {p: at for p, at in self.waiting.items() if now - at < FORGET_S}
        state = self.replica.state
        for peer in self.waiting:
            if peer in before:
                continue  # a member: it gets the entry itself
            self.replica.send_snapshot(peer, self.coordinator(), self.replica.slot - 1)
            peering = self.ctx.links.get(peer)
            if peering is not None:
                peering.told_slot = self.replica.slot
        if state is not None:
            self.waiting = {p: at for p, at in self.waiting.items() if p not in state.view.members}
            self._ready = {p: one for p, one in self._ready.items() if p in self.waiting}
            self._first_slot = {p: n for p, n in self._first_slot.items() if p in self.waiting}
            for peer in self._came_from.keys() & set(state.view.members):
                del self._came_from[peer]
