"""The ladder: from "a link to this peer is wanted" to a link, by the best way that there is.

    caller                     neighbour of both                          callee
      │ ── r/call: card, nonce ──▶ │ ────────────────────────────────────▶ │ dials the caller
      │ ◀──────────────────────────│◀──────────── r/answer: card ───────── │
      │ dials the callee's addresses                                       │
      │ ── r/punch ──────────────▶ │ ────────────────────────────────────▶ │ opens at once
      │ opens half a round trip later                                      │
      │ ── r/relay ─▶ a volunteer ── r/grant: token ─▶ │                   │
      │ ── r/meet: token ────────▶ │ ────────────────────────────────────▶ │ both dial the volunteer

Of two peers that call each other the one with the lower id goes on. Signals are hints: whoever
forges one wastes an attempt, because a link is made only with the peer that holds the key.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

from decentral.errors import ProtocolError
from decentral.peer.reach import actions as a
from decentral.peer.reach import talk
from decentral.peer.reach.callee import Callee
from decentral.peer.reach.caller import Caller
from decentral.peer.reach.context import Context, Neighbour
from decentral.peer.reach.own_nat import OwnNat
from decentral.peer.reach.service import Service
from decentral.peer.reach.session import INFINITY
from decentral.types import PeerId


class Reach:
    """All of one peer's ladders, what it knows of its NAT, and what it does for others."""

    def __init__(self, me: PeerId, rng: Random, *, relays: str = "auto") -> None:
        """`relays`: "on", "off", or "auto", which means where strangers get in."""
        self.ctx = Context(me, rng, relays)
        self.own_nat = OwnNat(self.ctx)
        self.caller = Caller(self.ctx, self.own_nat)
        self.callee = Callee(self.ctx, self.caller, self.own_nat)
        self.service = Service(self.ctx)
        self._heard_last: talk.Message | None = None

    def handle(self, event: a.Event, now: float, clock_s: float = 0.0) -> list[a.Action]:
        """`now`: monotonic; `clock_s`: Unix time."""
        ctx = self.ctx
        ctx.now, ctx.clock_s, ctx.out = now, clock_s, []
        nat = ctx.nat
        self._take(event)
        self.own_nat.run()
        if ctx.nat != nat:
            self.caller.more_is_known()
        self.callee.run()
        self.caller.run(touched=ctx.nat != nat or not self._concerns_others(event))
        return ctx.out

    def next_timer(self) -> float | None:
        at = min(self.caller.next_timer(), self.own_nat.next_timer())
        return None if at == INFINITY else at

    def _concerns_others(self, event: a.Event) -> bool:
        """No session of ours: most of what is heard in a crowd is carried for somebody."""
        if not isinstance(event, a.Heard):
            return False
        kind = self._heard_last
        return isinstance(kind, talk.Card | talk.Knock | talk.RelayWanted) or (
            isinstance(kind, talk.Pass) and kind.to != self.ctx.me
        )

    def _take(self, event: a.Event) -> None:
        match event:
            case a.Want(peer, addresses):
                self.caller.want(peer, addresses)
            case a.Doubt(peer):
                self.caller.doubt(peer)
            case a.DirectFailed(peer, says, there):
                self.caller.direct_failed(peer, says, there)
            case a.LinkUp():
                self._link_up(event)
            case a.LinkDown(peer):
                self.ctx.neighbours.pop(peer, None)
                self.caller.link_down(peer)
            case a.Heard(peer, payload):
                neighbour = self.ctx.neighbours.get(peer)
                if neighbour is not None:
                    self._heard_last = talk.unpack(payload)
                    self._heard(peer, neighbour, self._heard_last)
            case a.WayFailed(attempt, says):
                self.caller.way_failed(attempt, says)
            case a.Observed(observer, address):
                self.own_nat.observed(observer, address)
            case a.KnockDone(asker, address, got_in):
                self.service.knock_done(asker, address, got_in)
            case a.RelayEnded(token):
                self.service.relay_ended(token)
            case a.Moved(addresses, networks):
                self.ctx.addresses, self.ctx.networks = addresses, networks
                self.caller.forget_punches()
                self.own_nat.moved()
                self.ctx.tell_all()
            case a.Mapped(address):
                if address != self.ctx.mapped:
                    self.ctx.mapped = address
                    self.ctx.tell_all()
                    self.ctx.out.append(a.NatLearned())
            case a.Tick():
                pass

    def _link_up(self, event: a.LinkUp) -> None:
        """A link, or a better one in the place of another."""
        known = self.ctx.neighbours.get(event.peer)
        fresh = Neighbour(event.way, event.dialled, event.remote)
        if known is not None:
            fresh.card, fresh.skew_s = known.card, known.skew_s
        self.ctx.neighbours[event.peer] = fresh
        self.caller.link_up(event)
        if known is None:
            self.ctx.say(event.peer, self.ctx.card())
        if event.dialled:
            self.own_nat.observers_changed()
        elif event.way.kind == "direct" and event.remote:  # it came to us
            self.own_nat.came_in(event.remote)

    def _heard(self, peer: PeerId, neighbour: Neighbour, message: talk.Message) -> None:
        match message:
            case talk.Card():
                neighbour.card, neighbour.skew_s = message, message.clock_s - self.ctx.clock_s
                self.caller.more_is_known(peer)
            case talk.Pass(to, origin, signal) if to == self.ctx.me:
                with suppress(ProtocolError):  # its origin's fault, not that of who carried it
                    self._signalled(origin, peer, talk.unpack(signal))
            case talk.Pass(_, origin, _):
                if origin != peer:
                    raise ProtocolError("a signal names another origin than who sent it")
                self.service.carry(peer, neighbour, message)
            case talk.Lost(to):
                self.caller.on_lost(peer, to)
            case talk.Knock(address):
                self.service.knock(peer, neighbour, address)
            case talk.Knocked(_, got_in):
                self.own_nat.knocked(peer, got_in)
            case talk.RelayWanted(to):
                self.service.relay(peer, to)
            case talk.RelayGrant():
                self.caller.on_grant(peer, message)
            case _:
                self._signalled(peer, peer, message)

    def _signalled(self, peer: PeerId, via: PeerId, signal: talk.Message) -> None:
        match signal:
            case talk.Call():
                self.callee.on_call(peer, via, signal)
            case talk.Answer():
                self.caller.on_answer(peer, signal)
            case talk.GoPunch() | talk.GoRelay():
                self.callee.on_go(peer, signal)
            case _:
                raise ProtocolError("this message about reaching is not for being passed on")
