"""A run of several modules without a network: who holds what, and each module's rounds.

`Hub` does what coordinators do when nothing goes wrong, for each tag by itself: it waits until all
holders have contributed, starts the reduce, and commits when all report one root. Every peer hears
of every commit. `slow` tags wait for `start`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fake_mesh import Exchange, FakeWork

from decentral.leases import subtract
from decentral.mesh_port import Holding, Order, StateArrived, Wanted
from decentral.peer.protocol import (
    AbortReduce,
    Committed,
    Entry,
    Joined,
    RoundEntry,
    StartReduce,
)
from decentral.types import CommittedState, Contribution, PeerId, Range, View


class ModuleMesh:
    """One peer's `MeshPort`. Records what the trainer says."""

    run_id = b"r" * 32
    join_word = "127.0.0.1:1#fake"
    native = None
    full_mesh_up_to = 32

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name, self.me = hub, name, f"peer:{name}"
        self.events: list[dict[str, Any]] = []
        self.offers: list[tuple[str, int, int, tuple[Range, ...]]] = []
        self.failures: list[tuple[str, int, int, str]] = []
        self.held: dict[str, CommittedState] = {}
        self.checkpoints: dict[str, list[int]] = {}
        self.shown: dict[str, dict[str, Any]] = {}
        self.steps = 0
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
        self.holdings, self.fingerprint, self.tags = holdings, fingerprint, tags
        self.lease_samples, self.order = lease_samples, on_order
        self.hub.started(self)

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
        self.offers.append((tag, round, tokens, leases))
        self.hub.contributed(self, tag, round, tokens, leases)

    def reduced(self, round: int, attempt: int, state_root: bytes, *, tag: str = "") -> None:
        self.hub.reduced(self, tag, round, attempt, state_root)

    def reduce_failed(
        self, round: int, attempt: int, suspect: PeerId | None, says: str, *, tag: str = ""
    ) -> None:
        self.failures.append((tag, round, attempt, says))
        self.hub.reduce_failed(tag, round, attempt)

    def connect(self, peers: Sequence[PeerId], wanted: Wanted) -> None:
        """All are."""

    def hold(self, state: CommittedState, *, tag: str = "") -> None:
        self.held[tag] = state

    def wants_updates(self, tag: str = "") -> bool:
        return False

    def hold_update(self, state_root: bytes, update: CommittedState, *, tag: str = "") -> None:
        raise AssertionError("nobody wants updates")

    def refuse_update(self, round: int, *, tag: str = "") -> None:
        raise AssertionError("there are no updates")

    def checkpointed(self, round: int, kept: tuple[int, ...] = (), *, tag: str = "") -> None:
        self.checkpoints.setdefault(tag, []).append(round)

    def progress(self, step: int) -> None:
        self.steps = max(self.steps + 1, step)

    def busy(self, phase: str | None) -> None: ...

    def leave(self, reason: str, timeout_s: float) -> None: ...

    def stop(self, reason: str) -> None:
        self.hub.stop = reason

    def traffic(self) -> tuple[int, int]:
        return 1000, 2000

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def telemetry(self, *, tag: str = "", **fields: Any) -> None:
        self.shown[tag] = fields

    def close(self) -> None: ...

    def told(self, kind: str, tag: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind and e.get("tag") == tag]


class ModuleGroup:
    def __init__(self, hub: Hub, view: View, me: PeerId) -> None:
        self._hub, self._view, self._me = hub, view, me

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
    ) -> FakeWork:
        exchange = self._hub.exchange(tag, round, attempt, len(self._view.members))
        return exchange.enter(self._view.rank(self._me), src, dst, weights)


class Hub:
    """`holders`: per tag, the names of the peers that take part in it."""

    def __init__(self, holders: Mapping[str, str]) -> None:
        names = sorted(set("".join(holders.values())))
        self.meshes = {name: ModuleMesh(self, name) for name in names}
        self.holders = {
            tag: [self.meshes[name] for name in names] for tag, names in holders.items()
        }
        self.view = View(lineage="L", epoch=1, members=tuple(f"peer:{name}" for name in names))
        self.slow: set[str] = set()
        """A round of these tags begins only with `start`."""
        self.on_offer: Callable[[ModuleMesh, str, int], None] = lambda mesh, tag, round: None
        self.orders_of: Callable[[ModuleMesh, str], None] | None = None
        self.stop = ""
        self.leases: dict[PeerId, tuple[Range, ...]] = {}
        self.committed: list[RoundEntry] = []
        self._next_sample = 0
        self._slot = 0
        self._lock = threading.RLock()
        self._present: list[ModuleMesh] = []
        self._state: dict[str, CommittedState] = {}
        self._offers: dict[str, dict[PeerId, Contribution]] = {tag: {} for tag in holders}
        self._roots: dict[str, dict[PeerId, bytes]] = {tag: {} for tag in holders}
        self._running: dict[str, tuple[int, int, tuple[Contribution, ...]]] = {}
        self._exchanges: dict[tuple[int, int, int], Exchange] = {}

    def make_group(self, native: Any, view: View, me: PeerId, wanted: Wanted) -> ModuleGroup:
        return ModuleGroup(self, view, me)

    def exchange(self, tag: int, round: int, attempt: int, ranks: int) -> Exchange:
        with self._lock:
            return self._exchanges.setdefault((tag, round, attempt), Exchange(ranks))

    def started(self, mesh: ModuleMesh) -> None:
        with self._lock:
            self._present.append(mesh)
            for tag, holding in mesh.holdings.items():
                if holding.state is not None:
                    self._state.setdefault(tag, holding.state)
            if len(self._present) == len(self.meshes):
                rounds = tuple((tag, self._state[tag].round) for tag in mesh.tags)
                for one in self._present:
                    self._grant(one)
                    leases = self.leases[one.me]
                    one.order(Joined(self.view, rounds[0][1], leases, rounds))
                    for tag, holding in one.holdings.items():
                        if holding.state is None:
                            one.order(StateArrived(self._state[tag], tag))

    def _grant(self, mesh: ModuleMesh) -> None:
        """Up to its share, as the ledger does after every entry."""
        left = self.leases.get(mesh.me, ())
        missing = mesh.lease_samples - sum(len(one) for one in left)
        fresh = Range(self._next_sample, self._next_sample + missing)
        self._next_sample += missing
        self.leases[mesh.me] = (*left, fresh) if missing else left

    def contributed(
        self, mesh: ModuleMesh, tag: str, round: int, tokens: int, leases: tuple[Range, ...]
    ) -> None:
        with self._lock:
            assert round == self._state[tag].round + 1, "an old or early round"
            assert not subtract(leases, self.leases[mesh.me]), "leases that are not its own"
            offers = self._offers[tag]
            offers[mesh.me] = Contribution(peer=mesh.me, tokens=tokens, leases=leases)
            self.on_offer(mesh, tag, round)
            if len(offers) == len(self.holders[tag]) and tag not in self.slow:
                self.start(tag)

    def start(self, tag: str, attempt: int = 1) -> None:
        with self._lock:
            contributions = tuple(self._offers[tag][mesh.me] for mesh in self.holders[tag])
            round = self._state[tag].round + 1
            self._running[tag] = (round, attempt, contributions)
            self._roots[tag].clear()
            members = tuple(mesh.me for mesh in self.holders[tag])
            for mesh in self.holders[tag]:
                mesh.order(StartReduce(self.view, round, attempt, members, contributions, tag))

    def abort(self, tag: str, says: str) -> None:
        with self._lock:
            round, attempt, _ = self._running.pop(tag)
            for mesh in self.holders[tag]:
                mesh.order(AbortReduce(round, attempt, says, tag))

    def reduce_failed(self, tag: str, round: int, attempt: int) -> None:
        with self._lock:
            if self._running.get(tag, (0, 0))[:2] == (round, attempt):
                self.abort(tag, "a member failed")
                self.start(tag, attempt + 1)

    def reduced(self, mesh: ModuleMesh, tag: str, round: int, attempt: int, root: bytes) -> None:
        with self._lock:
            if self._running.get(tag, (0, 0))[:2] != (round, attempt):
                return
            roots = self._roots[tag]
            roots[mesh.me] = root
            if len(roots) == len(self.holders[tag]):
                assert len(set(roots.values())) == 1, "members reduced to different bits"
                self._commit(tag, round, attempt, root)

    def _commit(self, tag: str, round: int, attempt: int, root: bytes) -> None:
        contributions = self._running.pop(tag)[2]
        entry = RoundEntry(
            round=round,
            attempt=attempt,
            contributions=contributions,
            state_root=root,
            durable_round=0,
            stop=self.stop,
            tag=tag,
        )
        self.committed.append(entry)
        self._state[tag] = CommittedState(round=round, tensors={}, root=root)
        self._offers[tag].clear()
        for one in contributions:
            self.leases[one.peer] = subtract(self.leases[one.peer], one.leases)
        for mesh in self._present:
            self._grant(mesh)
        self.tell_all(entry)

    def tell_all(self, entry: Entry) -> None:
        self._slot += 1
        for mesh in self._present:
            mesh.order(Committed(self._slot, entry, self.view, self.leases[mesh.me]))

    def rounds(self, tag: str) -> int:
        return self._state[tag].round
