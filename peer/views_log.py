"""The replicated state: what the committed log adds up to, and how one entry changes it.

    state(slot) ── apply(entry of slot) ──▶ state(slot + 1)

    view ─────── who is in                          changed by ViewEntry
    scopes ───── per tag: round, root, history      changed by RoundEntry, RollbackEntry
    ledger ───── whose samples are whose            changed by all three
    paused                                          changed by PauseEntry

One log orders the rounds of all tags. Pure and deterministic: every peer that applies the same
entries holds an equal `LogState`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from decentral.peer.core_config import MAX_TAGS
from decentral.peer.entries import put_view, take_view, unpack_any
from decentral.peer.fields import (
    MAX_INT,
    bad,
    bytes_of,
    items,
    put_ranges,
    row,
    take_integer,
    take_lineage,
    take_peer,
    take_ranges,
    take_tag,
    take_text,
)
from decentral.peer.leases import LeaseLedger, merged
from decentral.peer.protocol import Entry, PauseEntry, RollbackEntry, RoundEntry, ViewEntry
from decentral.peer.sharing import KEPT, as_set, shared
from decentral.types import Contribution, PeerId, Range, View

_take_root = bytes_of(32, 32)
HISTORY = 64
"""Committed rounds that are remembered, so that the run can roll back to them."""


@dataclass(frozen=True, slots=True)
class Past:
    """One committed round: what a rollback to or beyond it needs."""

    round: int
    root: bytes
    tokens: int
    used: tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is committed under one tag: a model, a fragment of it, or a module."""

    tag: str
    round: int = 0
    root: bytes = b""
    """State root of `round`; empty only before the founder has reported its initial state."""
    durable_round: int = 0
    slot: int = 0
    """Where the log was when this round was committed: whoever entered later is new to it."""
    history: tuple[Past, ...] = ()

    def committed(self, number: int, root: bytes) -> bool:
        """Whether this state was ever committed, as far back as the history goes."""
        return (number, root) == (self.round, self.root) or any(
            (number, root) == (one.round, one.root) for one in self.history
        )

    def put(self) -> list[Any]:
        past = [[one.round, one.root, one.tokens, put_ranges(one.used)] for one in self.history]
        return [self.tag, self.round, self.root, self.durable_round, self.slot, past]

    @staticmethod
    def take(raw: Any) -> Scope:
        tag, number, root, durable, slot, history = row(raw, 6)
        rounds = []
        for one in items(history, HISTORY):
            past, past_root, tokens, used = row(one, 4)
            rounds.append(
                Past(take_integer(past), _root(past_root), take_integer(tokens), take_ranges(used))
            )
        return Scope(
            tag=take_tag(tag),
            round=take_integer(number),
            root=_root(root),
            durable_round=take_integer(durable),
            slot=take_integer(slot),
            history=tuple(rounds),
        )


def _root(raw: Any) -> bytes:
    return b"" if raw == b"" else _take_root(raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """What all members of a lineage agree on after `slot` entries."""

    slot: int
    view: View
    scopes: tuple[Scope, ...]
    """In the order of the run's tags."""
    samples: int
    """Tokens in all committed rounds."""
    ledger: LeaseLedger
    entered: tuple[tuple[PeerId, int], ...]
    """Per member: the slot at which it entered."""
    ancestry: tuple[str, ...]
    """Lineages that this one came from, newest last."""
    stop: str = ""
    paused: str = ""
    """Not empty: no round begins, and this is why."""

    def scope(self, tag: str) -> Scope:
        """KeyError for a tag that the run does not have."""
        for one in self.scopes:
            if one.tag == tag:
                return one
        raise KeyError(tag)

    @property
    def founded(self) -> bool:
        """Whether the founder has reported the initial state of every tag."""
        return all(one.root for one in self.scopes)

    def tags(self) -> tuple[str, ...]:
        return tuple(one.tag for one in self.scopes)

    def rounds(self) -> tuple[tuple[str, int], ...]:
        """(tag, last committed round)."""
        return tuple((one.tag, one.round) for one in self.scopes)

    def slot_of(self, peer: PeerId) -> int:
        """The slot at which a member entered."""
        return next((slot for one, slot in self.entered if one == peer), 0)

    def with_scope(self, scope: Scope) -> LogState:
        scopes = tuple(scope if one.tag == scope.tag else one for one in self.scopes)
        return replace(self, scopes=scopes)

    def put(self) -> list[Any]:
        return [
            self.slot,
            put_view(self.view),
            [one.put() for one in self.scopes],
            self.samples,
            self.ledger.put(),
            [list(one) for one in self.entered],
            list(self.ancestry),
            self.stop,
            self.paused,
        ]

    @staticmethod
    def take(raw: Any) -> LogState:
        slot, view, scopes, samples, ledger, entered, ancestry, stop, paused = row(raw, 9)
        found = tuple(Scope.take(one) for one in items(scopes, MAX_TAGS))
        if not found or len({one.tag for one in found}) != len(found):
            bad("a log state has no scope, or one twice")
        rows = [row(one, 2) for one in items(entered, 4096)]
        members = take_view(view)
        if tuple(peer for peer, _ in rows) != members.members:
            bad("a log state does not say when each member entered")
        return LogState(
            slot=take_integer(slot),
            view=members,
            scopes=found,
            samples=take_integer(samples),
            ledger=LeaseLedger.take(ledger),
            entered=tuple((take_peer(peer), take_integer(at)) for peer, at in rows),
            ancestry=tuple(take_lineage(one) for one in items(ancestry, 64)),
            stop=take_text(stop),
            paused=take_text(paused),
        )


_known: dict[bytes, LogState] = {}
"""The newest states by their bytes: whoever reads one gets the very object that others have, so
that what is `shared` stays shared, also with those that come back from a disk."""


def _remember(packed: bytes, state: LogState) -> LogState:
    known = _known.setdefault(packed, state)
    if len(_known) > KEPT:
        del _known[next(iter(_known))]
    return known


@shared
def pack_state(state: LogState) -> bytes:
    packed: bytes = msgpack.packb(state.put())
    _remember(packed, state)
    return packed


def unpack_state(raw: Any) -> LogState:
    """Inverse of `pack_state`; ProtocolError for anything else."""
    if type(raw) is not bytes:
        bad("a log state is not bytes")
    return _known.get(raw) or _remember(raw, LogState.take(unpack_any(raw)))


def lineage_id(*parts: object) -> str:
    """A short name for a lineage, from whatever made it unique."""
    return hashlib.sha256(msgpack.packb([str(part) for part in parts])).hexdigest()[:16]


def founding_state(
    run: bytes, me: PeerId, boot: bytes, lease_samples: int, tags: tuple[str, ...] = ("",)
) -> LogState:
    """A new run: a view of one at round 0."""
    view = View(lineage=lineage_id(run.hex(), me, boot.hex()), epoch=0, members=(me,))
    return LogState(
        slot=0,
        view=view,
        scopes=tuple(Scope(tag=tag) for tag in tags),
        samples=0,
        ledger=LeaseLedger(share=lease_samples).top_up((me,)),
        entered=((me, 0),),
        ancestry=(),
    )


@shared
def _consumed(ledger: LeaseLedger, contributions: tuple[Contribution, ...]) -> LeaseLedger:
    return ledger.consume(contributions)


@shared
def why_invalid(state: LogState, entry: Entry) -> str:
    """Empty if `entry` may follow `state`; else why not. Proposers and acceptors both ask."""
    match entry:
        case ViewEntry():
            if entry.view.lineage != state.view.lineage:
                return "the view is of another lineage"
            if entry.view.epoch != state.view.epoch + 1:
                return f"epoch {entry.view.epoch} does not follow {state.view.epoch}"
        case RoundEntry():
            scope = next((one for one in state.scopes if one.tag == entry.tag), None)
            if scope is None:
                return f"the run has no tag {entry.tag!r}"
            if entry.round != scope.round + 1:
                return f"round {entry.round} does not follow {scope.round}"
            if not all(one.peer in state.view.members for one in entry.contributions):
                return "a contribution is of no member"
            if state.samples + sum(one.tokens for one in entry.contributions) > MAX_INT:
                return "more tokens than can be counted"
            try:
                _consumed(state.ledger, entry.contributions)
            except ValueError as wrong:
                return str(wrong)
        case RollbackEntry():
            scope = next((one for one in state.scopes if one.tag == entry.tag), None)
            if scope is None or not scope.committed(entry.round, entry.state_root):
                return f"round {entry.round} with this root was never committed"
        case PauseEntry():
            if entry.paused == bool(state.paused):
                return "the run is paused already" if entry.paused else "the run is not paused"
    return ""


@shared
def apply(state: LogState, entry: Entry) -> LogState:
    """The state after `entry`. Raises ValueError where `why_invalid` finds something."""
    wrong = why_invalid(state, entry)
    if wrong:
        raise ValueError(wrong)
    match entry:
        case ViewEntry():
            return _apply_view(state, entry)
        case RoundEntry():
            return _apply_round(state, entry)
        case RollbackEntry():
            return _apply_rollback(state, entry)
        case PauseEntry():
            paused = (entry.reason or "asked for") if entry.paused else ""
            return replace(state, slot=state.slot + 1, paused=paused)


def _apply_view(state: LogState, entry: ViewEntry) -> LogState:
    members = entry.view.members
    ledger = state.ledger
    for peer in state.view.members:
        if peer not in members:
            ledger = ledger.take_back(peer)
    known = dict(state.entered)
    entered = tuple((peer, known.get(peer, state.slot)) for peer in members)
    return replace(
        state,
        slot=state.slot + 1,
        view=entry.view,
        ledger=ledger.top_up(members),
        entered=entered,
    )


def _apply_round(state: LogState, entry: RoundEntry) -> LogState:
    tokens = sum(one.tokens for one in entry.contributions)
    used = merged(one for part in entry.contributions for one in part.leases)
    scope = state.scope(entry.tag)
    # Round 0 has no entry of its own: it goes into the history as the first round leaves it.
    history = scope.history or (Past(scope.round, scope.root, 0, ()),)
    history = (*history, Past(entry.round, entry.state_root, tokens, used))
    after = Scope(
        tag=scope.tag,
        round=entry.round,
        root=entry.state_root,
        durable_round=max(scope.durable_round, entry.durable_round),
        slot=state.slot + 1,
        history=history[-HISTORY:],
    )
    return replace(
        state.with_scope(after),
        slot=state.slot + 1,
        samples=state.samples + tokens,
        ledger=_consumed(state.ledger, entry.contributions).top_up(state.view.members),
        stop=entry.stop or state.stop,
    )


def _apply_rollback(state: LogState, entry: RollbackEntry) -> LogState:
    scope = state.scope(entry.tag)
    undone = [one for one in scope.history if one.round > entry.round]
    ledger = state.ledger
    for one in undone:
        ledger = ledger.give_back(one.used)
    after = Scope(
        tag=scope.tag,
        round=entry.round,
        root=entry.state_root,
        durable_round=min(scope.durable_round, entry.round),
        slot=state.slot + 1,
        history=tuple(one for one in scope.history if one.round <= entry.round),
    )
    return replace(
        state.with_scope(after),
        slot=state.slot + 1,
        samples=state.samples - sum(one.tokens for one in undone),
        ledger=ledger,
        stop="",
    )


@shared
def changes(before: View, after: View) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """Who has come, and who is gone."""
    old, new = as_set(before.members), as_set(after.members)
    came = tuple(peer for peer in after.members if peer not in old)
    return came, tuple(peer for peer in before.members if peer not in new)


def forked(state: LogState, lineage: str) -> LogState:
    """The same state under the name of a new lineage."""
    return replace(
        state,
        view=replace(state.view, lineage=lineage),
        ancestry=(*state.ancestry, state.view.lineage)[-64:],
    )
