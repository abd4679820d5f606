"""Who is alive: SWIM with Lifeguard, over links whose other ends answer probes in native code.

    probe ──▶ ack                                       alive
    probe ──▶ … timeout ──▶ k helpers probe ──▶ ack     alive
                            └─▶ … timeout               suspect, told to everybody
    suspect: everybody probes it with the suspected incarnation; its native code answers with a
    higher one, which clears it; else it is dead after a while
    link closed by the other end ──▶ suspect with a short fuse: a dead process does that

Opinions, not facts: only the log (views) decides who is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from decentral.peer.context import Context
from decentral.peer.dialing import Dialling
from decentral.peer.fields import MAX_MEMBERS
from decentral.peer.member import ALIVE, DEAD, LEFT, NOBODY, SUSPECT, Asked, Member, dialable
from decentral.peer.messages import Gossip, PingAck, PingReq, Update
from decentral.peer.overlay import Neighbourhood
from decentral.peer.protocol import Probe
from decentral.peer.sharing import as_set
from decentral.peer.spreading import SMALL, Spreading
from decentral.peer.suspicion import timeout_s
from decentral.types import PeerId

MAX_HEALTH = 3
MAX_HELPERS = 12
"""A probe asks so many in the end, where helpers say that they do not reach its target."""
CONFIRMATIONS = 2
"""So many others that accuse a suspect too leave it only the shortest time to refute."""
CLOSED_TO = 6
"""A link that the other end closed counts as a death if so many others lost theirs as well."""


class Membership:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.dialling = Dialling(ctx)
        self.members: dict[PeerId, Member] = {}
        self.wanted: set[PeerId] = set()
        """Peers that we should be linked to: members of the view that we know of."""
        self.health = 0
        self._order: list[PeerId] = []
        self._asked: dict[int, Asked] = {}
        self._seq = 0
        self._probe_at = 0.0
        self._news = Spreading(ctx)
        self._suspects: set[PeerId] = set()
        self._gone: set[PeerId] = set()
        """The dead, and those that have left."""
        self._wake: float | None = 0.0
        """No probe or suspect runs out before; None: not known any more."""
        self._near = Neighbourhood(ctx.me, ctx.config.full_mesh_up_to)
        self._addresses: tuple[tuple[PeerId, str, str], ...] | None = None

    # -------------------------------------------------------------- opinions

    def state(self, peer: PeerId) -> int:
        known = self.members.get(peer)
        return ALIVE if known is None else known.state

    def dead(self, peer: PeerId) -> bool:
        return peer in self._gone

    def living(self, members: tuple[PeerId, ...]) -> frozenset[PeerId]:
        return as_set(members) - self._gone

    def stalled_s(self, peer: PeerId) -> float:
        """For how long this peer's trainer has shown no progress, as far as we have seen."""
        known = self.members.get(peer)
        if known is None or known.progress < 0:
            return 0.0
        return self.ctx.now - known.progress_at

    def book(self, whom: Set[PeerId] | None = None) -> tuple[Update, ...]:
        """How to find whoever may be there, or those of them that are asked for."""
        me = self.ctx
        mine = Update(me.me, me.boot_seq, 0, ALIVE, me.name, me.address)
        there = (p for p in self.members if p not in self._gone or p in self._near.inside)
        return (mine, *(self.members[p].update(p) for p in there if whom is None or p in whom))

    def addresses(self) -> tuple[tuple[PeerId, str, str], ...]:
        """(peer, name, address) of whoever may be dialled; the same object while nothing is new."""
        if self._addresses is None:
            mine = (self.ctx.me, self.ctx.name, self.ctx.address)
            self._addresses = dialable(mine, self.members, self.wanted)
        return self._addresses

    def learn(self, peer: PeerId, name: str, address: str) -> Member:
        one = self.members.get(peer)
        if one is None:
            one = self.members[peer] = Member(progress_at=self.ctx.now)
            self._order.insert(self.ctx.rng.randrange(len(self._order) + 1), peer)
        if name and name != one.name:
            one.name = self.ctx.names[peer] = name
            self._addresses = None
        if address and address != one.address:
            one.address = self.dialling.addresses[peer] = address
            self._addresses = None
        return one

    def recall(self, peer: PeerId, name: str, address: str) -> None:
        """It was no member when this process began: looked for only where we are alone."""
        self.learn(peer, name, address).state = LEFT
        self._gone.add(peer)

    def _missed(self) -> list[PeerId]:
        """Members that we suspect or call dead. In a crowd that is hearsay, which peers who were
        cut off must not bring along: there only the log says who is gone."""
        missed = self._gone | self._suspects
        return [] if self._near.partial else sorted(missed & self._near.inside)

    def vouched(self, peers: Iterable[PeerId]) -> None:
        """A committed view says that these are in: what we have only heard of them is void."""
        for peer in self._gone.intersection(peers):
            if not self._sees(peer):
                self.members[peer].state = ALIVE
                self._gone.discard(peer)
                self.ctx.changed()

    # -------------------------------------------------------------- links

    def on_hello(
        self, peer: PeerId, boot_seq: int, name: str, address: str, *, everything: bool
    ) -> None:
        """A link's other end said who it is: that it lives, and since which start. It is told whom
        we miss among the members, or of all that we know."""
        one = self.learn(peer, name, address)
        self.dialling.enough(peer)
        if boot_seq != one.boot_seq:  # its own word, whatever others have said of later starts
            self._started_again(peer, one, boot_seq)
        elif one.state in (SUSPECT, DEAD):
            self._probe(peer, one)
        told = self.members.keys() if everything else self._missed()
        updates = tuple(self.members[other].update(other) for other in told if other != peer)
        if updates:
            self.ctx.send(peer, Gossip(updates), urgent=False)

    def on_link_down(self, peer: PeerId, closed: bool, lived_s: float) -> None:
        one = self.learn(peer, "", "")
        if one.state == ALIVE:
            one.incarnation = max(one.incarnation, 1)
            self._set(peer, one, SUSPECT, closing=closed)
        elif one.state == SUSPECT and closed:
            one.by_closing = True
            self._accuse(peer, one)
            self._bring_forward(one, self.ctx.now + self.ctx.config.closed_suspicion_s)
        if one.state != LEFT and self.may_dial(peer):
            self.dialling.broken(peer, lived_s)

    def on_dial_failed(self, peer: PeerId, refused: bool) -> None:
        one = self.learn(peer, "", "")
        if refused and one.state == SUSPECT and one.by_closing:
            one.refused = True
            if one.witnesses - {self.ctx.me}:
                self._set(peer, one, DEAD)
        if one.state == LEFT:
            self.dialling.enough(peer)
        self.dialling.failed(peer)

    def links_wanted(self, members: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
        """Those of a view's members that we should be linked to."""
        if self._near.look(members, self._gone) and self._near.partial:
            self.wanted = set(self._near.links)
        return self._near.links

    def _sees(self, peer: PeerId) -> bool:
        """Whether it is ours to judge: in a crowd only its neighbours and the leaders do that."""
        return not self._near.partial or peer in self.ctx.links or peer in self.wanted

    def may_dial(self, peer: PeerId) -> bool:
        """In a crowd only those that we want links to are dialled."""
        return not self._near.partial or peer in self.wanted

    def want(self, peers: Iterable[PeerId], patience_s: float, *, left: bool = False) -> None:
        """Be linked to these, the dead too: they may come back. `left`: as may those that left."""
        for peer in peers:
            if peer == self.ctx.me:
                continue
            one = self.learn(peer, "", "")
            self.wanted.add(peer)
            if peer not in self.ctx.links and (left or one.state != LEFT):
                self.dialling.want(peer, patience_s)

    def tell_about(self, peer: PeerId) -> None:
        """Let a peer know what is known of it."""
        self.ctx.send(peer, Gossip((self.members[peer].update(peer),)))

    def left(self, peer: PeerId, boot_seq: int) -> None:
        """That process of it has taken its leave: neither a death nor worth dialling."""
        one = self.learn(peer, "", "")
        if one.boot_seq > boot_seq:
            return  # a later one is on its way in
        self.dialling.enough(peer)
        self.wanted.discard(peer)
        if one.state != LEFT:
            self._set(peer, one, LEFT)

    # -------------------------------------------------------------- probing

    def next_timer(self) -> float:
        if self._wake is None:
            self._wake = self._probe_at
            for asked in self._asked.values():
                self._wake = min(self._wake, asked.deadline)
            for peer in self._suspects:
                self._wake = min(self._wake, self.members[peer].deadline)
        return min(self._wake, self._news.next_timer(), self.dialling.next_timer())

    def _due_by(self, deadline: float) -> None:
        if self._wake is not None and deadline < self._wake:
            self._wake = deadline

    def _due_no_more(self, deadline: float) -> None:
        if self._wake is not None and deadline <= self._wake:
            self._wake = None

    def _bring_forward(self, one: Member, deadline: float) -> None:
        one.deadline = min(one.deadline, deadline)
        self._due_by(one.deadline)

    def tick(self, late_s: float) -> None:
        now = self.ctx.now
        if late_s > 0.5 and self.ctx.config.lifeguard:
            # We were not running (a stopped process, a suspended laptop): whoever seems silent
            # has had no chance to answer.
            self.health = min(self.health + 1, MAX_HEALTH)
            for asked in self._asked.values():
                asked.deadline = max(asked.deadline, now + self.ctx.config.probe_timeout_s)
            for peer in self._suspects:
                one = self.members[peer]
                one.deadline = max(one.deadline, now + self.ctx.config.suspicion_s)
        self.dialling.tick()
        if self._wake is not None and now < self._wake:
            return
        self._wake = None
        for seq in [seq for seq, one in self._asked.items() if now >= one.deadline]:
            self._unanswered(seq)
        for peer in sorted(p for p in self._suspects if now >= self.members[p].deadline):
            self._condemn(peer)
        if now >= self._probe_at:
            self._probe_at = now + self.ctx.jitter(self.ctx.config.probe_period_s)
            self._next_probe()
            for peer in sorted(self._suspects) if self.ctx.config.lifeguard else ():
                if self._tries(peer, self.members[peer]):
                    self._probe(peer, self.members[peer])

    def _tries(self, peer: PeerId, one: Member) -> bool:
        """Whether our probe of a suspect says anything: over a link, or about our own suspicion.
        Helpers have probes of their own."""
        return self._sees(peer) and (peer in self.ctx.links or self.ctx.me in one.witnesses)

    def _next_probe(self) -> None:
        for _ in range(len(self._order)):
            peer = self._order.pop()
            if not self._order:
                self._order = list(self.members)
                self.ctx.rng.shuffle(self._order)
            one = self.members[peer]
            if peer in self.ctx.links or (one.state <= SUSPECT and peer in self.wanted):
                if one.state != SUSPECT or not self.ctx.config.lifeguard:
                    self._probe(peer, one)
                return

    def _probe(self, peer: PeerId, one: Member) -> None:
        """Directly where there is a link, else through helpers."""
        self._seq += 1
        wait_s = self.ctx.config.probe_timeout_s * (1 + self.health)
        asked = self._asked[self._seq] = Asked(peer, self.ctx.now + wait_s)
        self._due_by(asked.deadline)
        if peer in self.ctx.links:
            self.ctx.out.append(Probe(peer, self._seq, one.suspected()))
        else:
            self._ask_helpers(self._seq, asked, one)

    def _ask_helpers(self, seq: int, asked: Asked, one: Member) -> None:
        asked.indirect = True
        asked.deadline = self.ctx.now + 1.5 * self.ctx.config.probe_timeout_s * (1 + self.health)
        self._ask_more(seq, asked, one, self.ctx.config.indirect_probes)

    def _ask_more(self, seq: int, asked: Asked, one: Member, most: int) -> None:
        known = self._near.leaders or self.ctx.links
        out = {asked.target, self.ctx.me, *asked.helpers}
        able = [p for p in known if p not in out and p in self.ctx.links]
        able = [p for p in able if self.state(p) == ALIVE]
        chosen = self.ctx.rng.sample(able, min(most, len(able)))
        if chosen and one.via in able and one.via not in chosen:
            chosen[0] = one.via
        for helper in chosen:
            asked.helpers.add(helper)
            self.ctx.send(helper, PingReq(asked.target, seq, one.suspected()))

    def _unanswered(self, seq: int) -> None:
        asked = self._asked[seq]
        one = self.members[asked.target]
        if asked.on_behalf is not None:
            del self._asked[seq]
            self.ctx.send(
                asked.on_behalf[0], PingAck(asked.target, asked.on_behalf[1], False, 0, 0, 0)
            )
        elif not asked.indirect and one.state == ALIVE:
            self._ask_helpers(seq, asked, one)
        else:
            del self._asked[seq]
            if one.state == SUSPECT and self.ctx.me not in one.witnesses:
                self._accuse(asked.target, one)
            elif one.state == ALIVE:
                nobody = asked.indirect and not asked.heard_helper and len(self.members) > 1
                if nobody and self.ctx.config.lifeguard:
                    # Not even the helpers answered: perhaps it is us.
                    self.health = min(self.health + 1, MAX_HEALTH)
                one.incarnation = max(one.incarnation, 1)
                self._set(asked.target, one, SUSPECT)

    def on_ack(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None:
        asked = self._asked.pop(seq, None)
        if asked is not None:
            self._due_no_more(asked.deadline)
        one = self.members.get(peer)
        if one is None:
            return
        if asked is not None and asked.on_behalf is not None:
            requester, number = asked.on_behalf
            answer = PingAck(peer, number, True, one.boot_seq, incarnation, progress)
            self.ctx.send(requester, answer)
        self.health = max(0, self.health - 1)
        self._alive(peer, one, incarnation, progress)

    def on_ping_req(self, peer: PeerId, msg: PingReq) -> None:
        if msg.target not in self.ctx.links or msg.target not in self.members:
            self.ctx.send(peer, PingAck(msg.target, msg.seq, False, 0, 0, 0))
            return
        self.members[msg.target].check(0, msg.suspected_incarnation)
        self._seq += 1
        deadline = self.ctx.now + self.ctx.config.probe_timeout_s
        self._asked[self._seq] = Asked(msg.target, deadline, on_behalf=(peer, msg.seq))
        self._due_by(deadline)
        self.ctx.out.append(Probe(msg.target, self._seq, msg.suspected_incarnation))

    def on_ping_ack(self, helper: PeerId, msg: PingAck) -> None:
        asked = self._asked.get(msg.seq)
        one = self.members.get(msg.target)
        if asked is None or asked.target != msg.target or one is None:
            return
        asked.heard_helper = True
        one.check(msg.boot_seq, msg.incarnation)
        if msg.ok and msg.boot_seq >= one.boot_seq:
            del self._asked[msg.seq]
            self._due_no_more(asked.deadline)
            one.via = helper
            if msg.boot_seq > one.boot_seq:
                self._started_again(msg.target, one, msg.boot_seq)
            self._alive(msg.target, one, msg.incarnation, msg.progress)
        elif asked.indirect and len(asked.helpers) < MAX_HELPERS:
            # It cannot reach the target either: between two parts of a torn network most cannot.
            self._ask_more(msg.seq, asked, one, 1)

    def _started_again(self, peer: PeerId, one: Member, boot_seq: int) -> None:
        """A later process of it lives: what was said of the former one is void."""
        one.boot_seq, one.incarnation, one.progress = boot_seq, 0, -1
        self._set(peer, one, ALIVE)

    def _alive(self, peer: PeerId, one: Member, incarnation: int, progress: int) -> None:
        if progress != one.progress:
            one.progress, one.progress_at = progress, self.ctx.now
        if incarnation > one.incarnation:
            one.incarnation = incarnation
            if one.state in (SUSPECT, DEAD):
                self._set(peer, one, ALIVE)

    # -------------------------------------------------------------- changes of opinion

    def _condemn(self, peer: PeerId) -> None:
        one = self.members[peer]
        # A dead process closes its links to all; a storm of resets closes some of everybody's.
        seen = one.refused or len(one.witnesses - {self.ctx.me}) >= self._closed_to()
        if one.by_closing and not seen:
            one.by_closing = False
            one.deadline = self._deadline(peer, one)
            if self.ctx.now < one.deadline:
                return
        self._set(peer, one, DEAD)

    def _closed_to(self) -> int:
        return min((len(self.ctx.links) + 1) // 2, CLOSED_TO)

    def _deadline(self, peer: PeerId, one: Member) -> float:
        if not self._sees(peer):
            return float("inf")
        if one.by_closing:
            return one.suspect_since + self.ctx.config.closed_suspicion_s
        expected = min(CONFIRMATIONS, len(self.members) - 2) if self.ctx.config.lifeguard else 0
        confirmed = max(0, len(one.witnesses) - 1)
        wait_s = timeout_s(self.ctx.config.suspicion_s, confirmed, expected, self.health)
        return one.suspect_since + wait_s

    def _accuse(self, peer: PeerId, one: Member) -> None:
        """We have seen for ourselves what we know from others: say so, unless enough do."""
        one.witnesses |= {self.ctx.me}
        self._bring_forward(one, self._deadline(peer, one))
        others = len(one.witnesses) - 1
        wanted = self._closed_to() if one.by_closing else CONFIRMATIONS
        if others < wanted:
            self._news.add(peer, enough=wanted - others)

    def _set(
        self, peer: PeerId, one: Member, state: int, *, closing: bool = False, heard: bool = False
    ) -> None:
        before, one.state = one.state, state
        if state == SUSPECT:
            one.suspect_since = self.ctx.now
            one.by_closing, one.refused = closing, False
            one.witnesses = frozenset() if heard else frozenset((self.ctx.me,))
            one.deadline = self._deadline(peer, one)
            self._due_by(one.deadline)
            self._suspects.add(peer)
            if self.ctx.config.lifeguard and self._tries(peer, one):
                self._probe(peer, one)
        else:
            self._due_no_more(one.deadline)
            one.deadline = float("inf")
            self._suspects.discard(peer)
        if state >= DEAD:
            self._gone.add(peer)
        else:
            self._gone.discard(peer)
        if state == DEAD:
            self.ctx.fault("peer-died", peer, f"{self.ctx.called(peer)} is dead or unreachable.")
            if peer in self.ctx.links:
                self._probe(peer, one)
        elif state == ALIVE and before == DEAD:
            self.ctx.fault("peer-back", peer, f"{self.ctx.called(peer)} is back.")
        if before != state:
            # Whoever saw it first hand tells everybody; hearsay is passed on only in a large mesh.
            if not heard or self._passes_on():
                self._news.add(peer, enough=0 if heard else self._enough(one, state, before))
            if state >= DEAD or before >= DEAD:
                self.ctx.changed()
            elif self.ctx.acting:
                self.ctx.dirty = True  # no attempt begins with suspects

    def _passes_on(self) -> bool:
        return self._near.partial or len(self.ctx.links) > SMALL

    def _enough(self, one: Member, state: int, before: int) -> int:
        """How many others must say this for us to be silent; 0: only we can know it."""
        if state == SUSPECT:
            return self._closed_to() if one.by_closing else 0
        return CONFIRMATIONS if state >= DEAD or before != ALIVE else 0

    # -------------------------------------------------------------- gossip

    def flush(self) -> None:
        """Pass on what is new."""
        if self._news.pending:
            self._news.flush(lambda p: self.members[p].update(p), infectious=self._passes_on())

    def on_gossip(self, sender: PeerId, msg: Gossip) -> None:
        for news in msg.updates:
            known = self.members.get(news.peer)
            (known or NOBODY).check(news.boot_seq, news.incarnation)
            if news.peer == self.ctx.me:
                if self.ctx.blank and news.boot_seq > self.ctx.boot_seq:
                    self.ctx.boot_seq = news.boot_seq + 1
                    self.ctx.changed()
                continue
            if known is None and len(self.members) >= MAX_MEMBERS:
                continue  # a flood of names must not fill memory and the record
            one = self.learn(news.peer, news.name, news.address)
            if known is None and news.state >= DEAD:
                one.state = news.state  # an old story, not an event
                self._gone.add(news.peer)
            said = (news.boot_seq, news.incarnation, news.state)
            same, newer = said == one.key(), said > one.key()
            if not newer and news.state != SUSPECT and not (same and self._news.pending):
                continue
            accusers = news.by or (sender,)
            if same:
                for voice in accusers if news.state == SUSPECT else (sender,):
                    self._news.heard(news.peer, voice)
            if news.state == SUSPECT and one.state == SUSPECT and news.boot_seq == one.boot_seq:
                before = len(one.witnesses)
                one.witnesses |= frozenset(accusers)
                if before < len(one.witnesses) <= CONFIRMATIONS + 1 and self._passes_on():
                    self._news.add(news.peer)
                if one.by_closing and one.refused:
                    self._set(news.peer, one, DEAD)
                else:
                    self._bring_forward(one, self._deadline(news.peer, one))
            if said <= one.key():
                continue
            one.boot_seq, one.incarnation = news.boot_seq, news.incarnation
            if news.state != one.state:
                self._set(news.peer, one, news.state, heard=True)
                if news.state == SUSPECT:
                    one.witnesses = frozenset(accusers)
