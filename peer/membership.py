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

from collections.abc import Iterable

from decentral.peer.context import Context
from decentral.peer.dialing import Dialling
from decentral.peer.member import ALIVE, DEAD, LEFT, SUSPECT, Asked, Member
from decentral.peer.messages import Gossip, PingAck, PingReq, Update
from decentral.peer.protocol import Probe
from decentral.peer.spreading import SMALL, Spreading
from decentral.peer.suspicion import timeout_s
from decentral.types import PeerId

MAX_HEALTH = 3


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

    # -------------------------------------------------------------- opinions

    def state(self, peer: PeerId) -> int:
        known = self.members.get(peer)
        return ALIVE if known is None else known.state

    def dead(self, peer: PeerId) -> bool:
        return self.state(peer) >= DEAD

    def stalled_s(self, peer: PeerId) -> float:
        """For how long this peer's trainer has shown no progress, as far as we have seen."""
        known = self.members.get(peer)
        if known is None or known.progress < 0:
            return 0.0
        return self.ctx.now - known.progress_at

    def book(self) -> tuple[Update, ...]:
        me = self.ctx
        mine = Update(me.me, me.boot_seq, 0, ALIVE, me.name, me.address)
        return (mine, *(self._update(peer) for peer in self.members))

    def _update(self, peer: PeerId) -> Update:
        one = self.members[peer]
        return Update(peer, one.boot_seq, one.incarnation, one.state, one.name, one.address)

    def learn(self, peer: PeerId, name: str, address: str) -> Member:
        one = self.members.get(peer)
        if one is None:
            one = self.members[peer] = Member(progress_at=self.ctx.now)
            self._order.insert(self.ctx.rng.randrange(len(self._order) + 1), peer)
        if name:
            one.name = self.ctx.names[peer] = name
        if address:
            one.address = self.dialling.addresses[peer] = address
        return one

    # -------------------------------------------------------------- links

    def on_hello(
        self, peer: PeerId, boot_seq: int, name: str, address: str, *, newcomer: bool
    ) -> None:
        """A link's other end said who it is: that it lives, and since which start."""
        one = self.learn(peer, name, address)
        self.dialling.enough(peer)
        if boot_seq > one.boot_seq:
            one.boot_seq, one.incarnation, one.progress = boot_seq, 0, -1
            self._set(peer, one, ALIVE)
        elif one.state in (SUSPECT, DEAD):
            self._probe(peer, one)
        updates = tuple(
            self._update(other)
            for other, known in self.members.items()
            if other != peer and (newcomer or known.state != ALIVE)
        )
        if updates:
            self.ctx.send(peer, Gossip(updates), urgent=False)

    def on_link_down(self, peer: PeerId, closed: bool) -> None:
        one = self.learn(peer, "", "")
        if one.state == ALIVE:
            one.incarnation = max(one.incarnation, 1)
            self._set(peer, one, SUSPECT, closing=closed)
        elif one.state == SUSPECT and closed:
            one.by_closing = True
            self._news.add(peer)
            one.deadline = min(one.deadline, self.ctx.now + self.ctx.config.closed_suspicion_s)
        if one.state != LEFT:
            self.dialling.now(peer)

    def on_dial_failed(self, peer: PeerId, refused: bool) -> None:
        one = self.learn(peer, "", "")
        if refused and one.state == SUSPECT and one.by_closing:
            one.refused = True
            if one.witnesses - {self.ctx.me}:
                self._set(peer, one, DEAD)
        if one.state == LEFT:
            self.dialling.enough(peer)
        self.dialling.failed(peer)

    def want(self, peers: Iterable[PeerId], patience_s: float) -> None:
        """Be linked to these; those that are dead are tried too, they may come back."""
        for peer in peers:
            if peer == self.ctx.me:
                continue
            one = self.learn(peer, "", "")
            self.wanted.add(peer)
            if peer not in self.ctx.links and one.state != LEFT:
                self.dialling.want(peer, patience_s)

    def tell_about(self, peer: PeerId) -> None:
        """Let a peer know what is known of it."""
        self.ctx.send(peer, Gossip((self._update(peer),)))

    def left(self, peer: PeerId) -> None:
        """It has taken its leave: neither a death nor worth dialling."""
        one = self.learn(peer, "", "")
        self.dialling.enough(peer)
        self.wanted.discard(peer)
        if one.state != LEFT:
            self._set(peer, one, LEFT)

    # -------------------------------------------------------------- probing

    def next_timer(self) -> float:
        times = [self._probe_at]
        times += [one.deadline for one in self._asked.values()]
        times += [self.members[peer].deadline for peer in self._suspects]
        return min(*times, self._news.next_timer(), self.dialling.next_timer())

    def tick(self, late_s: float) -> None:
        now = self.ctx.now
        if late_s > 0.5:
            # We were not running (a stopped process, a suspended laptop): whoever seems silent
            # has had no chance to answer.
            self.health = min(self.health + 1, MAX_HEALTH)
            for asked in self._asked.values():
                asked.deadline = max(asked.deadline, now + self.ctx.config.probe_timeout_s)
            for peer in self._suspects:
                one = self.members[peer]
                one.deadline = max(one.deadline, now + self.ctx.config.suspicion_s)
        for seq in [seq for seq, one in self._asked.items() if now >= one.deadline]:
            self._unanswered(seq)
        for peer in [p for p in self._suspects if now >= self.members[p].deadline]:
            self._condemn(peer)
        self.dialling.tick()
        if now >= self._probe_at:
            self._probe_at = now + self.ctx.jitter(self.ctx.config.probe_period_s)
            self._next_probe()
            for peer in sorted(self._suspects):
                self._probe(peer, self.members[peer])

    def _next_probe(self) -> None:
        for _ in range(len(self._order)):
            if not self._order:
                return
            peer = self._order.pop()
            if not self._order:
                self._order = list(self.members)
                self.ctx.rng.shuffle(self._order)
            one = self.members[peer]
            if peer in self.ctx.links or (one.state <= SUSPECT and peer in self.wanted):
                if one.state != SUSPECT:
                    self._probe(peer, one)
                return

    def _probe(self, peer: PeerId, one: Member) -> None:
        """Directly where there is a link, else through helpers."""
        self._seq += 1
        wait_s = self.ctx.config.probe_timeout_s * (1 + self.health)
        asked = self._asked[self._seq] = Asked(peer, self.ctx.now + wait_s)
        if peer in self.ctx.links:
            self.ctx.out.append(Probe(peer, self._seq, self._suspected(one)))
        else:
            self._ask_helpers(self._seq, asked, one)

    @staticmethod
    def _suspected(one: Member) -> int:
        return max(1, one.incarnation) if one.state in (SUSPECT, DEAD) else 0

    def _ask_helpers(self, seq: int, asked: Asked, one: Member) -> None:
        asked.indirect = True
        asked.deadline = self.ctx.now + 1.5 * self.ctx.config.probe_timeout_s * (1 + self.health)
        able = [p for p in self.ctx.links if p != asked.target and self.state(p) == ALIVE]
        k = min(self.ctx.config.indirect_probes, len(able))
        for helper in self.ctx.rng.sample(able, k):
            self.ctx.send(helper, PingReq(asked.target, seq, self._suspected(one)))

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
            if one.state == ALIVE:
                if asked.indirect and not asked.heard_helper and len(self.members) > 1:
                    # Not even the helpers answered: perhaps it is us.
                    self.health = min(self.health + 1, MAX_HEALTH)
                one.incarnation = max(one.incarnation, 1)
                self._set(asked.target, one, SUSPECT)

    def on_ack(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None:
        asked = self._asked.pop(seq, None)
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
        self._seq += 1
        deadline = self.ctx.now + self.ctx.config.probe_timeout_s
        self._asked[self._seq] = Asked(msg.target, deadline, on_behalf=(peer, msg.seq))
        self.ctx.out.append(Probe(msg.target, self._seq, msg.suspected_incarnation))

    def on_ping_ack(self, msg: PingAck) -> None:
        asked = self._asked.get(msg.seq)
        one = self.members.get(msg.target)
        if asked is None or asked.target != msg.target or one is None:
            return
        asked.heard_helper = True
        if msg.ok and msg.boot_seq >= one.boot_seq:
            del self._asked[msg.seq]
            one.boot_seq = msg.boot_seq
            self._alive(msg.target, one, msg.incarnation, msg.progress)

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
        enough = (len(self.ctx.links) + 1) // 2
        seen = one.refused or len(one.witnesses - {self.ctx.me}) >= enough
        if one.by_closing and not seen:
            one.by_closing = False
            one.deadline = self._deadline(one)
            if self.ctx.now < one.deadline:
                return
        self._set(peer, one, DEAD)

    def _deadline(self, one: Member) -> float:
        if one.by_closing:
            return one.suspect_since + self.ctx.config.closed_suspicion_s
        expected = min(2, len(self.members) - 2)
        confirmed = len(one.witnesses - {self.ctx.me})
        wait_s = timeout_s(self.ctx.config.suspicion_s, confirmed, expected, self.health)
        return one.suspect_since + wait_s

    def _set(
        self,
        peer: PeerId,
        one: Member,
        state: int,
        *,
        closing: bool = False,
        heard: bool = False,
    ) -> None:
        before, one.state = one.state, state
        if state == SUSPECT:
            one.suspect_since = self.ctx.now
            one.by_closing, one.refused = closing, False
            one.witnesses = {self.ctx.me}
            one.deadline = self._deadline(one)
            self._suspects.add(peer)
            self._probe(peer, one)
        else:
            one.deadline = float("inf")
            self._suspects.discard(peer)
        if state == DEAD:
            self.ctx.fault("peer-died", peer, f"{self.ctx.called(peer)} is dead or unreachable.")
            if peer in self.ctx.links:
                self._probe(peer, one)
        elif state == ALIVE and before == DEAD:
            self.ctx.fault("peer-back", peer, f"{self.ctx.called(peer)} is back.")
        if before != state:
            # Whoever saw it first hand tells everybody; hearsay is passed on only in a large mesh.
            if not heard or len(self.ctx.links) > SMALL:
                self._news.add(peer)
            self.ctx.changed()

    # -------------------------------------------------------------- gossip

    def flush(self) -> None:
        """Pass on what is new."""
        self._news.flush(self._update)

    def on_gossip(self, sender: PeerId, msg: Gossip) -> None:
        for news in msg.updates:
            if news.peer == self.ctx.me:
                if self.ctx.blank and news.boot_seq > self.ctx.boot_seq:
                    self.ctx.boot_seq = news.boot_seq + 1
                continue
            unknown = news.peer not in self.members
            one = self.learn(news.peer, news.name, news.address)
            if unknown and news.state >= DEAD:
                one.state = news.state  # an old story, not an event
            if news.state == SUSPECT and one.state == SUSPECT and news.boot_seq == one.boot_seq:
                one.witnesses.add(sender)
                if one.by_closing and one.refused:
                    self._set(news.peer, one, DEAD)
                else:
                    one.deadline = min(one.deadline, self._deadline(one))
            if (news.boot_seq, news.incarnation, news.state) <= one.key():
                continue
            one.boot_seq, one.incarnation = news.boot_seq, news.incarnation
            if news.state != one.state:
                self._set(news.peer, one, news.state, heard=True)
                if news.state == SUSPECT:
                    one.witnesses.add(sender)
                    one.deadline = self._deadline(one)
