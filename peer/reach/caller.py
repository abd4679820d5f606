"""The caller's side of the ladder: one session per peer that is wanted and not linked."""

from __future__ import annotations

from typing import TypeVar

from decentral.peer.reach import talk
from decentral.peer.reach.actions import LinkUp, Unreached
from decentral.peer.reach.context import Context, direct, is_loopback, punched, relayed
from decentral.peer.reach.nat import Nat
from decentral.peer.reach.own_nat import OwnNat
from decentral.peer.reach.session import ANSWER_S, INFINITY, Session
from decentral.peer.reach.ways import Punch, Way, punch
from decentral.types import PeerId, short

HEAD_START_S, NEAR_MOST_S = 0.25, 4.0
"""A peer's own addresses are tried alone for so long, if they may be of any use. Between machines
of one network no NAT is to be got around: where many dials are under way there, all are slow."""
SESSION_S = 12.0
GRANT_S = 1.5
CARRIERS, MAX_CARRIERS, MAX_AGAIN = 3, 24, 6
"""So many neighbours are asked at once to carry a call, and so many in all: in a crowd most are not
linked to just anybody, but some are. Whoever was linked before or has been called in vain is most
likely dead: when all of a mesh ask all others for it, that is the most of what they do."""
BETTER_FIRST_S, BETTER_MOST_S = 3.0, 300.0
SOON_S = 0.2
PUNCH_REST_S, PUNCH_REST_MOST_S = 60.0, 600.0
"""After a punch in vain the next one to that peer waits, twice as long each time."""
PUNCH_FIRST_S = 0.3
"""So much longer than its round trips take does a punch have before a relay is asked."""
NEAR_S = 0.1
MAX_FAILED = 256
"""So many are remembered that no way leads to, the latest."""
RUNGS = {"direct": "direct", "mapped": "direct", "punched": "punch", "relayed": "relay"}


T = TypeVar("T")


class Caller:
    def __init__(self, ctx: Context, own_nat: OwnNat) -> None:
        self.ctx, self.own_nat = ctx, own_nat
        self.sessions: dict[PeerId, Session] = {}
        self._wake = INFINITY
        """No session has anything to do before, unless something happens to it."""
        self.failed: dict[PeerId, tuple[tuple[str, str], ...]] = {}
        """Peers that no way leads to, and what each rung met."""
        self._away: dict[PeerId, None] = {}
        """Peers that a link has broken with or that no way leads to: the latest `MAX_FAILED`."""
        self._attempts: dict[int, PeerId] = {}
        self._called: dict[PeerId, float] = {}
        """Who has called us, and when: while it is at it, we need not."""
        self._better_at: dict[PeerId, tuple[float, float]] = {}
        """By peer that is linked through a relay: when to look for a better way, how long next."""
        self._no_punch: dict[PeerId, tuple[tuple[Nat, Nat], float, float]] = {}
        """By peer that could not be punched: between which NATs, until when it is not tried again,
        how long that was."""

    # ------------------------------------------------------------------------ begins

    def want(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        ctx = self.ctx
        known = self.sessions.get(peer)
        if known is not None:
            known.dialled |= set(addresses)
        elif peer not in ctx.neighbours and peer != ctx.me:
            head_start_s = self._head_start_s(addresses)
            call_at = max(ctx.now + head_start_s, self._called.get(peer, -INFINITY) + ANSWER_S)
            session = Session(peer, ctx.nonce(), ctx.now + SESSION_S, call_at)
            session.dialled = set(addresses)
            self.sessions[peer] = session

    def _head_start_s(self, addresses: tuple[str, ...]) -> float:
        if any(map(is_loopback, addresses)) and self.ctx.only_here():
            return INFINITY  # there is nothing to be got around: it answers, or it does not
        if any(map(self.ctx.near, addresses)):
            return min(HEAD_START_S * (1 + len(self.sessions) / 2), NEAR_MOST_S)
        return HEAD_START_S if any(map(self.ctx.hopeful, addresses)) else 0.0

    def doubt(self, peer: PeerId) -> None:
        """Nothing is heard on its link any more: have another one ready, if it lives."""
        ctx, neighbour = self.ctx, self.ctx.neighbours.get(peer)
        if neighbour is None or peer in self.sessions:
            return
        session = Session(peer, ctx.nonce(), ctx.now + SESSION_S, ctx.now, direct_over=True)
        session.asked.add(peer)  # no call gets through there
        self.sessions[peer] = session
        card = neighbour.card
        known = (neighbour.dialled, *(card.addresses if card is not None else ()))
        for address in dict.fromkeys(filter(None, known)):
            self._try(session, Way(kind="direct", how="dialled again", address=address))

    def direct_failed(self, peer: PeerId, says: str, there: bool) -> None:
        session = self.sessions.get(peer)
        if session is not None and there and not session.attempts:
            del self.sessions[peer]
        elif session is not None:
            session.direct_over = True
            session.dialled.clear()
            session.rungs["direct"] = says
            session.call_at = min(session.call_at, self.ctx.now)

    def forget_punches(self) -> None:
        """This machine is in another network."""
        self._no_punch.clear()

    # ------------------------------------------------------------------------ goes on

    def next_timer(self) -> float:
        return self._wake

    def _soonest(self) -> float:
        known = self.own_nat.enough
        times = [one.next_timer(known) for one in self.sessions.values()]
        return min([*times, *(at for at, _ in self._better_at.values())], default=INFINITY)

    def run(self, *, touched: bool) -> None:
        """`touched`: something may have become due but by time."""
        if not touched and self.ctx.now < self._wake:
            return
        self._go_on()
        self._wake = self._soonest()

    def _go_on(self) -> None:
        for session in list(self.sessions.values()):
            self._drive(session)
        for peer, (at, wait_s) in list(self._better_at.items()):
            if self.ctx.now < at:
                continue
            if (before := self.sessions.get(peer)) is not None:
                if not self._outdated(before):
                    self._better_at[peer] = (self.ctx.now + 1.0, wait_s)
                    continue
                self._end(before)
            self._better_at[peer] = (self.ctx.now + wait_s, min(4 * wait_s, BETTER_MOST_S))
            self._seek_better(peer)

    def _outdated(self, session: Session) -> bool:
        """What it tries was chosen by what was known of the NATs then."""
        neighbour = self.ctx.neighbours.get(session.peer)
        card = None if neighbour is None else neighbour.card
        return session.better and card is not None and session.nats != (self.ctx.nat, card.nat)

    def _seek_better(self, peer: PeerId) -> None:
        """A relayed link tries to become another one, over itself."""
        ctx = self.ctx
        if peer in ctx.neighbours:
            self.sessions[peer] = Session(
                peer, ctx.nonce(), ctx.now + SESSION_S, ctx.now, better=True
            )

    def _drive(self, session: Session) -> None:
        """Whatever is due."""
        now = self.ctx.now
        if session.to_call() and now >= session.call_at and self.own_nat.fresh():
            self._call(session)
        if now >= session.answer_by():
            session.call_over = True
            session.rungs["signal"] = "no answer to the call"
        if now >= session.punch_at and session.punch is not None and session.answer is not None:
            session.punch_at = INFINITY
            self._try(session, punched(session.answer.card, session.punch))
        if now >= session.grant_by and session.waits_for is not None:
            session.rungs["relay"] = f"{short(session.waits_for[0])} does not answer"
            session.waits_for, session.grant_by = None, INFINITY
            session.relay_at = now
        if now >= session.relay_at:
            session.relay_at = INFINITY
            self._ask_relay(session)
        if session.over() or now >= session.deadline:
            self._end(session)

    def _end(self, session: Session) -> None:
        del self.sessions[session.peer]
        for attempt in session.attempts:
            self._attempts.pop(attempt, None)
        if session.peer not in self.ctx.neighbours:
            rungs = tuple(session.rungs.items())
            _remember(self.failed, session.peer, rungs)
            _remember(self._away, session.peer, None)
            self.ctx.out.append(Unreached(session.peer, rungs))

    def _try(self, session: Session, way: Way) -> None:
        attempt = self.ctx.connect(session.peer, way)
        session.attempts[attempt] = way
        self._attempts[attempt] = session.peer

    # ------------------------------------------------------------------------ the call

    def _call(self, session: Session) -> None:
        ctx = self.ctx
        if session.better:
            paths = [session.peer]
        else:
            left = sorted(ctx.neighbours.keys() - session.asked)
            in_all = MAX_AGAIN if session.peer in self._away else MAX_CARRIERS
            most = max(0, min(CARRIERS, in_all - len(session.asked), len(left)))
            paths = ctx.rng.sample(left, most)
        if not paths:
            session.call_over = session.no_path = True
            session.rungs["signal"] = "no linked peer is linked to it"
            return
        session.rungs.pop("signal", None)
        session.called_at = ctx.now
        call = talk.Call(session.nonce, ctx.card(), ctx.reachable_relays())
        for path in paths:
            session.asked.add(path)
            ctx.signal(session.peer, path, call)
        if not session.better and not session.relays and not ctx.nat.open:
            # It takes a round trip to get a relay: have one ready, at no cost to it.
            session.relays = self._relays_to(())
            self._ask_relay(session)

    def on_lost(self, carrier: PeerId, to: PeerId) -> None:
        """A neighbour that was to carry the call is not linked to it."""
        session = self.sessions.get(to)
        if session is None or session.answer is not None or carrier not in session.asked:
            return
        session.lost.add(carrier)
        if session.asked <= session.lost and not session.call_over and not session.better:
            self._call(session)  # others may know it

    def yields(self, peer: PeerId) -> bool:
        """It calls us while we call it: of two calls the one by the lower id goes on. False: it is
        ours."""
        own = self.sessions.get(peer)
        self._called = {p: at for p, at in self._called.items() if at > self.ctx.now - ANSWER_S}
        self._called[peer] = self.ctx.now
        if own is None or own.answer is not None:
            return True
        if own.called_at is not None and not own.call_over and self.ctx.me < peer:
            return False
        own.wait(self.ctx.now, self.ctx.nonce())
        return True

    def _signal(self, session: Session, message: talk.Signal) -> None:
        """By all that carry for this session: one may have died, or lie. The quickest counts."""
        for path in sorted((session.asked - session.lost) & self.ctx.neighbours.keys()):
            self.ctx.signal(session.peer, path, message)

    def on_answer(self, peer: PeerId, answer: talk.Answer) -> None:
        ctx, session = self.ctx, self.sessions.get(peer)
        if session is None or session.nonce != answer.nonce or session.answer is not None:
            return
        if session.called_at is None:
            return  # it has called us meanwhile
        session.answer, session.call_over = answer, True
        session.rtt_s = ctx.now - session.called_at
        for address in answer.card.addresses:
            if address not in session.dialled:
                self._try(session, direct(answer.card, address, "dialled"))
        plan = self._plan(session, answer.card)
        if plan is not None:
            mine, theirs = plan
            part = (theirs.from_listening_port, theirs.sockets, theirs.spray)
            self._signal(session, talk.GoPunch(session.nonce, *part))
            session.punch, session.punch_at = mine, ctx.now + session.rtt_s / 2
            session.nats = (ctx.nat, answer.card.nat)
        if not session.better:
            session.relays = self._relays_to(answer.relays)
            # A punch that is likely to work needs a round trip or two, and has a right to them.
            unknown = "unknown" in (ctx.nat.mapping, answer.card.nat.mapping)
            likely = (plan is not None and not unknown) or ctx.nat.open or answer.card.nat.open
            session.relay_at = ctx.now
            if likely:
                session.relay_at += PUNCH_FIRST_S + 1.5 * session.rtt_s
            elif plan is not None:  # between near ones it is over in no time
                session.relay_at += max(0.0, NEAR_S - session.rtt_s)

    def _plan(self, session: Session, card: talk.Card) -> tuple[Punch, Punch] | None:
        mine, theirs = self.ctx.nat, card.nat
        plan = punch(mine, theirs)
        between, until, _ = self._no_punch.get(session.peer, (None, 0.0, 0.0))
        if plan is not None and self.ctx.now < until and between == (mine, theirs):
            session.rungs["punch"] = "failed before; tried again later"
            return None
        if plan is not None and not self.ctx.may_celebrate(plan[0]):
            session.rungs["punch"] = "too many others are being tried; tried again later"
            return None
        if plan is None and mine.symmetric and theirs.symmetric:
            session.rungs["punch"] = "both NATs give every connection another port"
        elif plan is None:
            session.rungs["punch"] = f"none between {mine.called()} and {theirs.called()}"
        return plan

    # ------------------------------------------------------------------------ relays

    def _relays_to(self, offered: tuple[tuple[PeerId, str], ...]) -> list[tuple[PeerId, str, str]]:
        """Volunteers that we can ask; those that the other end has dialled too come first."""
        theirs = dict(offered)
        found = []
        for peer, one in sorted(self.ctx.neighbours.items()):
            if one.card is not None and one.card.relays:
                at = one.dialled or theirs.get(peer) or next(iter(one.card.addresses), "")
                if at:
                    found.append((peer, at, theirs.get(peer, at)))
        found.sort(key=lambda one: one[0] not in theirs)
        return found[: talk.MAX_RELAYS]

    def _ask_relay(self, session: Session) -> None:
        ctx = self.ctx
        if any(way.kind == "relayed" for way in session.attempts.values()):
            return
        if session.granted is not None and session.answer is not None:
            self._meet(session, session.answer, *session.granted)
            return
        while session.relays and session.waits_for is None and session.granted is None:
            relay = session.relays.pop(0)
            if relay[0] in ctx.neighbours and relay[0] not in session.relays_asked:
                session.relays_asked.add(relay[0])
                session.waits_for, session.grant_by = relay, ctx.now + GRANT_S
                ctx.say(relay[0], talk.RelayWanted(session.peer))
        if session.waits_for is None and session.granted is None:
            session.rungs.setdefault("relay", "no linked peer relays")

    def on_grant(self, peer: PeerId, grant: talk.RelayGrant) -> None:
        session = self.sessions.get(grant.to)
        if session is None or session.waits_for is None or session.waits_for[0] != peer:
            return
        relay, at, _ = session.waits_for
        session.waits_for, session.grant_by = None, INFINITY
        if grant.token:
            session.granted = (relay, at, grant.token)
        else:
            session.rungs["relay"] = grant.says
        if session.answer is not None and session.relay_at == INFINITY:
            session.relay_at = self.ctx.now  # it was waited for, or another one must be

    def _meet(
        self, session: Session, answer: talk.Answer, relay: PeerId, at: str, token: bytes
    ) -> None:
        """Both ends dial the relay."""
        session.granted = None
        theirs = dict(answer.relays)
        meet = talk.GoRelay(session.nonce, relay, theirs.get(relay, at), token)
        self._signal(session, meet)
        self._try(session, relayed(relay, short(relay), at, token, 0))

    # ------------------------------------------------------------------------ how it ends

    def way_failed(self, attempt: int, says: str) -> None:
        peer = self._attempts.pop(attempt, None)
        session = None if peer is None else self.sessions.get(peer)
        way = None if session is None else session.attempts.pop(attempt, None)
        if session is None or way is None:
            return
        session.rungs[RUNGS[way.kind]] = says
        if way.kind == "punched":
            self._rest(session)
        if way.kind == "relayed" or (way.kind == "punched" and not session.better):
            session.relay_at = self.ctx.now

    def _rest(self, session: Session) -> None:
        between, _, rest_s = self._no_punch.get(session.peer, (None, 0.0, 0.0))
        rest_s = min(2 * rest_s, PUNCH_REST_MOST_S) if between == session.nats else PUNCH_REST_S
        if session.nats is not None:
            self._no_punch[session.peer] = (session.nats, self.ctx.now + rest_s, rest_s)

    def more_is_known(self, peer: PeerId | None = None) -> None:
        """Of its NAT, or of ours: another way than a relay may be open now."""
        for one, (at, wait_s) in self._better_at.items():
            session = self.sessions.get(one)
            if peer in (None, one) and (session is None or self._outdated(session)):
                self._better_at[one] = (min(at, self.ctx.now + SOON_S), wait_s)

    def link_up(self, event: LinkUp) -> None:
        peer, kind = event.peer, event.way.kind
        self.failed.pop(peer, None)
        self._away.pop(peer, None)
        if kind == "punched":
            self._no_punch.pop(peer, None)
        session = self.sessions.get(peer)
        if session is not None and kind != "relayed":
            self._end(session)
        elif session is not None:  # a punch may still be under way: let it end by itself
            session.relays, session.relay_at, session.better = [], INFINITY, True
            session.granted = None
            for attempt in [n for n, way in session.attempts.items() if way.kind == "relayed"]:
                del session.attempts[attempt], self._attempts[attempt]
        for other in self.sessions.values():
            if other.no_path:  # here is somebody who may carry its call
                other.call_over = other.no_path = False
                other.called_at, other.call_at = None, self.ctx.now
        self._better_at.pop(peer, None)
        if kind == "relayed" and self.ctx.me < peer:
            self._better_at[peer] = (self.ctx.now + BETTER_FIRST_S, 4 * BETTER_FIRST_S)

    def link_down(self, peer: PeerId) -> None:
        self._better_at.pop(peer, None)
        _remember(self._away, peer, None)
        session = self.sessions.get(peer)
        if session is not None and session.better:  # what it was to replace is gone
            del self.sessions[peer]
        for other in list(self.sessions.values()):
            if peer in other.asked:
                self.on_lost(peer, other.peer)


def _remember(known: dict[PeerId, T], peer: PeerId, what: T) -> None:
    """As the latest of at most `MAX_FAILED`."""
    known.pop(peer, None)
    known[peer] = what
    if len(known) > MAX_FAILED:
        del known[next(iter(known))]
