"""What a peer does for its neighbours: carries their signals, knocks at their doors, relays."""

from __future__ import annotations

from decentral.peer.reach import talk
from decentral.peer.reach.actions import KnockAt, OfferRelay
from decentral.peer.reach.context import Context, Neighbour
from decentral.peer.reach.nat import host_of
from decentral.types import PeerId, short

PASSES_PER_S = 50
KNOCKS_AT_ONCE = 4
MAX_RELAYED = 64
RELAYED_PER_PEER = 16


class Service:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.relaying: dict[bytes, tuple[PeerId, PeerId]] = {}
        """By token: the pairs that this peer relays for, or has promised to; who asked is first,
        and the only one whose share it is."""

    def carry(self, peer: PeerId, neighbour: Neighbour, passed: talk.Pass) -> None:
        """For a neighbour, to a neighbour; no signal goes further than that."""
        ctx = self.ctx
        if ctx.now >= neighbour.passes_from + 1.0:
            neighbour.passes, neighbour.passes_from = 0, ctx.now
        neighbour.passes += 1
        if passed.to in ctx.neighbours and neighbour.passes <= PASSES_PER_S:
            ctx.say(passed.to, passed)
        else:
            ctx.say(peer, talk.Lost(passed.to))

    def knock(self, peer: PeerId, neighbour: Neighbour, address: str) -> None:
        """At its own door only: where else we get in is nobody's business."""
        if host_of(address) != host_of(neighbour.remote):
            self.ctx.say(peer, talk.Knocked(address, False))
        elif neighbour.knocks < KNOCKS_AT_ONCE:
            neighbour.knocks += 1
            self.ctx.out.append(KnockAt(peer, address))

    def knock_done(self, asker: PeerId, address: str, got_in: bool) -> None:
        neighbour = self.ctx.neighbours.get(asker)
        if neighbour is not None:
            neighbour.knocks = max(0, neighbour.knocks - 1)
            self.ctx.say(asker, talk.Knocked(address, got_in))

    def relay(self, peer: PeerId, to: PeerId) -> None:
        """Carry the bytes of these two, which we cannot read."""
        ctx, name = self.ctx, short(self.ctx.me)
        mine = sum(peer == asker for asker, _ in self.relaying.values())
        says = ""
        if not ctx.volunteers:
            says = f"{name} does not relay"
        elif to not in ctx.neighbours or to == peer:
            says = f"{name} is not linked to {short(to)}"
        elif len(self.relaying) >= MAX_RELAYED or mine >= RELAYED_PER_PEER:
            says = f"{name} relays for as many as it can"
        token = b"" if says else ctx.rng.randbytes(talk.TOKEN_BYTES)
        if token:
            self.relaying[token] = (peer, to)
            ctx.out.append(OfferRelay(token, (peer, to)))
        ctx.say(peer, talk.RelayGrant(to, token, says))

    def relay_ended(self, token: bytes) -> None:
        self.relaying.pop(token, None)
