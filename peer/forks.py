"""Going on without a majority: the survivors, at least half of the view, become a new lineage.

    majority unreachable for quorum_timeout_s
        └─ fewer than half, or "pause": say so once and wait
        └─ at least half: the first of them asks all the others
             ForkPrepare ──▶ ForkPromise × all of S   (what have you accepted?)
             ForkAccept  ──▶ ForkAccepted × all of S  (durable)
             ForkCommit  ──▶ lineage' = hash(lineage, epoch, S, ballot), epoch + 1

A majority and a half of the same view always share a member, so whatever the old lineage has
committed is among what S has accepted, and the new lineage begins with it.
"""

from __future__ import annotations

from collections.abc import Set

from decentral.peer.acceptor import NO_BALLOT
from decentral.peer.context import Context
from decentral.peer.entries import decode_entry, encode_entry
from decentral.peer.fields import Ballot, no_leap
from decentral.peer.messages import (
    ForkAccept,
    ForkAccepted,
    ForkCommit,
    ForkPrepare,
    ForkPromise,
)
from decentral.peer.protocol import RollbackEntry, RoundEntry, ViewEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState, apply, forked, lineage_id
from decentral.types import PeerId, View

PATIENCE_S = 2.0
"""A fork to which not all survivors agree in this time is tried again with whoever is left."""


class Forks:
    def __init__(self, ctx: Context, replica: Replica) -> None:
        self.ctx = ctx
        self.replica = replica
        self.lost_since: float | None = None
        """Since when fewer than a majority of the view can be reached."""
        self.said = False
        self.retry_at = float("inf")
        self._survivors: tuple[PeerId, ...] = ()
        self._ballot: Ballot = NO_BALLOT
        self._slot = -1
        self._promises: dict[PeerId, tuple[Ballot, bytes]] = {}
        self._accepted: set[PeerId] = set()
        self._values: tuple[bytes, bytes] = (b"", b"")

    # -------------------------------------------------------------- watching the quorum

    def watch(self, reachable: Set[PeerId]) -> None:
        """Called whenever links or opinions change."""
        state = self.replica.state
        if state is None or not self.replica.member or len(reachable) >= state.view.majority:
            if self.said and self.replica.member:
                self.ctx.fault("quorum-regained", None, "A majority can be reached again.")
            self.lost_since, self.said = None, False
            self.retry_at = float("inf")
        elif self.lost_since is None:
            self.lost_since = self.ctx.now
            self.retry_at = self.ctx.now + self.ctx.config.quorum_timeout_s

    def tick(self, reachable: Set[PeerId]) -> None:
        state = self.replica.state
        if self.lost_since is None or state is None or self.ctx.now < self.retry_at:
            return
        members = state.view.members
        missing = ", ".join(self.ctx.called(one) for one in members if one not in reachable)
        enough = 2 * len(reachable) >= len(members)
        fork = enough and self.ctx.config.on_quorum_loss == "fork"
        if not self.said:
            self.said = True
            self.ctx.fault(
                "quorum-lost",
                None,
                f"Only {len(reachable)} of {len(members)} members can be reached "
                f"(missing: {missing}): {'going on without them' if fork else 'waiting'}.",
            )
        self.retry_at = self.ctx.now + self.ctx.jitter(PATIENCE_S)
        if fork and self.ctx.me == next(one for one in members if one in reachable):
            self._prepare(state, tuple(one for one in members if one in reachable))

    # -------------------------------------------------------------- the one who asks

    def _prepare(self, state: LogState, survivors: tuple[PeerId, ...]) -> None:
        votes = self.replica.votes
        self._survivors, self._slot = survivors, state.slot
        self._ballot = (max(votes.promised[0], self._ballot[0]) + 1, self.ctx.me)
        votes.promise(self._ballot)
        self.replica.persist()
        self._promises = {self.ctx.me: (votes.accepted, votes.value)}
        self._accepted = set()
        ask = ForkPrepare(state.view.lineage, state.slot, self._ballot, survivors)
        self.ctx.send_all((one for one in survivors if one != self.ctx.me), ask)
        self._when_promised()

    def _when_promised(self) -> None:
        state = self.replica.state
        if state is None or set(self._promises) != set(self._survivors):
            return
        base = forked(state, self._name(state.view, self._survivors, self._ballot))
        ballot, carried = max(self._promises.values())
        # A round or a rollback that may have been chosen is kept; a view is replaced anyway.
        keep = ballot != NO_BALLOT and isinstance(decode_entry(carried), RoundEntry | RollbackEntry)
        if keep:
            base = apply(base, decode_entry(carried))
        view = View(lineage=base.view.lineage, epoch=base.view.epoch + 1, members=self._survivors)
        entry = ViewEntry(view=view, reason="fork: the others cannot be reached")
        self._values = (carried if keep else b"", encode_entry(entry))
        ask = ForkAccept(state.view.lineage, state.slot, self._ballot, *self._values)
        self._accepted = {self.ctx.me}
        self.ctx.send_all((one for one in self._survivors if one != self.ctx.me), ask)
        self._when_accepted()

    def _when_accepted(self) -> None:
        state = self.replica.state
        if state is None or self._accepted != set(self._survivors):
            return
        others = [one for one in self._survivors if one != self.ctx.me]
        done = ForkCommit(state.view.lineage, state.slot, *self._values)
        # Ours is durable first: what the others hear of has then happened.
        self._go(state, *self._values)
        self.ctx.send_all(others, done)

    @staticmethod
    def _name(view: View, survivors: tuple[PeerId, ...], ballot: Ballot) -> str:
        return lineage_id(view.lineage, view.epoch, *sorted(survivors), *ballot)

    def _go(self, state: LogState, carried: bytes, value: bytes) -> None:
        entry = decode_entry(value)
        if not isinstance(entry, ViewEntry):
            return
        gone = [one for one in state.view.members if one not in entry.view.members]
        missing = ", ".join(self.ctx.called(one) for one in gone)
        self.lost_since, self.said, self.retry_at = None, False, float("inf")
        self.replica.commit_fork(entry.view.lineage, [carried, value] if carried else [value])
        self.ctx.fault(
            "fork",
            None,
            f"A majority was unreachable (missing: {missing}); {len(entry.view.members)} of "
            f"{len(state.view.members)} go on as lineage {entry.view.lineage}.",
        )

    def _mine(self, peer: PeerId, lineage: str, slot: int, ballot: Ballot) -> bool:
        return (
            self.replica.in_step(peer, lineage, slot)
            and ballot == self._ballot
            and slot == self._slot
            and peer in self._survivors
            and self.replica.votes.promised == self._ballot
        )

    def on_promise(self, peer: PeerId, msg: ForkPromise) -> None:
        if self._mine(peer, msg.lineage, msg.slot, msg.ballot) and not self._accepted:
            self._promises[peer] = (msg.accepted, msg.value)
            self._when_promised()

    def on_accepted(self, peer: PeerId, msg: ForkAccepted) -> None:
        if self._mine(peer, msg.lineage, msg.slot, msg.ballot) and self._accepted:
            self._accepted.add(peer)
            self._when_accepted()

    # -------------------------------------------------------------- those who are asked

    def on_prepare(self, peer: PeerId, msg: ForkPrepare) -> None:
        if not self._may_vote(peer, msg.lineage, msg.slot) or self.ctx.me not in msg.survivors:
            return
        # We must have missed the majority for about as long ourselves: else there is no need.
        if self.lost_since is None or (
            self.ctx.now - self.lost_since < 0.5 * self.ctx.config.quorum_timeout_s
        ):
            return
        votes = self.replica.votes
        no_leap(msg.ballot[0], votes.promised[0], "ballot")
        if msg.ballot[1] == peer and msg.ballot[0] > 0 and votes.promise(msg.ballot):
            self.replica.persist()
            answer = ForkPromise(msg.lineage, msg.slot, msg.ballot, votes.accepted, votes.value)
            self.ctx.send(peer, answer)

    def on_accept(self, peer: PeerId, msg: ForkAccept) -> None:
        if not self._may_vote(peer, msg.lineage, msg.slot):
            return
        # The promise for this ballot is on disk and binds us: nothing lower is accepted any more.
        if self.replica.votes.promised == msg.ballot:
            self.ctx.send(peer, ForkAccepted(msg.lineage, msg.slot, msg.ballot))

    def on_commit(self, peer: PeerId, msg: ForkCommit) -> None:
        state = self.replica.state
        if state is None or not self._may_vote(peer, msg.lineage, msg.slot):
            return
        entry = decode_entry(msg.value)
        if isinstance(entry, ViewEntry) and self.ctx.me in entry.view.members:
            self._go(state, msg.carried, msg.value)

    def _may_vote(self, peer: PeerId, lineage: str, slot: int) -> bool:
        state = self.replica.state
        return (
            self.replica.in_step(peer, lineage, slot)
            and self.replica.member
            and state is not None
            and peer in state.view.members
        )
