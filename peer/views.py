"""The consensus: which entry comes next in the log.

Slot s is decided by single-decree Paxos among the members of the view that slots < s led to.

    first member of the view            any other coordinator (or after a restart, or a rival)
    ────────────────────────            ──────────────────────────────────────────────────────
    ballot (0, me): no prepare          Prepare (n, me) ──▶ Promise (highest accepted value)
    Accept ──▶ Accepted × majority      Accept that value, or its own if nobody has any
    Commit to all                       Commit to all

Nobody but the first member may use counter 0, and it records its own vote before it asks for
others, so one ballot never carries two values.
"""

from __future__ import annotations

from collections.abc import Callable

from decentral.peer.acceptor import NO_BALLOT
from decentral.peer.context import Context
from decentral.peer.entries import decode_entry, encode_entry
from decentral.peer.fields import HEARSAY, Ballot, bad, no_leap
from decentral.peer.messages import Accept, Accepted, Nack, Prepare, Promise
from decentral.peer.protocol import Entry, RoundEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import why_invalid
from decentral.types import PeerId

MAX_BACKOFF_S = 2.0


class Views:
    """Proposer and acceptor of one peer. `witnessed` says whether a round's result is our own."""

    def __init__(
        self, ctx: Context, replica: Replica, witnessed: Callable[[RoundEntry], bool]
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.witnessed = witnessed
        self.phase = "idle"
        """"idle", "prepare", "ready" (prepared, nothing to propose yet) or "accept"."""
        self.ballot: Ballot = NO_BALLOT
        self.deadline = float("inf")
        self.not_before = 0.0
        self._slot = -1
        self._lineage = ""
        self._wanted = b""
        self._value = b""
        self._promises: dict[PeerId, tuple[Ballot, bytes]] = {}
        self._accepted: set[PeerId] = set()
        self._highest = 0
        self._tries = 0

    # -------------------------------------------------------------- proposing

    def quorum(self) -> int:
        assert self.replica.state is not None
        return self.replica.state.view.majority

    def busy(self) -> bool:
        """A proposal of ours is under way, or a rival was ahead and we stand back for a while."""
        self._renew()
        return self.phase in ("prepare", "accept") or self.ctx.now < self.not_before

    def propose(self, entry: Entry | None) -> None:
        """Get `entry` into the current slot; None: only finish what somebody else began."""
        if self.busy():
            return
        state = self.replica.state
        assert state is not None
        self._wanted = b"" if entry is None else encode_entry(entry)
        votes = self.replica.votes
        if self.phase == "ready" and votes.promised == self.ballot:
            self._after_prepare()
        elif (
            entry is not None
            and state.view.members[0] == self.ctx.me
            and votes.promised == NO_BALLOT
            and not self.replica.restarted
        ):
            self.ballot = (0, self.ctx.me)
            self._ask_votes(self._wanted, recovered=False)
        else:
            self._prepare()

    def _prepare(self) -> None:
        votes = self.replica.votes
        self.ballot = (max(votes.promised[0], self._highest) + 1, self.ctx.me)
        self._highest = self.ballot[0]
        self.phase = "prepare"
        votes.promise(self.ballot)
        self.replica.persist()
        self._promises = {self.ctx.me: (votes.accepted, votes.value)}
        self._wait()
        ask = Prepare(self.replica.lineage, self.replica.slot, self.ballot)
        self.ctx.send_all(self._others(), ask)
        if len(self._promises) >= self.quorum():
            self._after_prepare()

    def _after_prepare(self) -> None:
        accepted, value = max(self._promises.values())
        if accepted != NO_BALLOT:
            self._ask_votes(value, recovered=True)
        elif self._wanted:
            self._ask_votes(self._wanted, recovered=False)
        else:
            self.phase = "ready"
            self.deadline = float("inf")

    def _ask_votes(self, value: bytes, *, recovered: bool) -> None:
        self.phase = "accept"
        self._value = value
        self._accepted = {self.ctx.me}
        self.replica.votes.accept(self.ballot, value)
        self.replica.voted_at = self.ctx.now
        self.replica.persist()
        self._wait()
        lineage, slot = self.replica.lineage, self.replica.slot
        ask = Accept(lineage, slot, self.ballot, value, recovered)
        self.ctx.send_all(self._others(), ask)
        self._count()

    def _count(self) -> None:
        state = self.replica.state
        assert state is not None
        if len(self._accepted) < self.quorum():
            return
        slot, value, before = state.slot, self._value, set(state.view.members)
        self.phase = "idle"
        self.replica.commit(value)
        told = before | set(self.replica.state.view.members if self.replica.state else ())
        self.replica.tell(told - {self.ctx.me}, slot, value)

    def _others(self) -> list[PeerId]:
        assert self.replica.state is not None
        return [one for one in self.replica.state.view.members if one != self.ctx.me]

    def _wait(self) -> None:
        backoff = min(self.ctx.config.election_s * 2**self._tries, MAX_BACKOFF_S)
        self.deadline = self.ctx.now + self.ctx.jitter(backoff)

    def _renew(self) -> None:
        """Forget proposals for a slot that is decided."""
        if self._slot != self.replica.slot or self._lineage != self.replica.lineage:
            self._slot, self._lineage = self.replica.slot, self.replica.lineage
            self.phase = "idle"
            self.deadline = float("inf")
            self.not_before = 0.0
            self._highest = self._tries = 0

    def stand_back(self) -> None:
        """We are no longer the coordinator: let the other one work."""
        if self.phase in ("prepare", "accept"):
            self.phase = "idle"
            self.deadline = float("inf")

    def tick(self, *, acting: bool) -> None:
        """No majority answered in time: ask again under a higher ballot, with patience."""
        self._renew()
        if not acting:
            self.stand_back()
        elif self.phase in ("prepare", "accept") and self.ctx.now >= self.deadline:
            self._tries = min(self._tries + 1, 4)
            self.phase = "idle"
            self._prepare()

    # -------------------------------------------------------------- answers to our proposals

    def on_promise(self, peer: PeerId, msg: Promise) -> None:
        if self._mine("prepare", peer, msg.lineage, msg.slot, msg.ballot):
            state = self.replica.state
            assert state is not None
            if msg.value and (wrong := why_invalid(state, decode_entry(msg.value))):
                bad(f"an accepted value cannot follow slot {state.slot}: {wrong}")
            self._promises[peer] = (msg.accepted, msg.value)
            if len(self._promises) >= self.quorum():
                self._after_prepare()

    def on_accepted(self, peer: PeerId, msg: Accepted) -> None:
        if self._mine("accept", peer, msg.lineage, msg.slot, msg.ballot):
            self._accepted.add(peer)
            self._count()

    def on_nack(self, peer: PeerId, msg: Nack) -> None:
        if not self.replica.in_step(peer, msg.lineage, msg.slot):
            return
        self._renew()
        no_leap(msg.promised[0], self.replica.votes.promised[0], "ballot", HEARSAY)
        self._highest = max(self._highest, msg.promised[0])
        if self.phase in ("prepare", "accept") and msg.ballot == self.ballot:
            self._tries = min(self._tries + 1, 4)
            self.phase = "idle"
            self.deadline = float("inf")
            backoff = min(self.ctx.config.retry_s * 2**self._tries, MAX_BACKOFF_S)
            self.not_before = self.ctx.now + backoff * (0.2 + self.ctx.rng.random())
            self.ctx.dirty = True

    def _mine(self, phase: str, peer: PeerId, lineage: str, slot: int, ballot: Ballot) -> bool:
        self._renew()
        state = self.replica.state
        return (
            self.replica.in_step(peer, lineage, slot)
            and self.phase == phase
            and ballot == self.ballot
            and state is not None
            and peer in state.view.members
        )

    # -------------------------------------------------------------- voting

    def on_prepare(self, peer: PeerId, msg: Prepare) -> None:
        if not self._may_vote(peer, msg.lineage, msg.slot):
            return
        votes = self.replica.votes
        no_leap(msg.ballot[0], votes.promised[0], "ballot")
        known = votes.promised == msg.ballot
        if msg.ballot[0] == 0 or msg.ballot[1] != peer or not votes.promise(msg.ballot):
            self.ctx.send(peer, Nack(msg.lineage, msg.slot, msg.ballot, votes.promised))
            return
        if not known:
            self.replica.persist()
        answer = Promise(msg.lineage, msg.slot, msg.ballot, votes.accepted, votes.value)
        self.ctx.send(peer, answer)

    def on_accept(self, peer: PeerId, msg: Accept) -> None:
        if not self._may_vote(peer, msg.lineage, msg.slot):
            return
        state, votes = self.replica.state, self.replica.votes
        assert state is not None
        if msg.ballot[1] != peer or (msg.ballot[0] == 0 and state.view.members[0] != peer):
            return
        no_leap(msg.ballot[0], votes.promised[0], "ballot")
        entry = decode_entry(msg.value)
        if why_invalid(state, entry):
            return
        if not msg.recovered and isinstance(entry, RoundEntry) and not self.witnessed(entry):
            return
        known = votes.accepted == msg.ballot
        if not votes.accept(msg.ballot, msg.value):
            self.ctx.send(peer, Nack(msg.lineage, msg.slot, msg.ballot, votes.promised))
            return
        if not known:
            self.replica.voted_at = self.ctx.now
            self.replica.persist()
        self.ctx.send(peer, Accepted(msg.lineage, msg.slot, msg.ballot))

    def _may_vote(self, peer: PeerId, lineage: str, slot: int) -> bool:
        state = self.replica.state
        return (
            self.replica.in_step(peer, lineage, slot)
            and state is not None
            and self.replica.member
            and peer in state.view.members
        )
