"""When to look at our own NAT, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

from decentral.peer.reach import talk
from decentral.peer.reach.actions import NatLearned, Probe
from decentral.peer.reach.context import Context
from decentral.peer.reach.nat import AskKnock, Nat, NatStudy, Observe, Step, host_of
from decentral.peer.reach.session import INFINITY
from decentral.types import PeerId

FRESH_S = 45.0
"""A NAT may forget our port: observations older than this are made again before a call."""
PATIENCE_S, STUDY_S = 2.5, 10.0
"""No call waits longer for a look; and how long a look takes at most."""
KNOCK_S = 0.4
"""Beyond a probe's time, how long knocks may hold up the second probe."""
SILENCE_S = 2.0
"""Beyond this, knocks that hold up nothing will not get in either."""


class OwnNat:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._study: NatStudy | None = None
        self._told = ctx.nat
        """What others have been told."""
        self._began = 0.0
        self._ended = -INFINITY
        self._looked_through: frozenset[str] = frozenset()
        """The hosts that had been observers in the last look."""
        self._contacted: set[str] = set()
        """The hosts that our listening port has contacted, from this network."""

        self._saw_far = False
        """The last look was through observers that are not near."""
        self._asked_at = 0.0
        self._knocks_by = INFINITY

    @property
    def enough(self) -> bool:
        """Whether what a call has to tell is known: our address. The rest is not waited for: a
        relay does without, and a better way is looked for later."""
        study = self._study
        if study is None or self.ctx.now >= self._began + PATIENCE_S:
            return True
        return bool(study.nat.address)

    def next_timer(self) -> float:
        if self._study is None:
            return INFINITY
        patience = INFINITY if self.enough else self._began + PATIENCE_S
        knocks = self._knocks_by if self._study.knocking else INFINITY
        return min(self._began + STUDY_S, patience, knocks)

    def run(self) -> None:
        study, now = self._study, self.ctx.now
        if study is not None and study.knocking and now >= self._knocks_by:
            self._go_on(study.knocks_over())
        if self._study is not None and now >= self._began + STUDY_S:
            self._end()

    def fresh(self) -> bool:
        """Whether what is known of our outer address can be relied on; else a look begins."""
        if self._study is not None:
            return self.enough
        if self.ctx.nat.mapping == "none" or self.ctx.now < self._ended + FRESH_S:
            return True
        self._begin()
        return self._study is None

    def moved(self) -> None:
        """Another network, another NAT."""
        self.ctx.nat = self._told = Nat()
        self._study, self._ended, self._looked_through = None, -INFINITY, frozenset()
        self._contacted.clear()
        self.ctx.let_in = False
        self.observers_changed()

    def observers_changed(self) -> None:
        """More observers may tell more."""
        nat = self.ctx.nat
        hosts = frozenset(host_of(at) for _, at in self._observers())
        if self._study is not None:
            self._show(self._study)
            return
        known = nat.mapping != "unknown" and nat.filtering != "unknown"
        known = known and self._saw_far >= self._any_far()
        if not known and not hosts <= self._looked_through:
            self._begin()

    def observed(self, observer: str, address: str) -> None:
        if self._study is not None:
            self._go_on(self._study.observed(observer, address))

    def knocked(self, peer: PeerId, got_in: bool) -> None:
        if self._study is not None:
            self._go_on(self._study.knocked(peer, got_in))

    def _show(self, study: NatStudy) -> None:
        """A look is under way: it may use those who have come since it began."""
        for peer, address in self._observers():
            host = host_of(address)
            if host not in self._contacted | self._looked_through and not study.done:
                self._looked_through |= {host}
                self._go_on(study.another((peer, address)))

    def came_in(self, remote: str) -> None:
        """Somebody has dialled us from there. If it is far and our port had never contacted it,
        strangers get in here: all that a peer may know which never dials anybody."""
        ctx = self.ctx
        if ctx.let_in or ctx.mapped or ctx.near(remote) or host_of(remote) in self._contacted:
            return
        before, ctx.let_in = ctx.volunteers, True
        if not before and ctx.volunteers:
            ctx.tell_all()

    # ------------------------------------------------------------------------

    def _observers(self) -> list[tuple[PeerId, str]]:
        """Those we have dialled. Who is near us sees no NAT: it counts only where nobody else is
        there."""
        far = [one for one in self._dialled() if not self.ctx.near(one[1])]
        return sorted(far or self._dialled())

    def _dialled(self) -> list[tuple[PeerId, str]]:
        return [(peer, one.dialled) for peer, one in self.ctx.neighbours.items() if one.dialled]

    def _any_far(self) -> bool:
        return any(not self.ctx.near(at) for _, at in self._dialled())

    def _begin(self) -> None:
        if self._study is None and (observers := self._observers()):
            self._looked_through = frozenset(host_of(at) for _, at in observers)
            self._saw_far = self._any_far()
            self._study = NatStudy(self.ctx.addresses, observers, self._contacted)
            self._began = self.ctx.now
            self._go_on(self._study.begin())

    def _go_on(self, steps: list[Step]) -> None:
        ctx, study = self.ctx, self._study
        for step in steps:
            match step:
                case Observe(_, address):
                    self._asked_at = ctx.now
                    self._contacted.add(host_of(address))
                    ctx.out.append(Probe(address))
                case AskKnock(peer, address):
                    holds_up = study is not None and study.knocks_hold_up
                    patience_s = ctx.now - self._asked_at + KNOCK_S if holds_up else SILENCE_S
                    self._knocks_by = ctx.now + patience_s
                    ctx.say(peer, talk.Knock(address))
        if study is not None and study.nat.address:
            ctx.nat = self._merged(study.nat)
        if study is not None and study.done:
            self._end()

    def _merged(self, found: Nat) -> Nat:
        """What this look could not tell, an earlier one at the same address may have told."""
        before = self.ctx.nat
        if found.address == before.address or before.symmetric:
            if found.mapping == "unknown":
                found = replace(found, mapping=before.mapping)
            if found.filtering == "unknown":
                found = replace(found, filtering=before.filtering)
        return found

    def _end(self) -> None:
        self._study, self._ended = None, self.ctx.now
        if self.ctx.nat != self._told:
            self._told = self.ctx.nat
            self.ctx.tell_all()
            self.ctx.out.append(NatLearned())
        self.observers_changed()  # more may have come meanwhile
