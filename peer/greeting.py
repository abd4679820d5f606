"""Who is at the other end of a link, and whose log is ahead: the first words on every link.

LinkUp ──▶ Hello ⇄ Hello ──▶ same lineage: whoever is behind catches up
                         ──▶ another lineage: whoever loses asks for the other's log
                         ──▶ another recipe, or an older process: Refuse
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.peer import messages as m
from decentral.peer.context import Peering
from decentral.peer.protocol import CloseLink
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.peer.core import PeerCore


class Greeting:
    def __init__(self, core: PeerCore) -> None:
        self.core = core
        self.ctx = core.ctx
        self._known = (False, "", core.ctx.boot_seq)

    def standing(self) -> m.Hello:
        ctx, state = self.ctx, self.core.replica.state
        samples, lineage, ancestry = self.core.replica.standing()
        return m.Hello(
            run=ctx.config.run,
            fingerprint=ctx.config.fingerprint,
            boot=ctx.boot,
            boot_seq=ctx.boot_seq,
            name=ctx.name,
            address=ctx.address,
            member=self.core.replica.member,
            lineage=lineage,
            epoch=0 if state is None else state.view.epoch,
            slot=self.core.replica.slot,
            round=0 if state is None else state.round,
            samples=samples,
            ancestry=ancestry,
        )

    def greet_again(self) -> None:
        """Tell everybody when our standing is another one than they know."""
        replica = self.core.replica
        known = (replica.member, replica.lineage, self.ctx.boot_seq)
        if known != self._known:
            self._known = known
            self.ctx.send_all(sorted(self.ctx.links), self.standing())

    def link_up(self, peer: PeerId, known_as: str, address: str) -> None:
        ctx = self.ctx
        if peer == ctx.me:
            return
        ctx.links.setdefault(peer, Peering(ctx.now))
        self.core.membership.learn(peer, known_as, address)
        ctx.send(peer, self.standing())
        ctx.changed()

    def on_hello(self, peer: PeerId, peering: Peering, msg: m.Hello) -> None:
        refusal = ""
        if msg.run != self.ctx.config.run:
            refusal = "this is another run"
        elif msg.fingerprint != self.ctx.config.fingerprint:
            refusal = (
                f"recipe, model or options differ: the run's fingerprint is "
                f"{self.ctx.config.fingerprint.hex()[:16]}, yours is {msg.fingerprint.hex()[:16]}"
            )
        known = self.core.membership.members.get(peer)
        if known is not None and msg.boot_seq < known.boot_seq:
            if msg.lineage == "":
                # Its disk was wiped: tell it how often it has started before.
                self.core.membership.tell_about(peer)
                return
            refusal = "a newer process with this identity is running already"
        if refusal:
            # Only members speak for the run; two newcomers cannot tell who is wrong.
            if self.core.replica.member:
                self.ctx.send(peer, m.Refuse(refusal))
            if self.core.replica.member or msg.run != self.ctx.config.run:
                self.ctx.out.append(CloseLink(peer, refusal))
            return
        first, peering.hello = peering.hello is None, msg
        if first:
            self.core.duties.greet(peer)
        if first or (known is not None and msg.boot_seq != known.boot_seq):
            self.core.coordination.forget(peer)
            self.core.membership.on_hello(
                peer,
                msg.boot_seq,
                msg.name,
                msg.address,
                newcomer=not msg.member or msg.lineage != self.core.replica.lineage,
            )
        peering.hello_at = self.ctx.now
        self.ctx.changed()
        if msg.member and msg.lineage:
            self._compare(peer, msg)

    def _compare(self, peer: PeerId, msg: m.Hello) -> None:
        """Two logs meet: whoever is behind, or in the lineage that loses, asks the other."""
        if msg.lineage == self.core.replica.lineage:
            if self.core.replica.member:
                self.core.replica.in_step(peer, msg.lineage, msg.slot)
            elif msg.slot > self.core.replica.slot:
                self.core.join.ask_at = 0.0
        elif self.core.replica.member:
            self.core.join.meet(peer, msg)
        else:
            self.core.join.ask_at = 0.0

    def on_refuse(self, peer: PeerId, msg: m.Refuse) -> None:
        if not self.core.replica.member:
            self.ctx.fault("refused", peer, f"{self.ctx.called(peer)} refuses: {msg.says}")
        self.ctx.out.append(CloseLink(peer, msg.says))
