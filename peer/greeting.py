"""Who is at the other end of a link, and whose log is ahead: the first words on every link.

LinkUp ──▶ Hello ⇄ Hello ──▶ same lineage: whoever is behind catches up
                         ──▶ another lineage: whoever loses asks for the other's log
                         ──▶ another recipe, or an older process: Refuse
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.peer import messages as m
from decentral.peer.context import Peering
from decentral.peer.protocol import CloseLink, Fenced
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.peer.core import PeerCore


class Greeting:
    def __init__(self, core: PeerCore) -> None:
        self.core = core
        self.ctx = core.ctx
        self._known = (False, "", core.ctx.boot_seq)
        self._compared_at = -1
        self._boots: dict[PeerId, tuple[int, bytes]] = {}
        """Which process of each identity we have met last: (start, nonce)."""
        self._fenced_by: set[PeerId] = set()
        """Who says that another process runs with our identity."""

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
            samples=samples,
            ancestry=ancestry,
        )

    def moved(self, address: str) -> None:
        """Those we are linked to should know where to look for us."""
        if address != self.ctx.address:
            self.ctx.address = address
            self.ctx.send_all(sorted(self.ctx.links), self.standing())

    def greet_again(self) -> None:
        """Tell everybody when our standing is another one than they know."""
        ctx, replica = self.ctx, self.core.replica
        if self._compared_at == ctx.standings:
            return
        self._compared_at = ctx.standings
        known = (replica.member, replica.lineage, ctx.boot_seq)
        if known != self._known:
            self._known = known
            ctx.send_all(sorted(ctx.links), self.standing())

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
        elif msg.fingerprint != self.ctx.config.fingerprint and not self._watches(msg):
            refusal = (
                f"recipe, model or options differ: the run's fingerprint is "
                f"{self.ctx.config.fingerprint.hex()[:16]}, yours is {msg.fingerprint.hex()[:16]}"
            )
        known = self.core.membership.members.get(peer)
        if known is not None and msg.boot_seq < known.boot_seq and msg.lineage == "":
            # Its disk was wiped: tell it how often it has started before.
            self.core.membership.tell_about(peer)
            return
        fenced = not refusal and self._is_clone(peer, msg)
        if fenced:
            refusal = "another process with this identity has started since, or runs beside it"
        if refusal:
            # Only members speak for the run; two newcomers cannot tell who is wrong.
            if self.core.replica.member:
                self.ctx.send(peer, m.Refuse(refusal, msg.boot if fenced else b""))
            if self.core.replica.member or msg.run != self.ctx.config.run:
                self.ctx.out.append(CloseLink(peer, refusal))
            return
        first = peering.hello is None
        self.ctx.greeted(peer, msg)
        if first:
            self.core.duties.greet(peer)
        if not first:
            self.core.membership.learn(peer, msg.name, msg.address)
        if first or (known is not None and msg.boot_seq != known.boot_seq):
            for coordination in self.core.coordination.values():
                coordination.forget(peer)
            self.core.membership.on_hello(
                peer,
                msg.boot_seq,
                msg.name,
                msg.address,
                # From members newcomers get a snapshot, which says who is there.
                everything=not msg.member and not self.core.replica.member,
            )
        self.ctx.changed()
        if msg.lineage:
            self._compare(peer, msg)

    def _watches(self, msg: m.Hello) -> bool:
        """One of the two has no recipe, and no part in what the recipe is about."""
        return self.ctx.config.spectator or not (msg.member or msg.fingerprint)

    def _is_clone(self, peer: PeerId, msg: m.Hello) -> bool:
        """Whether we have met a newer start of this identity, or another process of the same start:
        a home that was copied. Of such twins each member knows the one it met first. Hearsay does
        not count: it would be enough to have a living peer turned away."""
        boot_seq, boot = self._boots.get(peer, (0, b""))
        if msg.boot_seq < boot_seq or (msg.boot_seq == boot_seq and msg.boot != boot):
            return True
        self._boots[peer] = (msg.boot_seq, msg.boot)
        return False

    def _compare(self, peer: PeerId, msg: m.Hello) -> None:
        """Two logs meet: whoever is behind, or in the lineage that loses, asks the other."""
        if msg.lineage == self.core.replica.lineage:
            # Also with who has left: nobody else may know who the members are now.
            self.core.replica.in_step(peer, msg.lineage, msg.slot)
        elif self.core.replica.member and not msg.member:
            self.core.join.note_met(peer, msg)  # it is on its way over already
        elif self.core.replica.member:
            self.core.join.meet(peer, msg)
        elif msg.member:
            self.core.join.ask_at = 0.0

    def on_refuse(self, peer: PeerId, msg: m.Refuse) -> None:
        if msg.fences not in (b"", self.ctx.boot):
            return  # meant for our twin
        state = self.core.replica.state
        alone = state is not None and len(state.view.members) <= 2
        if msg.fences:
            self._fenced_by.add(peer)
        if msg.fences and len(self._fenced_by) < (1 if alone else 2):
            says = f"{self.ctx.called(peer)} alone says that another process has this identity."
            self.ctx.fault("refused", peer, says)
        elif msg.fences:
            says = (
                f"{self.ctx.called(peer)} knows another process with this peer's identity: this "
                f"one must not vote. Was its home copied? Start one of the two with another home."
            )
            self.ctx.out.append(Fenced(says))
            self.core.fenced = True
        elif not self.core.replica.member:
            self.ctx.fault("refused", peer, f"{self.ctx.called(peer)} refuses: {msg.says}")
        self.ctx.out.append(CloseLink(peer, msg.says))
