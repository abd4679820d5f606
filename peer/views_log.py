"""The replicated state: what the committed log adds up to, and how one entry changes it.

    state(slot) ── apply(entry of slot) ──▶ state(slot + 1)

Pure and deterministic: every peer that applies the same entries holds an equal `LogState`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgpack

from decentral.peer.entries import put_view, take_view, unpack_any
from decentral.peer.fields import (
    bad,
    bytes_of,
    items,
    put_ranges,
    row,
    take_integer,
    take_lineage,
    take_peer,
    take_ranges,
    take_text,
)
from decentral.peer.leases import LeaseLedger, merged
from decentral.peer.protocol import Entry, RollbackEntry, RoundEntry, ViewEntry
from decentral.types import PeerId, Range, View

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
class LogState:
    """What all members of a lineage agree on after `slot` entries."""

    slot: int
    view: View
    round: int
    root: bytes
    """State root of `round`; empty only before the founder has reported its initial state."""
    durable_round: int
    samples: int
    """Tokens in all committed rounds."""
    ledger: LeaseLedger
    entered: tuple[tuple[PeerId, int, int], ...]
    """Per member: the slot and the round at which it entered."""
    ancestry: tuple[str, ...]
    """Lineages that this one came from, newest last."""
    history: tuple[Past, ...]
    stop: str = ""

    def entry_of(self, peer: PeerId) -> tuple[int, int]:
        """(slot, round) at which a member entered."""
        return next(((slot, number) for one, slot, number in self.entered if one == peer), (0, 0))

    def put(self) -> list[Any]:
        return [
            self.slot,
            put_view(self.view),
            self.round,
            self.root,
            self.durable_round,
            self.samples,
            self.ledger.put(),
            [list(one) for one in self.entered],
            list(self.ancestry),
            [[past.round, past.root, past.tokens, put_ranges(past.used)] for past in self.history],
            self.stop,
        ]

    @staticmethod
    def take(raw: Any) -> LogState:
        slot, view, number, root, durable, samples, ledger, entered, ancestry, history, stop = row(
            raw, 11
        )
        if root != b"":
            bytes_of(32, 32)(root)
        seen = []
        for one in items(entered, 4096):
            peer, at_slot, at_round = row(one, 3)
            seen.append((take_peer(peer), take_integer(at_slot), take_integer(at_round)))
        rounds = []
        for one in items(history, HISTORY):
            past, past_root, tokens, used = row(one, 4)
            bytes_of(0, 32)(past_root)
            rounds.append(
                Past(take_integer(past), past_root, take_integer(tokens), take_ranges(used))
            )
        if type(root) is not bytes:
            bad("a state root is not bytes")
        return LogState(
            slot=take_integer(slot),
            view=take_view(view),
            round=take_integer(number),
            root=root,
            durable_round=take_integer(durable),
            samples=take_integer(samples),
            ledger=LeaseLedger.take(ledger),
            entered=tuple(seen),
            ancestry=tuple(take_lineage(one) for one in items(ancestry, 64)),
            history=tuple(rounds),
            stop=take_text(stop),
        )


def pack_state(state: LogState) -> bytes:
    packed: bytes = msgpack.packb(state.put())
    return packed


@lru_cache(maxsize=32)
def _unpack_state(payload: bytes) -> LogState:
    return LogState.take(unpack_any(payload))


def unpack_state(raw: Any) -> LogState:
    """Inverse of `pack_state`; ProtocolError for anything else."""
    if type(raw) is not bytes:
        bad("a log state is not bytes")
    return _unpack_state(raw)


def lineage_id(*parts: object) -> str:
    """A short name for a lineage, from whatever made it unique."""
    return hashlib.sha256(msgpack.packb([str(part) for part in parts])).hexdigest()[:16]


def founding_state(run: bytes, me: PeerId, boot: bytes, lease_samples: int) -> LogState:
    """A new run: a view of one at round 0."""
    view = View(lineage=lineage_id(run.hex(), me, boot.hex()), epoch=0, members=(me,))
    return LogState(
        slot=0,
        view=view,
        round=0,
        root=b"",
        durable_round=0,
        samples=0,
        ledger=LeaseLedger(share=lease_samples).top_up((me,)),
        entered=((me, 0, 0),),
        ancestry=(),
        history=(),
    )


def why_invalid(state: LogState, entry: Entry) -> str:
    """Empty if `entry` may follow `state`; else why not. Proposers and acceptors both ask."""
    match entry:
        case ViewEntry():
            if entry.view.lineage != state.view.lineage:
                return "the view is of another lineage"
            if entry.view.epoch != state.view.epoch + 1:
                return f"epoch {entry.view.epoch} does not follow {state.view.epoch}"
        case RoundEntry():
            if entry.round != state.round + 1:
                return f"round {entry.round} does not follow {state.round}"
            if not all(one.peer in state.view.members for one in entry.contributions):
                return "a contribution is of no member"
            try:
                state.ledger.consume(entry.contributions)
            except ValueError as wrong:
                return str(wrong)
        case RollbackEntry():
            if not any(
                one.round == entry.round and one.root == entry.state_root for one in state.history
            ):
                return f"round {entry.round} with this root was never committed"
    return ""


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


def _apply_view(state: LogState, entry: ViewEntry) -> LogState:
    members = entry.view.members
    ledger = state.ledger
    for peer in state.view.members:
        if peer not in members:
            ledger = ledger.take_back(peer)
    known = {peer: (slot, number) for peer, slot, number in state.entered}
    entered = tuple((peer, *known.get(peer, (state.slot, state.round))) for peer in members)
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
    # Round 0 has no entry of its own: it goes into the history as the first round leaves it.
    history = state.history or (Past(state.round, state.root, 0, ()),)
    history = (*history, Past(entry.round, entry.state_root, tokens, used))
    return replace(
        state,
        slot=state.slot + 1,
        round=entry.round,
        root=entry.state_root,
        durable_round=max(state.durable_round, entry.durable_round),
        samples=state.samples + tokens,
        ledger=state.ledger.consume(entry.contributions).top_up(state.view.members),
        history=history[-HISTORY:],
        stop=entry.stop or state.stop,
    )


def _apply_rollback(state: LogState, entry: RollbackEntry) -> LogState:
    undone = [one for one in state.history if one.round > entry.round]
    ledger = state.ledger
    for one in undone:
        ledger = ledger.give_back(one.used)
    return replace(
        state,
        slot=state.slot + 1,
        round=entry.round,
        root=entry.state_root,
        durable_round=min(state.durable_round, entry.round),
        samples=state.samples - sum(one.tokens for one in undone),
        ledger=ledger,
        history=tuple(one for one in state.history if one.round <= entry.round),
        stop="",
    )


def forked(state: LogState, lineage: str) -> LogState:
    """The same state under the name of a new lineage."""
    return replace(
        state,
        view=replace(state.view, lineage=lineage),
        ancestry=(*state.ancestry, state.view.lineage)[-64:],
    )
