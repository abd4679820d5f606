"""Meshes without a network: any number of peers in this process, each trained by a thread.

`Cluster` does what the coordinator does when nothing goes wrong, and lets a test make things go
wrong: it waits until all members have contributed, starts the reduce, commits when all report
the same root, and hands out leases.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from decentral.errors import AbortedError
from decentral.leases import subtract
from decentral.mesh_port import Holding, Order, StateArrived, Wanted
from decentral.peer.protocol import (
    AbortReduce,
    Committed,
    Joined,
    Left,
    RoundEntry,
    StartReduce,
    ViewEntry,
)
from decentral.types import CommittedState, Contribution, PeerId, Range, View


class FakeMesh:
    """One peer's `MeshPort`. Records what the trainer says."""

    run_id = b"r" * 32
    join_word = "127.0.0.1:1#fake"
    native = None
    full_mesh_up_to = 32

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name, self.me = cluster, name, f"peer:{name}"
        self.events: list[dict[str, Any]] = []
        self.recorded: list[dict[str, Any]] = []
        self.held: list[CommittedState] = []
        self.failures: list[tuple[int, int, PeerId | None, str]] = []
        self.phases: list[str | None] = []
        self.checkpoints: list[int] = []
        self.staleness: list[int] = []
        self.steps = 0
        self.updates_wanted = False
        self.updates: list[tuple[bytes, CommittedState]] = []
        self.refused_updates: list[int] = []
        self.left = ""
        self.closed = False
        self.order: Callable[[Order], None] = lambda order: None

    def start(
        self,
        *,
        holdings: Mapping[str, Holding],
        fingerprint: bytes,
        lease_samples: int,
        on_order: Callable[[Order], None],
        tags: tuple[str, ...] = ("",),
        min_contributors: int = 0,
        grace_s: float = 0.0,
    ) -> None:
        self.fingerprint = fingerprint
        self.initial, self.resumed = holdings[""].initial, holdings[""].resumed
        self.lease_samples, self.order = lease_samples, on_order
        self.cluster.started(self, holdings[""].state)

    def contribute(
        self,
        round: int,
        tokens: int,
        leases: tuple[Range, ...],
        *,
        staleness: int = 0,
        steps: int = 0,
        step_s: float = 0.0,
        tag: str = "",
    ) -> None:
        self.staleness.append(staleness)
        self.cluster.contributed(self, round, tokens, leases)

    def reduced(self, round: int, attempt: int, state_root: bytes, *, tag: str = "") -> None:
        self.cluster.reduced(self, round, attempt, state_root)

    def reduce_failed(
        self, round: int, attempt: int, suspect: PeerId | None, says: str, *, tag: str = ""
    ) -> None:
        self.failures.append((round, attempt, suspect, says))
        self.cluster.reduce_failed(round, attempt)

    def connect(self, peers: Sequence[PeerId], wanted: Wanted) -> None:
        """All are."""

    def hold(self, state: CommittedState, *, tag: str = "") -> None:
        self.held.append(state)

    def wants_updates(self, tag: str = "") -> bool:
        return self.updates_wanted

    def hold_update(self, state_root: bytes, update: CommittedState, *, tag: str = "") -> None:
        self.updates.append((state_root, update))

    def refuse_update(self, round: int, *, tag: str = "") -> None:
        self.refused_updates.append(round)

    def checkpointed(self, round: int, kept: tuple[int, ...] = (), *, tag: str = "") -> None:
        self.checkpoints.append(round)

    def progress(self, step: int) -> None:
        self.steps = step

    def busy(self, phase: str | None) -> None:
        self.phases.append(phase)

    def leave(self, reason: str, timeout_s: float) -> None:
        self.left = reason

    def stop(self, reason: str) -> None:
        self.cluster.stop = reason

    def traffic(self) -> tuple[int, int]:
        return 1000, 2000

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def record(self, event: dict[str, Any]) -> None:
        self.recorded.append(event)

    def telemetry(self, *, tag: str = "", **fields: Any) -> None:
        self.shown = fields

    def close(self) -> None:
        self.closed = True

    def rounds(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "round"]


class FakeWork:
    def __init__(self, exchange: Exchange, rank: int, dst: Any) -> None:
        self._exchange, self._rank, self._dst = exchange, rank, dst

    def wait(self, timeout_s: float | None = None) -> bool:
        if not self._exchange.done.wait(timeout_s):
            return False
        if self._exchange.aborted is not None:
            raise AbortedError(self._exchange.aborted, phase="all-reduce")
        self._dst[:] = self._exchange.mean
        return True

    def abort(self, reason: str) -> None:
        self._exchange.abort(reason)


class Exchange:
    """One all-reduce: complete when every rank has come."""

    def __init__(self, ranks: int) -> None:
        self.sources: dict[int, Any] = {}
        self.ranks = ranks
        self.done = threading.Event()
        self.aborted: str | None = None
        self.mean: Any = None
        self._lock = threading.Lock()

    def enter(self, rank: int, src: Any, dst: Any, weights: Sequence[float]) -> FakeWork:
        with self._lock:
            self.sources[rank] = src.copy()
            if len(self.sources) == self.ranks and not self.done.is_set():
                total = np.zeros_like(src)
                for r in range(self.ranks):
                    total += np.float32(weights[r]) * self.sources[r]
                self.mean = total * np.float32(1 / sum(weights))
                self.done.set()
        return FakeWork(self, rank, dst)

    def abort(self, reason: str) -> None:
        with self._lock:
            if not self.done.is_set():
                self.aborted = reason
                self.done.set()


class FakeGroup:
    def __init__(self, cluster: Cluster, view: View, me: PeerId) -> None:
        self._cluster, self._view, self._me = cluster, view, me

    def all_reduce(
        self,
        src: Any,
        dst: Any,
        codec: str = "fp32",
        *,
        weights: Sequence[float],
        round: int,
        attempt: int,
        tag: int,
        **options: Any,
    ) -> FakeWork:
        exchange = self._cluster.exchange(round, attempt, len(self._view.members))
        return exchange.enter(self._view.rank(self._me), src, dst, weights)


class Cluster:
    """Peers "a", "b", … in one view. Its lock makes it the single decider."""

    def __init__(self, count: int = 1, *, leave_out: frozenset[PeerId] = frozenset()) -> None:
        self.meshes = [FakeMesh(self, chr(ord("a") + i)) for i in range(count)]
        self.view = View(lineage="L", epoch=1, members=tuple(m.me for m in self.meshes))
        self.leave_out = leave_out
        """Their contributions are not counted in the next round (then this is emptied)."""
        self.stop = ""
        self.committed: list[RoundEntry] = []
        self.leases: dict[PeerId, tuple[Range, ...]] = {}
        self.before_reduce: Callable[[StartReduce], bool] = lambda order: True
        """A test's own idea; false: this attempt is not started."""
        self._next_sample = 0
        self._lock = threading.RLock()
        self._present: list[FakeMesh] = []
        self._state: CommittedState | None = None
        self._offers: dict[PeerId, Contribution] = {}
        self._roots: dict[PeerId, bytes] = {}
        self._running: tuple[int, int, tuple[Contribution, ...]] = (0, 0, ())
        self._exchanges: dict[tuple[int, int], Exchange] = {}
        self._slot = 0

    def make_group(self, native: Any, view: View, me: PeerId, wanted: Wanted) -> FakeGroup:
        return FakeGroup(self, view, me)

    def exchange(self, round: int, attempt: int, ranks: int) -> Exchange:
        with self._lock:
            return self._exchanges.setdefault((round, attempt), Exchange(ranks))

    def to_all(self, order: Order) -> None:
        for mesh in self._present:
            mesh.order(order)

    def started(self, mesh: FakeMesh, state: CommittedState | None) -> None:
        with self._lock:
            self._present.append(mesh)
            if state is not None and self._state is None:
                self._state = state
            if len(self._present) < len(self.meshes):
                return
            assert self._state is not None, "somebody founds the run"
            for m in self.meshes:
                self._grant(m)
                m.order(Joined(self.view, self._state.round))
                if m.initial is None and m.resumed is None:
                    m.order(StateArrived(self._state))
                entry = ViewEntry(view=self.view, reason="test")
                m.order(Committed(self._slot, entry, self.view, self.leases[m.me]))

    def _grant(self, mesh: FakeMesh) -> None:
        start = self._next_sample
        self._next_sample += mesh.lease_samples
        left = self.leases.get(mesh.me, ())
        self.leases[mesh.me] = (*left, Range(start, self._next_sample))

    def contributed(
        self, mesh: FakeMesh, round: int, tokens: int, leases: tuple[Range, ...]
    ) -> None:
        with self._lock:
            assert round == len(self.committed) + 1 + self._base_round(), "an old or early round"
            assert mesh.me not in self._offers, "a round is contributed to once"
            assert not subtract(leases, self.leases[mesh.me]), "leases that are not its own"
            self._offers[mesh.me] = Contribution(peer=mesh.me, tokens=tokens, leases=leases)
            if len(self._offers) == len(self.meshes):
                counted = tuple(
                    self._offers[m.me] for m in self.meshes if m.me not in self.leave_out
                )
                self._start(round, 1, counted)

    def _base_round(self) -> int:
        assert self._state is not None
        return self._state.round

    def _start(self, round: int, attempt: int, contributions: tuple[Contribution, ...]) -> None:
        self._running = (round, attempt, contributions)
        self._roots.clear()
        order = StartReduce(self.view, round, attempt, self.view.members, contributions)
        if self.before_reduce(order):
            self.to_all(order)

    def reduce_failed(self, round: int, attempt: int) -> None:
        with self._lock:
            if self._running[:2] != (round, attempt):
                return
            self.to_all(AbortReduce(round, attempt, "a member failed"))
            self._start(round, attempt + 1, self._running[2])

    def reduced(self, mesh: FakeMesh, round: int, attempt: int, root: bytes) -> None:
        with self._lock:
            if self._running[:2] != (round, attempt):
                return
            self._roots[mesh.me] = root
            if len(self._roots) == len(self.meshes):
                assert len(set(self._roots.values())) == 1, "members reduced to different bits"
                self.commit(round, attempt, root)

    def commit(self, round: int, attempt: int, root: bytes) -> None:
        contributions = self._running[2]
        entry = RoundEntry(
            round=round,
            attempt=attempt,
            contributions=contributions,
            state_root=root,
            durable_round=0,
            stop=self.stop,
        )
        self.committed.append(entry)
        self._slot += 1
        self._offers.clear()
        self._exchanges.clear()
        self.leave_out = frozenset()
        used = {c.peer: c.leases for c in contributions}
        for mesh in self.meshes:  # in rank order, so that leases do not depend on timing
            if mesh.me in used:
                self.leases[mesh.me] = subtract(self.leases[mesh.me], used[mesh.me])
                self._grant(mesh)
            mesh.order(Committed(self._slot, entry, self.view, self.leases[mesh.me]))

    def end(self, says: str) -> None:
        self.to_all(Left(says))

    def samples_per_peer(self) -> dict[PeerId, list[Range]]:
        counted: dict[PeerId, list[Range]] = defaultdict(list)
        for entry in self.committed:
            for contribution in entry.contributions:
                counted[contribution.peer].extend(contribution.leases)
        return counted
