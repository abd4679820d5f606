"""The callee's side: answers calls, dials back, and does what the caller's signals say."""

from __future__ import annotations

from dataclasses import dataclass, field

from decentral.peer.reach import talk
from decentral.peer.reach.caller import CARRIERS, SESSION_S, Caller
from decentral.peer.reach.context import Context, direct, punched, relayed
from decentral.peer.reach.own_nat import OwnNat
from decentral.peer.reach.ways import RANK, Punch
from decentral.types import PeerId, short

MAX_CALLS = 256
CALLS_PER_CARRIER = 64
CALLS_PER_PEER = 4
"""Of calls that have not run out: each has us dial what its card says."""
DIALS_AT_ONCE, DIAL_S = 256, 5.0


@dataclass(slots=True)
class _Called:
    """Somebody called us: what we need to follow its signals."""

    peer: PeerId
    paths: list[PeerId]
    """Who brought it, the quickest first."""
    call: talk.Call
    until: float
    answer: talk.Answer | None = None
    punched: bool = False
    met: set[bytes] = field(default_factory=set)
    """Relays that it had us dial, by token."""


class Callee:
    def __init__(self, ctx: Context, caller: Caller, own_nat: OwnNat) -> None:
        self.ctx, self.caller, self.own_nat = ctx, caller, own_nat
        self._calls: dict[bytes, _Called] = {}
        self._dialled_at: list[float] = []

    def on_call(self, peer: PeerId, via: PeerId, call: talk.Call) -> None:
        ctx = self.ctx
        self._calls = {n: one for n, one in self._calls.items() if one.until > ctx.now}
        if call.nonce in self._calls:
            self._again(self._calls[call.nonce], peer, via)
            return
        if self._too_many(peer, via):
            return
        if peer == ctx.me or not self.caller.yields(peer):
            return
        self._calls[call.nonce] = _Called(peer, [via], call, ctx.now + SESSION_S)
        linked, own = ctx.neighbours.get(peer), self.caller.sessions.get(peer)
        # Who calls through others has no link to us, or none that works.
        if linked is None or via != peer or RANK[linked.way.kind] > RANK["direct"]:
            known = own.dialled if own is not None else ()
            left = [one for one in call.card.addresses if one not in known]
            for address in left[: self._dials_left()]:
                self._dialled_at.append(ctx.now)
                ctx.connect(peer, direct(call.card, address, "dialled back"))

    def _again(self, called: _Called, peer: PeerId, via: PeerId) -> None:
        """Another neighbour brings it too, and can bring the answer: the first may not."""
        if called.peer == peer and via not in called.paths and len(called.paths) < CARRIERS:
            called.paths.append(via)
            if called.answer is not None:
                self.ctx.signal(peer, via, called.answer)

    def _dials_left(self) -> int:
        self._dialled_at = [at for at in self._dialled_at if at > self.ctx.now - DIAL_S]
        return DIALS_AT_ONCE - len(self._dialled_at)

    def _too_many(self, peer: PeerId, via: PeerId) -> bool:
        calls = self._calls.values()
        return (
            len(calls) >= MAX_CALLS
            or sum(one.peer == peer for one in calls) >= CALLS_PER_PEER
            or sum(one.paths[0] == via for one in calls) >= CALLS_PER_CARRIER
        )

    def run(self) -> None:
        """Answer, as soon as what the answer says is known."""
        due = [one for one in self._calls.values() if one.answer is None]
        if not due or not self.own_nat.fresh():
            return
        for one in due:
            one.answer = talk.Answer(one.call.nonce, self.ctx.card(), self.ctx.reachable_relays())
            for path in one.paths:
                self.ctx.signal(one.peer, path, one.answer)

    def on_go(self, peer: PeerId, go: talk.GoPunch | talk.GoRelay) -> None:
        called, ctx = self._calls.get(go.nonce), self.ctx
        if called is None or called.peer != peer or called.until < ctx.now:
            return
        if isinstance(go, talk.GoRelay):
            fresh = go.token not in called.met and len(called.met) < talk.MAX_RELAYS
            if fresh and (peer not in ctx.neighbours or peer not in called.paths):
                called.met.add(go.token)
                ctx.connect(peer, relayed(go.relay, short(go.relay), go.address, go.token, 1))
        elif called.call.card.nat.address and not called.punched:
            part = Punch(go.from_listening_port, go.sockets, go.spray)
            if ctx.may_celebrate(part):
                called.punched = True
                ctx.connect(peer, punched(called.call.card, part))
