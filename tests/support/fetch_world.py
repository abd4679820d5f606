"""A fetcher and its holders in one process, on a pretended network and clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from decentral.peer import merkle
from decentral.peer.donor import Donor, DonorAction, Tell
from decentral.peer.fetcher import (
    Allocate,
    AskChunk,
    Blame,
    CancelChunk,
    Done,
    Failed,
    FetchAction,
    FetchConfig,
    Fetcher,
)
from decentral.peer.manifest import (
    META,
    manifest_of,
    specs_of,
)
from decentral.peer.transfer import (
    KeyMaker,
)
from decentral.types import CommittedState, PeerId, TensorSpec

CHUNK = merkle.CHUNK_BYTES
ROOT = b"r" * 32


def make_state(round_: int = 7, seed: int = 1, **arrays: np.ndarray[Any, Any]) -> CommittedState:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = arrays or {
        "param/w": rng.standard_normal(3 * CHUNK // 4 + 5).astype(np.float32),
        "param/b": rng.standard_normal((3, 5)).astype(np.float32),
        "param/none": np.zeros((0, 4), np.float32),
        "momentum/w": rng.standard_normal((CHUNK // 4, 2)).astype(np.float32),
        META: rng.integers(0, 255, 99, dtype=np.uint8),
    }
    leaves = {name: merkle.leaf_hashes(a.reshape(-1).view(np.uint8)) for name, a in tensors.items()}
    state = CommittedState(round=round_, tensors=tensors, root=b"", leaves=leaves)
    return replace(state, root=manifest_of(state).root)


STATE = make_state()
CHUNKS = 4 + 1 + 2 + 1  # of the four tensors that are not empty


@dataclass
class World:
    """A fetcher and its holders on a pretended network: messages and blobs take `delay_s`, and a
    holder's chunks leave one after the other at its rate."""

    fetcher: Fetcher
    donors: dict[PeerId, Donor]
    held: CommittedState | None = None
    deaf: set[PeerId] = field(default_factory=set)
    """Their messages and blobs do not come through."""
    spoil: Callable[[PeerId, bytes], bytes] = lambda peer, data: data
    delay_s: float = 0.01
    rates: dict[PeerId, float] = field(default_factory=dict)
    """Upload in bytes per second; a holder that is not here has no limit."""
    free_at: dict[PeerId, float] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    """Chunks that were on the wire for nobody."""
    now: float = 0.0
    queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    posted: dict[int, tuple[np.ndarray[Any, Any], int, int]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    served: dict[PeerId, int] = field(default_factory=dict)
    blamed: list[PeerId] = field(default_factory=list)
    end: Done | Failed | None = None
    most_outstanding: int = 0
    counter: int = 0

    def later(self, what: Callable[[], None], after_s: float | None = None) -> None:
        self.counter += 1
        delay_s = self.delay_s if after_s is None else after_s
        self.queue.append((self.now + delay_s, self.counter, what))

    def do(self, actions: Sequence[FetchAction]) -> None:
        for action in actions:
            assert self.end is None, f"{action} after {self.end}"
            match action:
                case Tell(peer, message):
                    self.later(lambda p=peer, m=message: self.to_donor(p, m))
                case Allocate(specs, keep):
                    assert self.held is not None or not keep
                    self.arrays = {
                        s.name: self.held.tensors[s.name].copy()
                        if self.held and s.name in keep
                        else np.zeros(s.shape, s.dtype)
                        for s in specs
                    }
                case AskChunk(peer, key, tensor, _, offset, size, message):
                    flat = self.arrays[tensor].reshape(-1).view(np.uint8)
                    spans = [
                        (a is flat.base or a.base is flat.base, o, z)
                        for a, o, z in self.posted.values()
                    ]
                    assert not any(
                        same and o < offset + size and offset < o + z for same, o, z in spans
                    ), "two blobs would write to the same bytes"  # fmt: skip
                    self.posted[key] = (flat, offset, size)
                    self.most_outstanding = max(self.most_outstanding, len(self.posted))
                    self.later(lambda p=peer, m=message: self.to_donor(p, m))
                case CancelChunk(key):
                    self.posted.pop(key, None)
                case Blame(peer, says):
                    assert peer.removeprefix("peer:")[:8] in says
                    self.blamed.append(peer)
                case Done() | Failed():
                    self.end = action

    def to_donor(self, peer: PeerId, message: bytes) -> None:
        donor = self.donors.get(peer)
        if donor is None or peer in self.deaf:
            return
        self.give(peer, donor.handle("fetcher", message, self.now))

    def give(self, peer: PeerId, actions: Sequence[DonorAction]) -> None:
        for action in actions:
            if isinstance(action, Tell):
                answer = self.spoil(peer, action.message)
                self.later(lambda a=answer: self.answer(peer, a))
            else:
                flat = action.array.reshape(-1).view(np.uint8)
                data = flat[action.offset : action.offset + action.size].tobytes()
                data = self.spoil(peer, data)
                took_s = action.size / self.rates.get(peer, float("inf"))
                left_at = self.free_at[peer] = max(self.now, self.free_at.get(peer, 0.0)) + took_s
                self.later(lambda k=action.key, d=data: self.left(peer, k, d), left_at - self.now)

    def left(self, peer: PeerId, key: int, data: bytes) -> None:
        self.later(lambda: self.blob(peer, key, data))
        self.give(peer, self.donors[peer].sent("fetcher", key, self.now))

    def answer(self, peer: PeerId, message: bytes) -> None:
        if peer not in self.deaf:
            self.do(self.fetcher.received(peer, message, self.now))

    def blob(self, peer: PeerId, key: int, data: bytes) -> None:
        if peer in self.deaf:
            return
        if key not in self.posted:
            self.dropped.append(key)
            return
        flat, offset, size = self.posted.pop(key)
        flat[offset : offset + size] = np.frombuffer(data, np.uint8)
        self.served[peer] = self.served.get(peer, 0) + 1
        self.do(self.fetcher.chunk_done(key, merkle.leaf_hash(data), self.now))

    def cut(self, peer: PeerId) -> None:
        """Its process dies: nothing more comes, and the link goes down."""
        self.deaf.add(peer)
        self.do(self.fetcher.holder_down(peer, self.now))

    def run(self, until: Callable[[], bool] = lambda: False, limit_s: float = 500.0) -> None:
        steps = 0
        while self.end is None and not until():
            steps += 1
            assert steps < 100_000 and self.now < limit_s, "it neither ends nor waits"
            timer = self.fetcher.next_timer()
            assert timer is not None
            self.queue.sort(key=lambda item: item[:2])
            if self.queue and self.queue[0][0] <= timer:
                self.now, _, what = self.queue.pop(0)
                what()
            else:
                self.now = max(self.now, timer)
                self.do(self.fetcher.tick(self.now))

    def check_done(self, state: CommittedState = STATE) -> None:
        assert isinstance(self.end, Done), self.end
        assert self.end.root == state.root and self.fetcher.finished
        assert self.fetcher.next_timer() is None
        for name, array in state.tensors.items():
            assert np.array_equal(self.arrays[name], array), name
        assert not self.posted


def world(
    holders: Sequence[PeerId] = ("peer:a", "peer:b", "peer:c"),
    *,
    state: CommittedState = STATE,
    schema: Sequence[TensorSpec] | None = None,
    held: CommittedState | None = None,
    config: FetchConfig | None = None,
    seed: int = 0,
    rates: dict[PeerId, float] | None = None,
    only: str | None = None,
) -> World:
    fetcher = Fetcher(
        schema=specs_of(state) if schema is None else schema, round=state.round, root=state.root,
        holders=holders, keys=KeyMaker(5), seed=seed, held=held, config=config, only=only,
    )  # fmt: skip
    donors = {}
    for holder in holders:
        donors[holder] = Donor()
        donors[holder].hold(state)
    result = World(fetcher, donors, held, rates=rates or {})
    result.do(fetcher.start(0.0))
    return result


def failure(w: World) -> Exception:
    assert isinstance(w.end, Failed)
    return w.end.error
