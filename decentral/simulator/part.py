"""Simulated training under one tag: compute, contribute, reduce with the others, apply, checkpoint.

The state of a round is a hash over the one before and the contributions, so that any difference
in what was counted shows as another root. `tokens` numbers each piece of work: counting one twice
is visible (I6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from decentral.peer.protocol import (
    Checkpointed,
    Committed,
    Contribute,
    FetchState,
    Reduced,
    ReduceFailed,
    RollbackEntry,
    RoundEntry,
    StartReduce,
    StateHeld,
)
from decentral.simulator.reduces import LOOK_AGAIN_S
from decentral.types import Contribution, PeerId, Range

if TYPE_CHECKING:
    from decentral.simulator.trainer import Trainer

SLICE_S = 0.5
"""State arrives in pieces; those that have come stay when their source dies."""
STEPS = 10
"""Inner steps per round: a trainer that is asked to contribute finishes the one it is at."""
IN_MEMORY = 3


def initial_root(tag: str) -> bytes:
    return hashlib.sha256(b"initial state " + tag.encode()).digest()


def next_root(root: bytes, contributions: tuple[Contribution, ...]) -> bytes:
    text = " ".join(f"{one.peer} {one.tokens}" for one in contributions)
    return hashlib.sha256(root + text.encode()).digest()


class Part:
    """What one peer trains under one tag: a model, a fragment of it, or a module."""

    def __init__(self, trainer: Trainer, tag: str) -> None:
        self.trainer = trainer
        self.node = trainer.node
        self.world = trainer.world
        self.tag = tag
        self.states: dict[int, bytes] = {}
        """States in memory by round, the newest few: what donors can serve."""
        self.held: tuple[int, bytes] | None = None
        self.work: tuple[int, tuple[Range, ...], int] | None = None
        """Finished work that no commit has counted yet, and the round that it began at."""
        self.reducing: tuple[int, int] | None = None
        self.outcome: tuple[int, int, bytes] | None = None
        self.fetching: FetchState | None = None
        self._arrived = (b"", 0.0)
        """Of the state with this root, how many bytes are here."""
        self._task = 0
        self._began_at, self._ready_at = 0, 0.0
        """The round at which the steps under way began, and when they are done."""

    def boot(self) -> None:
        kept = self.node.disk.checkpoints.get(self.tag, {})
        newest = max(kept, default=0)
        self._hold(newest, kept[newest] if kept else initial_root(self.tag))

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self.world.after(seconds, self._if_running, self.node.life, call, args)

    def _if_running(self, life: int, call: Callable[..., None], args: tuple[object, ...]) -> None:
        if life != self.node.life:
            return
        if self.node.frozen:
            self._later(LOOK_AGAIN_S, call, *args)
        else:
            call(*args)

    # -------------------------------------------------------------- actions of the core

    def start_reduce(self, action: StartReduce) -> None:
        self.reducing = (action.round, action.attempt)
        self.outcome = None
        self.world.reduces.join(self.node, action)

    def abort_reduce(self, number: int, attempt: int) -> None:
        if self.reducing == (number, attempt):
            self.reducing = self.outcome = None
            self.world.reduces.abort(self.node.peer, self.tag, number, attempt)

    def close_round(self, number: int) -> None:
        if self.held is not None and number == self.held[0] + 1 and not self.trainer.hung:
            step_s = self._seconds() / STEPS
            self._later(step_s * self.world.rng.random(), self._contribute, number)

    def fetch_state(self, action: FetchState) -> None:
        self.fetching = action
        self._later(SLICE_S * self.world.rng.random(), self._fetch, action)

    def joined(self, number: int) -> None:
        self.drop()
        if self.held is not None and self.held[0] == number:
            self.compute()

    def drop(self) -> None:
        """What no commit has counted is void."""
        self.work = self.reducing = self.outcome = None
        self._ready_at = 0.0

    def committed(self, action: Committed) -> None:
        entry = action.entry
        if isinstance(entry, RoundEntry):
            mine = [one for one in entry.contributions if one.peer == self.node.peer]
            if self.work is not None and any(one.tokens == self.work[0] for one in mine):
                self.work = None
            outcome, self.outcome, self.reducing = self.outcome, None, None
            if outcome == (entry.round, entry.attempt, entry.state_root):
                self._later(0.02, self._hold, entry.round, entry.state_root)
        elif isinstance(entry, RollbackEntry):
            self.drop()
            disk = self.node.disk.checkpoints.setdefault(self.tag, {})
            for number in [one for one in disk if one > entry.round]:
                del disk[number]
            if self.held == (entry.round, entry.state_root):
                self.compute()
            elif disk.get(entry.round) == entry.state_root:
                self._later(0.1, self._hold, entry.round, entry.state_root)

    # -------------------------------------------------------------- state

    def _hold(self, number: int, root: bytes) -> None:
        self.held = (number, root)
        self.states = dict([*self.states.items(), (number, root)][-IN_MEMORY:])
        self.fetching = None
        self.node.deliver(StateHeld(number, root, self.tag))
        writes_s = self.world.conditions.checkpoint_s * self.node.machine.disk_slowness
        self._later(writes_s, self._checkpoint, number, root)
        self.compute()

    def _checkpoint(self, number: int, root: bytes) -> None:
        if self.held is None or number > self.held[0]:
            return  # the run has gone back meanwhile
        kept = self.node.disk.keep_checkpoint(self.tag, number, root)
        self.node.deliver(Checkpointed(number, self.tag, kept))

    def _fetch(self, action: FetchState) -> None:
        """One slice of the transfer: as much as our line and those of the sources carry."""
        if self.fetching is not action:
            return
        nodes, network = self.world.nodes, self.world.network
        sources = [
            peer
            for peer in action.holders
            if network.flows(peer, self.node.peer)
            and nodes[peer].trainer.parts[self.tag].states.get(action.round) == action.state_root
        ]
        upload = sum(nodes[peer].machine.upload for peer in sources)
        rate = min(self.node.machine.download, upload)
        root, arrived = self._arrived
        arrived = rate * SLICE_S + (arrived if root == action.state_root else 0.0)
        self._arrived = (action.state_root, arrived)
        missing = self.world.conditions.state_bytes - arrived
        if sources and missing <= 0:
            self._later(SLICE_S * (1 + missing / (rate * SLICE_S)), self._fetched, action)
        else:
            self._later(SLICE_S, self._fetch, action)

    def _fetched(self, action: FetchState) -> None:
        if self.fetching is action:
            self._hold(action.round, action.state_root)

    # -------------------------------------------------------------- work

    def compute(self) -> None:
        if not self.trainer.member or self.held is None or not self.trainer.takes(self.tag):
            return
        self._task += 1
        now = self.world.now
        if self.work is not None:
            seconds = 0.1 * self._seconds()  # late work is offered soon
        elif self._ready_at > now:
            seconds = self._ready_at - now  # a newer state under the same steps
        else:
            seconds = self._seconds() * (0.9 + 0.2 * self.world.rng.random())
            self._began_at, self._ready_at = self.held[0], now + seconds
        self._later(seconds, self._computed, self._task, self.held[0] + 1)

    def _seconds(self) -> float:
        machine = self.node.machine
        return self.world.conditions.compute_s * machine.compute * machine.slowness

    def _computed(self, task: int, number: int) -> None:
        if task == self._task and not self.trainer.hung:
            self._contribute(number)

    def _contribute(self, number: int) -> None:
        if not self.trainer.member or self.held is None or number != self.held[0] + 1:
            return
        self._task += 1
        if self.work is None:
            self.work = (*self.trainer.new_work(self.tag), self._began_at)
            self._ready_at = 0.0
        tokens, leases, began_at = self.work
        staleness = max(0, number - 1 - began_at)
        self.node.deliver(Contribute(number, tokens, leases, staleness, tag=self.tag))

    # -------------------------------------------------------------- reducing

    def reduced(self, number: int, attempt: int, contributions: tuple[Contribution, ...]) -> None:
        if self.reducing != (number, attempt) or self.held is None:
            return
        root = next_root(self.held[1], contributions)
        self.outcome = (number, attempt, root)
        self.node.deliver(Reduced(number, attempt, root, self.tag))

    def reduce_failed(self, number: int, attempt: int, suspect: PeerId | None, says: str) -> None:
        if self.reducing == (number, attempt) and self.outcome is None:
            self.reducing = None
            self.node.deliver(ReduceFailed(number, attempt, suspect, says, self.tag))
