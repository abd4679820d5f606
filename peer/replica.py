"""This peer's copy of the log: durable, in order, caught up from others when it has missed some.

    Commit(slot) ─────▶ commit ──▶ Persist, Committed, hooks.committed
    Snapshot(state) ──▶ install ─▶ Persist, hooks.installed        (too much was missed)

A peer keeps its log when it stops being a member (`deposed`), until another one replaces it: its
votes stay valid, and it can go back if those who evicted it are gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import replace
from typing import Protocol

from decentral.peer.acceptor import Record, RecordWriter, Votes
from decentral.peer.context import Context
from decentral.peer.entries import decode_entry
from decentral.peer.fields import bad
from decentral.peer.messages import Commit, Learn, Snapshot, Update
from decentral.peer.protocol import Committed, Entry, Persist
from decentral.peer.views_log import LogState, apply, forked, why_invalid
from decentral.types import PeerId

RECENT = 64
"""Committed entries that are kept to bring others up to date."""


class Hooks(Protocol):
    """What the rest of the peer does when the log moves."""

    def committed(self, slot: int, entry: Entry, before: LogState, after: LogState) -> None: ...
    def installed(self, before: LogState | None, after: LogState) -> None: ...


def beats(one: tuple[int, str, tuple[str, ...]], other: tuple[int, str, tuple[str, ...]]) -> bool:
    """Whether lineage `one` (samples, id, ancestry) wins over `other`: more committed samples,
    then the one that came from the other, then the id."""
    if one[1] == other[1]:
        return False
    if one[0] != other[0]:
        return one[0] > other[0]
    if other[1] in one[2] or one[1] in other[2]:
        return other[1] in one[2]
    return one[1] > other[1]


class Replica:
    def __init__(
        self,
        ctx: Context,
        hooks: Hooks,
        book: Callable[[Set[PeerId] | None], tuple[Update, ...]],
        addresses: Callable[[], tuple[tuple[PeerId, str, str], ...]],
    ) -> None:
        self.ctx = ctx
        self.addresses = addresses
        self.hooks = hooks
        self.book = book
        self.state: LogState | None = None
        self.votes = Votes()
        self.voted_at = 0.0
        self.past: tuple[str, ...] = ()
        self.deposed = False
        self._looked_at: LogState | None = None
        self._inside = False
        """Whether we are in the view of the state that we looked at last."""
        self.restarted = False
        """Restarted within this slot: what was proposed before the crash is not known any more."""
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=RECENT)
        self._asked: dict[PeerId, tuple[int, float]] = {}
        self._writer = RecordWriter()

    # -------------------------------------------------------------- standing

    @property
    def member(self) -> bool:
        if self._looked_at is not self.state:
            state = self._looked_at = self.state
            self._inside = state is not None and self.ctx.me in state.view.members
        return self._inside and not self.deposed

    def counts(self, peer: PeerId) -> bool:
        """Whether this peer is a member: others are guests, with no say about those."""
        return self.state is not None and peer in self.state.view.members

    @property
    def lineage(self) -> str:
        return "" if self.state is None else self.state.view.lineage

    @property
    def slot(self) -> int:
        return 0 if self.state is None else self.state.slot

    def standing(self) -> tuple[int, str, tuple[str, ...]]:
        state = self.state
        return (0, "", ()) if state is None else (state.samples, self.lineage, state.ancestry)

    # -------------------------------------------------------------- durability

    def persist(self) -> None:
        ctx = self.ctx
        record = Record(
            boot_seq=ctx.boot_seq,
            state=self.state,
            votes=self.votes,
            past=self.past,
            book=self.addresses(),
        )
        ctx.out.append(Persist(self._writer.pack(record)))

    def restore(self, record: Record) -> None:
        self.state, self.votes, self.past = record.state, record.votes, record.past
        self.restarted = True

    def found(self, tag: str, root: bytes) -> None:
        """The founder's initial state: the root of a tag's round 0."""
        assert self.state is not None
        self.state = self.state.with_scope(replace(self.state.scope(tag), root=root))
        self.persist()

    # -------------------------------------------------------------- moving on

    def commit(self, value: bytes) -> None:
        """The entry of the current slot is chosen."""
        before = self.state
        assert before is not None
        entry = decode_entry(value)
        try:
            after = apply(before, entry)
        except ValueError as wrong:
            bad(f"a committed entry cannot follow slot {before.slot}: {wrong}")
        self._advance(after)
        self._recent.append((before.slot, value))
        self.persist()
        self._announce(before.slot, entry, after)
        self.hooks.committed(before.slot, entry, before, after)

    def commit_fork(self, lineage: str, values: list[bytes]) -> None:
        """Go on under a new lineage with these entries."""
        before = self.state
        assert before is not None
        self.past = (*self.past, before.view.lineage)[-64:]
        self._recent.clear()
        after = forked(before, lineage)
        steps = []
        for value in values:
            entry = decode_entry(value)
            wrong = why_invalid(after, entry)
            if wrong:
                bad(f"a fork's entry cannot follow slot {after.slot}: {wrong}")
            steps.append((after.slot, entry, after, apply(after, entry)))
            after = steps[-1][3]
            self._recent.append((steps[-1][0], value))
        self._advance(after)
        self.persist()
        for slot, entry, prior, later in steps:
            self._announce(slot, entry, later)
            self.hooks.committed(slot, entry, prior, later)

    def install(self, state: LogState) -> None:
        """Take over a whole state in place of the missed entries."""
        before = self.state
        if before is not None and before.view.lineage != state.view.lineage:
            self.past = (*self.past, before.view.lineage)[-64:]
        self._recent.clear()
        self._advance(state)
        self.deposed = False
        self.persist()
        self.hooks.installed(before, state)

    def _advance(self, after: LogState) -> None:
        lineage = self.lineage
        self.state = after
        self.votes = Votes()
        self.restarted = False
        self.ctx.changed()
        if after.view.lineage != lineage:
            for peering in self.ctx.links.values():
                peering.told_slot = -1

    def _announce(self, slot: int, entry: Entry, after: LogState) -> None:
        leases = after.ledger.granted(self.ctx.me)
        self.ctx.out.append(Committed(slot, entry, after.view, leases))

    # -------------------------------------------------------------- keeping others up to date

    def tell(self, peers: set[PeerId], slot: int, value: bytes) -> None:
        """Pass on the entry that has just been committed at `slot`."""
        self.ctx.send_all(sorted(peers), Commit(self.lineage, slot, value))
        for peer in peers:
            peering = self.ctx.links.get(peer)
            if peering:
                peering.told_slot = slot + 1

    def in_step(self, peer: PeerId, lineage: str, slot: int) -> bool:
        """Whether a message is about the current slot; if not, whoever is behind catches up."""
        if self.state is None or lineage != self.lineage:
            return False
        if slot < self.slot:
            self.bring_up(peer, slot)
        elif slot > self.slot:
            self.ask(peer)
        return slot == self.slot

    def bring_up(self, peer: PeerId, slot: int) -> None:
        """Send what a peer of our lineage has missed from `slot` on, once."""
        peering = self.ctx.links.get(peer)
        if peering is None or peering.told_slot >= self.slot or slot >= self.slot:
            return
        missed = [one for one in self._recent if one[0] >= slot]
        if missed and missed[0][0] == slot:
            for at, value in missed:
                self.ctx.send(peer, Commit(self.lineage, at, value))
        else:
            self.send_snapshot(peer, None)
        peering.told_slot = self.slot

    def send_snapshot(self, peer: PeerId, coordinator: PeerId | None, since: int = -1) -> None:
        """The whole state, and how to find others: all, or those that entered from a slot on."""
        state = self.state
        if state is not None:
            whom = None if since < 0 else {one for one, slot in state.entered if slot >= since}
            self.ctx.send(peer, Snapshot(state, coordinator, self.book(whom)))

    def ask(self, peer: PeerId) -> None:
        """Have a peer that is ahead tell us what we missed."""
        slot, at = self._asked.get(peer, (-1, 0.0))
        if slot == self.slot and self.ctx.now - at < 2 * self.ctx.config.retry_s:
            return
        self._asked[peer] = (self.slot, self.ctx.now)
        self.ctx.send(peer, Learn(self.lineage, self.slot))

    def on_learn(self, peer: PeerId, msg: Learn) -> None:
        if msg.lineage == self.lineage:
            peering = self.ctx.links.get(peer)
            if peering:
                peering.told_slot = -1
            self.bring_up(peer, msg.slot)
        else:
            self.send_snapshot(peer, None)

    def on_commit(self, peer: PeerId, msg: Commit) -> None:
        if self.state is None or msg.lineage != self.lineage:
            return
        peering = self.ctx.links.get(peer)
        if peering:
            peering.told_slot = max(peering.told_slot, msg.slot + 1)
        if msg.slot == self.slot:
            self.commit(msg.value)
        elif msg.slot > self.slot:
            self.ask(peer)
