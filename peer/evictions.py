"""Whom the coordinator does without although it lives: the hung, the unlinked.

    Offer.unlinked ──▶ pairs without a link ──▶ the end that most others miss too: left out of
                       rounds after APART_S, put out of the view after UNLINKED_S
    Stuck ───────────▶ who shows no progress while all others wait
    rounds ──────────▶ who was blamed for several failed attempts
    revocations ─────▶ whose credential was taken back

Reports of one view, about all tags together; a new view starts afresh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set

from decentral.peer.context import Context
from decentral.peer.messages import Stuck
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState
from decentral.types import PeerId

APART_S = 1.0
"""A round does not wait any longer for two members to be linked."""
UNLINKED_S = 6.0
"""A member that others have no link to for so long goes, however alive it seems to some."""
STEPS = 20
"""A trainer may take as long as so many of its own steps before it is called hung."""


class Evictions:
    def __init__(self, ctx: Context, replica: Replica) -> None:
        self.ctx = ctx
        self.replica = replica
        self.due: dict[PeerId, str] = {}
        """Members to be taken out of the view, and why."""
        self._revoked: dict[PeerId, str] = {}
        """Members whose credential was taken back."""
        self.stuck: set[PeerId] = set()
        """Whom others have reported as making no progress, since the log last moved."""
        self._step_ms: dict[PeerId, int] = {}
        self._unlinked: dict[PeerId, dict[PeerId, float]] = {}
        """Per member: whom it has no link to, and since when."""

    def on_stuck(self, peer: PeerId, msg: Stuck) -> None:
        now = (self.replica.lineage, self.replica.slot)
        if self.replica.counts(peer) and (msg.lineage, msg.slot) == now:
            self.stuck.add(msg.peer)
            self.ctx.dirty = True

    def heard(self, peer: PeerId, unlinked: tuple[PeerId, ...], step_ms: int) -> None:
        """What an offer says besides the work: whom its sender misses, how long its steps are."""
        if step_ms:
            self._step_ms[peer] = step_ms
        since = self._unlinked.pop(peer, {})
        if unlinked:
            self._unlinked[peer] = {one: since.get(one, self.ctx.now) for one in unlinked}

    def linked(
        self, peers: Sequence[PeerId], newcomers: Set[PeerId]
    ) -> tuple[list[PeerId], set[PeerId]]:
        """Who of these can reduce together: those left when the ends that most others miss are
        dropped; and whoever of them misses one for less than `APART_S`, which may be mended in a
        moment. A newcomer has nothing to lose yet: nobody waits for its links."""
        inside = set(peers)
        lacks: dict[PeerId, dict[PeerId, float]] = {}
        for peer in peers:
            for other, at in self._unlinked.get(peer, {}).items():
                if other in inside:
                    lacks.setdefault(peer, {})[other] = at
                    lacks.setdefault(other, {})[peer] = at
        settled = [
            (end, other)
            for end, others in lacks.items()
            for other, at in others.items()
            if {end, other} & newcomers or self.ctx.now >= at + APART_S
        ]
        while settled:
            count = Counter(end for end, _ in settled)
            worst = max(count, key=lambda peer: (count[peer], peer in newcomers, peers.index(peer)))
            inside.discard(worst)
            settled = [pair for pair in settled if worst not in pair]
        cut = {end for end in inside if lacks.get(end, {}).keys() & inside}
        return [peer for peer in peers if peer in inside], cut

    def patience_s(self, peer: PeerId) -> float:
        """How long this member's trainer may show no progress."""
        return max(self.ctx.config.hung_after_s, STEPS * self._step_ms.get(peer, 0) / 1000)

    def moved(self) -> None:
        """A round is committed: whoever was waited for has come, or is not waited for any more."""
        self.due = dict(self._revoked)
        self.stuck.clear()

    def new_view(self, members: tuple[PeerId, ...]) -> None:
        inside = set(members)
        self._revoked = {peer: why for peer, why in self._revoked.items() if peer in inside}
        self.due = dict(self._revoked)
        self._unlinked = {
            peer: {one: at for one, at in others.items() if one in inside}
            for peer, others in self._unlinked.items()
            if peer in inside
        }

    def revoke(self, peers: Iterable[PeerId], why: str) -> None:
        """These members are to go at once, and no later view of ours forgets it."""
        self._revoked.update(dict.fromkeys(peers, why))
        self.due.update(self._revoked)
        self.ctx.dirty = True

    def find_unlinked(self, state: LogState, reachable: Set[PeerId]) -> None:
        """Whoever most members have had no link to for too long must go. Of a pair whose one end is
        out of our own reach that end is to blame: a new coordinator, whose own report is the oldest
        that it has, would else take itself for the one that nobody can link to."""
        long_ago = self.ctx.now - UNLINKED_S
        members = state.view.members
        inside = set(members)
        pairs = [
            {peer, other}
            for peer, others in self._unlinked.items()
            for other, at in others.items()
            if at <= long_ago and peer in inside and other in inside
        ]
        count = Counter(end for pair in pairs for end in (pair - reachable or pair))
        if count:
            worst = max(count, key=lambda peer: (count[peer], members.index(peer)))
            self.due.setdefault(worst, "other members cannot link to it")
