"""Simulated training: it computes, contributes, reduces with the others, applies, checkpoints.

The state of a round is a hash over the one before and the contributions, so that any difference
in what was counted shows as another root. `tokens` numbers each piece of work: counting one twice
is visible (I6).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.peer.protocol import (
    AbortReduce,
    Action,
    Checkpointed,
    CloseRound,
    Committed,
    Contribute,
    Evicted,
    FetchState,
    Joined,
    Reduced,
    ReduceFailed,
    RollbackEntry,
    RoundEntry,
    StartReduce,
    StateHeld,
)
from decentral.types import Contribution, PeerId, Range

if TYPE_CHECKING:
    from decentral.simulator.world import Node, World

INITIAL = hashlib.sha256(b"initial state").digest()
NOTICE_S = 0.3
"""How long native code takes to notice that a participant is gone."""


def next_root(root: bytes, contributions: tuple[Contribution, ...]) -> bytes:
    text = " ".join(f"{one.peer} {one.tokens}" for one in contributions)
    return hashlib.sha256(root + text.encode()).digest()


@dataclass(slots=True)
class _Reduce:
    participants: tuple[PeerId, ...]
    contributions: tuple[Contribution, ...]
    joined: dict[PeerId, int] = field(default_factory=dict)
    failed: str = ""
    suspect: PeerId | None = None
    done: set[PeerId] = field(default_factory=set)


class Reduces:
    """All-reduces under way: they need every participant from start to end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._running: dict[tuple[object, ...], _Reduce] = {}

    def join(self, node: Node, action: StartReduce) -> None:
        key = (action.view, action.round, action.attempt, action.participants)
        one = self._running.get(key)
        if one is None:
            one = _Reduce(action.participants, action.contributions)
            self._running = dict(list(self._running.items())[-63:])
            self._running[key] = one
        one.joined[node.peer] = node.life
        if one.contributions != action.contributions:
            self._fail(one, None, "members disagree about the operation")
        if one.failed:
            self._tell_failure(one, node.peer, key)
        elif set(one.joined) == set(one.participants):
            network = self.world.network
            for a in one.participants:
                for b in one.participants:
                    if a < b and frozenset((a, b)) not in network.links:
                        self._fail(one, b, "no link")
                        return
            for peer in one.participants:
                spread_s = self.world.reduce_s * (0.9 + 0.2 * self.world.rng.random())
                self.world.after(spread_s, self._finish, one, peer, key)

    def _finish(self, one: _Reduce, peer: PeerId, key: tuple[object, ...]) -> None:
        if one.failed:
            return
        one.done.add(peer)
        node = self.world.nodes[peer]
        if node.life == one.joined[peer]:
            node.trainer.reduced(key, one.contributions)

    def gone(self, peer: PeerId) -> None:
        for one in self._running.values():
            if peer in one.participants and len(one.done) < len(one.participants):
                self._fail(one, peer, "a participant died")

    def broken(self, a: PeerId, b: PeerId) -> None:
        for one in self._running.values():
            both = a in one.participants and b in one.participants
            if both and len(one.done) < len(one.participants):
                self._fail(one, b, "a link broke")

    def abort(self, peer: PeerId, number: int, attempt: int) -> None:
        for key, one in self._running.items():
            running = peer in one.joined and peer not in one.done
            if key[1:3] == (number, attempt) and running:
                self._fail(one, None, "called off")

    def _fail(self, one: _Reduce, suspect: PeerId | None, says: str) -> None:
        if one.failed:
            return
        one.failed, one.suspect = says, suspect
        key = next(key for key, other in self._running.items() if other is one)
        for peer in one.joined:
            if peer not in one.done:
                self._tell_failure(one, peer, key)

    def _tell_failure(self, one: _Reduce, peer: PeerId, key: tuple[object, ...]) -> None:
        wait_s = NOTICE_S * (0.5 + self.world.rng.random())
        self.world.after(wait_s, self._failed, one, peer, key)

    def _failed(self, one: _Reduce, peer: PeerId, key: tuple[object, ...]) -> None:
        node = self.world.nodes[peer]
        if node.life == one.joined[peer]:
            node.trainer.reduce_failed(key, one.suspect, one.failed)


class Trainer:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.states: dict[int, bytes] = {}
        """States in memory by round, the newest few: what donors can serve."""
        self.held: tuple[int, bytes] | None = None
        self.leases: tuple[Range, ...] = ()
        self.member = False
        self.work: tuple[int, tuple[Range, ...]] | None = None
        """Finished work that no committed round has counted yet."""
        self.reducing: tuple[int, int] | None = None
        self.outcome: tuple[int, int, bytes] | None = None
        self.fetching: FetchState | None = None
        self.steps = 0
        self.hung = False
        self._task = 0

    def boot(self, checkpoint: tuple[int, bytes] | None) -> None:
        self._hold(*(checkpoint or (0, INITIAL)))

    def progress(self) -> int:
        return self.steps if self.hung else int(self.world.now * 10) + self.steps

    def _later(self, seconds: float, call: object, *args: object) -> None:
        self.world.after(seconds, self._if_alive, self.node.life, call, args)

    def _if_alive(self, life: int, call: object, args: tuple[object, ...]) -> None:
        if life == self.node.life and callable(call):
            call(*args)

    # -------------------------------------------------------------- actions of the core

    def on(self, action: Action) -> None:
        match action:
            case StartReduce():
                self.reducing = (action.round, action.attempt)
                self.outcome = None
                self.world.reduces.join(self.node, action)
            case AbortReduce(number, attempt, _):
                if self.reducing == (number, attempt):
                    self.reducing = self.outcome = None
                    self.world.reduces.abort(self.node.peer, number, attempt)
            case Committed():
                self._committed(action)
            case CloseRound(number):
                if self.held is not None and number == self.held[0] + 1 and not self.hung:
                    self._later(0.05, self._contribute, number)
            case FetchState():
                self.fetching = action
                self._later(0.3 + self.world.rng.random(), self._fetch, action)
            case Joined(_, number, leases):
                self.member = True
                self.leases = leases
                self.work = self.reducing = self.outcome = None
                if self.held is not None and self.held[0] == number:
                    self._compute()
            case Evicted():
                self.member = False
                self.work = self.reducing = self.outcome = None
            case _:
                pass

    def _committed(self, action: Committed) -> None:
        entry = action.entry
        self.leases = action.leases
        if isinstance(entry, RoundEntry):
            mine = [one for one in entry.contributions if one.peer == self.node.peer]
            if self.work is not None and any(one.tokens == self.work[0] for one in mine):
                self.work = None
            outcome, self.outcome, self.reducing = self.outcome, None, None
            if outcome == (entry.round, entry.attempt, entry.state_root):
                self._later(0.02, self._hold, entry.round, entry.state_root)
        elif isinstance(entry, RollbackEntry):
            self.work = self.reducing = self.outcome = None
            if self.held == (entry.round, entry.state_root):
                self._compute()

    # -------------------------------------------------------------- state

    def _hold(self, number: int, root: bytes) -> None:
        self.held = (number, root)
        self.states = dict([*self.states.items(), (number, root)][-3:])
        self.fetching = None
        self.node.deliver(StateHeld(number, root))
        self._later(self.world.checkpoint_s, self._checkpoint, number, root)
        self._compute()

    def _checkpoint(self, number: int, root: bytes) -> None:
        self.node.checkpoint = (number, root)
        self.node.deliver(Checkpointed(number))

    def _fetch(self, action: FetchState) -> None:
        if self.fetching is not action:
            return
        for peer in action.holders:
            donor = self.world.nodes[peer]
            if (
                donor.up
                and not donor.paused
                and self.world.network.reaches(peer, self.node.peer)
                and donor.trainer.states.get(action.round) == action.state_root
            ):
                self._hold(action.round, action.state_root)
                return
        self._later(1.0, self._fetch, action)

    # -------------------------------------------------------------- work

    def _compute(self) -> None:
        if not self.member or self.held is None:
            return
        self._task += 1
        seconds = self.world.compute_s * self.node.speed * (0.9 + 0.2 * self.world.rng.random())
        if self.work is not None:
            seconds *= 0.1
        self._later(seconds, self._computed, self._task, self.held[0] + 1)

    def _computed(self, task: int, number: int) -> None:
        if task == self._task and not self.hung:
            self._contribute(number)

    def _contribute(self, number: int) -> None:
        if not self.member or self.held is None or number != self.held[0] + 1:
            return
        self._task += 1
        if self.work is None:
            self.world.tokens += 1
            used = []
            for one in self.leases[:1]:
                used.append(Range(one.start, one.start + max(1, len(one) * 3 // 4)))
            self.work = (1_000_000 + self.world.tokens, tuple(used))
        self.node.deliver(Contribute(number, self.work[0], self.work[1]))

    def reduced(self, key: tuple[object, ...], contributions: tuple[Contribution, ...]) -> None:
        if self.reducing is None or self.reducing != key[1:3] or self.held is None:
            return
        number, attempt = self.reducing
        root = next_root(self.held[1], contributions)
        self.outcome = (number, attempt, root)
        self.node.deliver(Reduced(number, attempt, root))

    def reduce_failed(self, key: tuple[object, ...], suspect: PeerId | None, says: str) -> None:
        if self.reducing is not None and self.reducing == key[1:3] and self.outcome is None:
            number, attempt = self.reducing
            self.reducing = None
            self.node.deliver(ReduceFailed(number, attempt, suspect, says))
