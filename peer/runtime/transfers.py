"""Carries out one tag's state transfer: what `Fetcher`, `Replay` and `Donor` ask for, over links
and blobs.

    goal: θ(R)        held θ(b), b committed before R ────────────▶ replay b + 1 … R
                      else fetch θ(R); the run moves on: goal θ(R') ▶ replay R + 1 … R'
                      replay is lost ────────────────────────────▶ fetch θ(R')

A state is given to the trainer when it is here, then one update after the other, each when the
trainer holds what the last one led to. Chunks that are here already do not travel again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native, failpoints
from decentral.errors import DecentralError, FingerprintError, ProtocolError
from decentral.peer.donor import Donor, DonorAction, ServeChunk, Tell
from decentral.peer.fetcher import (
    Allocate,
    AskChunk,
    Blame,
    CancelChunk,
    Done,
    Failed,
    FetchAction,
    Fetcher,
)
from decentral.peer.merkle import leaf_hash, tensor_bytes
from decentral.peer.orders import StateArrived, UpdateArrived
from decentral.peer.protocol import FetchState
from decentral.peer.replay import DATA, HOW, FetchUpdate, Replay, ReplayAction
from decentral.peer.runtime.links import LinkTable
from decentral.peer.transfer import (
    ChunkMissing,
    KeyMaker,
    ManifestMissing,
    ManifestPage,
    TransferMessage,
    UpdateOffer,
    unpack_message,
)
from decentral.types import CommittedState, PeerId, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TICK_S = 0.5
BULK_PRIORITY = 2


@dataclass(slots=True)
class _Fetch:
    """A state, or an update, on its way to us."""

    round: int
    root: bytes
    fetcher: Fetcher
    holders: tuple[PeerId, ...]
    held: CommittedState | None
    update: bool
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class _Incoming:
    """A chunk on its way to us."""

    fetch: _Fetch
    peer: PeerId
    into: NDArray[np.uint8]


class Transfers:
    """Of one tag. Lives on the loop's thread; `TransferRouter` shares the links out."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        links: LinkTable,
        schema: Sequence[TensorSpec],
        loop: asyncio.AbstractEventLoop,
        on_order: Callable[[StateArrived | UpdateArrived], None],
        on_failed: Callable[[DecentralError], None],
        tag: str = "",
        keys: KeyMaker | None = None,
    ) -> None:
        self._endpoint, self._links, self._schema, self._loop = endpoint, links, schema, loop
        self._on_order, self._on_failed = on_order, on_failed
        self._tag = tag
        self._donor = Donor(tag=tag)
        self._keys = keys or KeyMaker(secrets.randbits(32))
        self._wanted: FetchState | None = None
        self._held: CommittedState | None = None
        self._state: _Fetch | None = None
        self._delivered: tuple[int, bytes] | None = None  # to the trainer, which adopts it next
        self._replay = self._new_replay()
        self._fetches: dict[bytes, _Fetch] = {}  # by root
        self._updates: dict[int, CommittedState] = {}  # by round
        self._incoming: dict[int, _Incoming] = {}
        self._serving: dict[int, PeerId] = {}
        self._heard: dict[PeerId, int] = {}  # bulk bytes received from a holder so far
        self._closed = False
        self._loop.call_later(_TICK_S, self._tick)

    def _new_replay(self) -> Replay:
        return Replay(sum(tensor_bytes(spec) for spec in self._schema), self._tag)

    # ------------------------------------------------------------------------------ what for

    @property
    def wants_updates(self) -> bool:
        return self._donor.wants_updates

    def publish(self, state: CommittedState) -> None:
        """This is the committed state now: donors serve it."""
        self._give(self._donor.hold(state))
        self._held, self._delivered = state, None
        self._drive()

    def give_up(self) -> None:
        """This peer has no part in the tag, or no more: nothing newer is held or wanted here."""
        self._give(self._donor.retire())
        self._held = self._wanted = None

    def hold_update(self, root: bytes, update: CommittedState) -> None:
        self._give(self._donor.hold_update(root, update, self._loop.time()))

    def fetch(self, wanted: FetchState, held: CommittedState | None) -> None:
        """Get that state. A fetch that is under way finishes first, and helps this one."""
        self._wanted, self._held = wanted, held
        coming = self._state
        if coming is not None and (coming.round, coming.root) == (wanted.round, wanted.state_root):
            for peer in sorted(set(wanted.holders) - set(coming.holders)):
                coming.holders = (*coming.holders, peer)
                self._do(coming, coming.fetcher.holder_up(peer, self._loop.time()))
        self._drive()

    def update_refused(self, number: int) -> None:
        """The update of that round did not lead to the committed root."""
        self._delivered = None
        self._updates.pop(number, None)
        self._replays(self._replay.wrong(number, self._loop.time()))
        self._drive()

    def _drive(self) -> None:
        """The next thing to do towards the goal."""
        wanted = self._wanted
        if wanted is None or self._closed:
            return
        held = None if self._held is None else (self._held.round, self._held.root)
        if held == (wanted.round, wanted.state_root):
            self._wanted = None
            self._forget_replay()
            return
        roots = dict(wanted.past) | {wanted.round: wanted.state_root}
        coming = None if self._state is None else (self._state.round, self._state.root)
        base = coming or self._delivered or held
        if base is not None and roots.get(base[0]) == base[1] and base[0] <= wanted.round:
            actions = self._replay.aim(base[0], wanted.round, roots, self._linked(wanted.holders))
            self._replays(actions)
            if not self._replay.lost:
                self._deliver(roots)
                return
        if self._state is None and self._delivered is None:
            self._forget_replay()
            self._state = self._begin(
                wanted.round, wanted.state_root, self._schema, wanted.holders, self._held
            )

    def _deliver(self, roots: dict[int, bytes]) -> None:
        """The next update to the trainer, if it waits for one and that is here."""
        held = self._held
        if self._state is not None or self._delivered is not None or held is None:
            return
        update = self._updates.pop(held.round + 1, None)
        if update is not None:
            self._delivered = (update.round, roots[update.round])
            data, how = update.tensors[DATA], update.tensors[HOW]
            self._on_order(UpdateArrived(*self._delivered, data, how, self._tag))

    def _forget_replay(self) -> None:
        for fetch in [one for one in self._fetches.values() if one.update]:
            self._end(fetch)
        self._updates.clear()
        self._replay = self._new_replay()

    def _linked(self, peers: Iterable[PeerId]) -> list[PeerId]:
        return [peer for peer in peers if self._links.get(peer) is not None]

    def _begin(
        self,
        number: int,
        root: bytes,
        schema: Sequence[TensorSpec],
        holders: tuple[PeerId, ...],
        held: CommittedState | None = None,
        *,
        update: bool = False,
    ) -> _Fetch:
        fetcher = Fetcher(
            schema=schema,
            round=number,
            root=root,
            holders=holders,
            keys=self._keys,
            seed=secrets.randbits(32),
            held=held,
            tag=self._tag,
        )
        fetch = self._fetches[root] = _Fetch(number, root, fetcher, holders, held, update)
        # Soon, not now: it may be done at once, and we are in the middle of something.
        self._loop.call_soon(self._start, fetch)
        return fetch

    def _start(self, fetch: _Fetch) -> None:
        if self._closed or self._fetches.get(fetch.root) is not fetch:
            return
        now = self._loop.time()
        self._do(fetch, fetch.fetcher.start(now))
        for holder in fetch.holders:
            if self._links.get(holder) is None:
                self._do(fetch, fetch.fetcher.holder_down(holder, now))

    def _end(self, fetch: _Fetch) -> None:
        """Let go of a fetch, whatever is still on its way."""
        self._fetches.pop(fetch.root, None)
        for key in [key for key, one in self._incoming.items() if one.fetch is fetch]:
            self._cancel(key)

    # ----------------------------------------------------------------------------- what came

    def message(self, peer: PeerId, payload: bytes) -> None:
        try:
            self.take(peer, unpack_message(payload), payload)
        except ProtocolError as error:
            self._links.refuse(peer, error.says)

    def take(self, peer: PeerId, message: TransferMessage, payload: bytes) -> None:
        """A message of this tag, parsed already."""
        now = self._loop.time()
        try:
            if isinstance(message, UpdateOffer):
                self._replays(self._replay.received(peer, message, now))
                self._drive()
            elif isinstance(message, ManifestPage | ManifestMissing | ChunkMissing):
                if isinstance(message, ManifestPage):
                    failpoints.passing("fetch-manifest")
                fetch = self._fetches.get(message.root)
                if fetch is not None:
                    self._do(fetch, fetch.fetcher.received(peer, payload, now))
            else:
                self._give(self._donor.handle(peer, payload, now))
        except ProtocolError as error:
            self._links.refuse(peer, error.says)

    def holder_up(self, peer: PeerId) -> None:
        for fetch in list(self._fetches.values()):
            if peer in fetch.holders:
                self._do(fetch, fetch.fetcher.holder_up(peer, self._loop.time()))
        self._drive()

    def peer_down(self, peer: PeerId) -> None:
        now = self._loop.time()
        self._donor.peer_down(peer)
        for fetch in list(self._fetches.values()):
            self._do(fetch, fetch.fetcher.holder_down(peer, now))
        self._replays(self._replay.gone(peer, now))
        self._abandon_the_old()
        self._drive()

    def blob(self, key: int, error: str | None) -> bool:
        """A chunk has come, or failed. False: it was not ours."""
        incoming = self._incoming.pop(key, None)
        if incoming is None:
            return False
        fetch, now = incoming.fetch, self._loop.time()
        error = error or failpoints.failing("fetch-chunk")
        if error is None:
            leaf = leaf_hash(incoming.into.data)
            self._do(fetch, fetch.fetcher.chunk_done(key, leaf, now))
        else:
            self._do(fetch, fetch.fetcher.chunk_failed(key, now))
        return True

    def blob_sent(self, key: int) -> bool:
        """A chunk has left. False: it was not ours."""
        peer = self._serving.pop(key, None)
        if peer is not None:
            self._give(self._donor.sent(peer, key, self._loop.time()))
        return peer is not None

    def _tick(self) -> None:
        if self._closed:
            return
        now = self._loop.time()
        self._donor.tick(now)
        self._listen(now)
        for fetch in list(self._fetches.values()):
            self._do(fetch, fetch.fetcher.tick(now))
        self._replays(self._replay.tick(now))
        self._abandon_the_old()
        self._drive()
        self._loop.call_later(_TICK_S, self._tick)

    def _abandon_the_old(self) -> None:
        """Whoever was pinning a state for us that the run has left behind, or was alone with an
        update, forgets it with the link: there is no use in waiting for that peer."""
        goal = self._wanted.state_root if self._wanted is not None else b""
        for fetch in list(self._fetches.values()):
            if fetch.fetcher.deserted and (fetch.update or fetch.root != goal):
                self._do(fetch, fetch.fetcher.abandon())

    def _listen(self, now: float) -> None:
        """A chunk may take a slow line longer than a stall: bytes that come are a sign of life."""
        for peer in {incoming.peer for incoming in self._incoming.values()}:
            link = self._links.get(peer)
            received = self._endpoint.stats(link.id).bulk_bytes_received if link is not None else 0
            if self._heard.get(peer) != received:
                self._heard[peer] = received
                for fetch in self._fetches.values():
                    fetch.fetcher.heard(peer, now)

    def close(self) -> None:
        self._closed = True

    # ------------------------------------------------------------------------------- actions

    def _give(self, actions: Sequence[DonorAction]) -> None:
        for action in actions:
            match action:
                case Tell(peer, message):
                    self._links.send(peer, message, BULK_PRIORITY)
                case ServeChunk(peer, key, _, offset, size, array):
                    link = self._links.get(peer)
                    if says := failpoints.failing("serve-chunk"):
                        self._links.close(peer, says)
                    elif link is not None:  # else its link-down is on the way, which frees all
                        flat = array.reshape(-1).view(np.uint8)
                        self._serving[key] = peer
                        self._endpoint.send_blob(link.id, key, flat[offset : offset + size])

    def _replays(self, actions: Sequence[ReplayAction]) -> None:
        for action in actions:
            match action:
                case Tell(peer, message):
                    self._links.send(peer, message, BULK_PRIORITY)
                case FetchUpdate(number, root, schema, holders):
                    self._begin(number, root, schema, holders, update=True)
                case Blame(peer, says):
                    self._on_failed(ProtocolError(says, peer=peer, phase="state transfer"))

    def _do(self, fetch: _Fetch, actions: Sequence[FetchAction]) -> None:
        for action in actions:
            match action:
                case Tell(peer, message):
                    self._links.send(peer, message, BULK_PRIORITY)
                case Allocate(specs, keep):
                    self._allocate(fetch, specs, keep)
                case AskChunk():
                    self._ask(fetch, action)
                case CancelChunk(key):
                    self._cancel(key)
                case Blame(peer, says):
                    self._on_failed(ProtocolError(says, peer=peer, phase="state transfer"))
                case Done():
                    self._done(fetch, action)
                case Failed(error):
                    self._failed(fetch, error)

    def _cancel(self, key: int) -> None:
        self._incoming.pop(key, None)
        self._endpoint.cancel_blob(key)

    def _allocate(self, fetch: _Fetch, specs: Sequence[TensorSpec], keep: Sequence[str]) -> None:
        held = fetch.held.tensors if fetch.held is not None else {}
        fetch.arrays = {
            spec.name: held[spec.name].copy()
            if spec.name in keep
            else np.empty(spec.shape, dtype=spec.dtype)
            for spec in specs
        }

    def _ask(self, fetch: _Fetch, ask: AskChunk) -> None:
        link = self._links.get(ask.peer)
        if link is None:
            return  # its link-down is on the way and gives the chunk to somebody else
        flat = fetch.arrays[ask.tensor].reshape(-1).view(np.uint8)
        into = flat[ask.offset : ask.offset + ask.size]
        self._incoming[ask.key] = _Incoming(fetch, ask.peer, into)
        self._endpoint.post_blob(link.id, ask.key, into)
        self._links.send(ask.peer, ask.message, BULK_PRIORITY)

    def _done(self, fetch: _Fetch, done: Done) -> None:
        leaves = {spec.name: leaves for spec, leaves in done.manifest.tensors}
        state = CommittedState(
            round=done.round, tensors=fetch.arrays, root=done.root, leaves=leaves
        )
        self._end(fetch)
        if fetch.update:
            self._updates[fetch.round] = state
            self._replay.fetched(fetch.round)
            self._drive()
            return
        self._state = None
        wanted = self._wanted
        current = wanted is None or (wanted.round, wanted.state_root) == (state.round, state.root)
        if current or not self._replay.lost:
            self._delivered = (state.round, state.root)
            self._on_order(StateArrived(state, self._tag))
            return
        self._held = state  # the run moved on: what is the same need not travel again
        self._drive()

    def _failed(self, fetch: _Fetch, error: DecentralError) -> None:
        self._end(fetch)
        if fetch.update:
            self._replays(self._replay.failed(fetch.round, self._loop.time()))
            self._drive()
            return
        self._state = None
        if isinstance(error, FingerprintError):
            self._wanted = None
            self._on_failed(error)
            return
        wanted = self._wanted
        if wanted is not None and wanted.state_root != fetch.root:
            self._drive()  # the run moved on; else the next tick tries again
