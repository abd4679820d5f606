"""Carries out state transfer: what `Fetcher` and `Donor` ask for, over links and blobs.

One fetch at a time. If the run moves on meanwhile, the newer state is fetched next, and chunks
that are already here do not travel again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native
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
from decentral.peer.merkle import leaf_hash
from decentral.peer.protocol import FetchState
from decentral.peer.runtime.links import LinkTable
from decentral.peer.transfer import KeyMaker
from decentral.types import CommittedState, PeerId, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TICK_S = 0.5
_AGAIN_S = 0.5
_BULK_PRIORITY = 2
#: Messages from a holder to who fetches; all others go the other way.
_ANSWERS = (b"x/page", b"x/missing", b"x/nochunk")


@dataclass(slots=True)
class _Incoming:
    """A chunk on its way to us."""

    peer: PeerId
    into: NDArray[np.uint8]


class Transfers:
    """Lives on the loop's thread."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        links: LinkTable,
        schema: Sequence[TensorSpec],
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[CommittedState], None],
        on_failed: Callable[[DecentralError], None],
    ) -> None:
        self._endpoint, self._links, self._schema, self._loop = endpoint, links, schema, loop
        self._on_done, self._on_failed = on_done, on_failed
        self._donor = Donor()
        self._keys = KeyMaker(secrets.randbits(32))
        self._fetcher: Fetcher | None = None
        self._wanted: FetchState | None = None
        self._fetching: FetchState | None = None
        self._held: CommittedState | None = None
        self._arrays: dict[str, NDArray[Any]] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._closed = False
        self._loop.call_later(_TICK_S, self._tick)

    # ------------------------------------------------------------------------------ what for

    def publish(self, state: CommittedState) -> None:
        """This is the committed state now: donors serve it."""
        self._donor.hold(state)

    def fetch(self, wanted: FetchState, held: CommittedState | None) -> None:
        """Get that state. A fetch that is under way finishes first, and helps this one."""
        self._wanted, self._held = wanted, held
        if self._fetcher is None:
            self._begin()

    def _begin(self) -> None:
        wanted = self._wanted
        if wanted is None or self._closed:
            return
        self._fetching = wanted
        self._fetcher = Fetcher(
            schema=self._schema,
            round=wanted.round,
            root=wanted.state_root,
            holders=wanted.holders,
            keys=self._keys,
            seed=secrets.randbits(32),
            held=self._held,
        )
        now = self._loop.time()
        self._do(self._fetcher.start(now))
        for holder in wanted.holders:
            if self._fetcher is not None and self._links.get(holder) is None:
                self._do(self._fetcher.holder_down(holder, now))

    # ----------------------------------------------------------------------------- what came

    def message(self, peer: PeerId, payload: bytes) -> None:
        now = self._loop.time()
        if payload[2:].startswith(_ANSWERS):
            if self._fetcher is not None:
                self._do(self._fetcher.received(peer, payload, now))
            return
        try:
            for action in self._donor.handle(peer, payload, now):
                self._give(action)
        except ProtocolError as error:
            self._links.refuse(peer, error.says)

    def holder_up(self, peer: PeerId) -> None:
        if self._fetcher is not None and self._wanted and peer in self._wanted.holders:
            self._do(self._fetcher.holder_up(peer, self._loop.time()))

    def peer_down(self, peer: PeerId) -> None:
        self._donor.peer_down(peer)
        if self._fetcher is not None:
            self._do(self._fetcher.holder_down(peer, self._loop.time()))

    def blob(self, key: int, error: str | None) -> None:
        incoming = self._incoming.pop(key, None)
        if incoming is None or self._fetcher is None:
            return
        now = self._loop.time()
        if error is None:
            leaf = leaf_hash(incoming.into.data)
            self._do(self._fetcher.chunk_done(key, leaf, now))
        else:
            self._do(self._fetcher.chunk_failed(key, now))

    def _tick(self) -> None:
        if self._closed:
            return
        now = self._loop.time()
        self._donor.tick(now)
        if self._fetcher is not None:
            self._do(self._fetcher.tick(now))
        self._loop.call_later(_TICK_S, self._tick)

    def close(self) -> None:
        self._closed = True

    # ------------------------------------------------------------------------------- actions

    def _give(self, action: DonorAction) -> None:
        match action:
            case Tell(peer, message):
                self._links.send(peer, message, _BULK_PRIORITY)
            case ServeChunk(peer, key, _, offset, size, array):
                link = self._links.get(peer)
                if link is not None:
                    flat = array.reshape(-1).view(np.uint8)
                    self._endpoint.send_blob(link.id, key, flat[offset : offset + size])
                # The fetcher's window bounds what is on the way; TCP does the rest.
                self._donor.sent(peer, key)

    def _do(self, actions: Sequence[FetchAction]) -> None:
        for action in actions:
            match action:
                case Tell(peer, message):
                    self._links.send(peer, message, _BULK_PRIORITY)
                case Allocate(specs, keep):
                    self._allocate(specs, keep)
                case AskChunk():
                    self._ask(action)
                case CancelChunk(key):
                    self._incoming.pop(key, None)
                    self._endpoint.cancel_blob(key)
                case Blame(peer, says):
                    self._on_failed(ProtocolError(says, peer=peer, phase="state transfer"))
                case Done():
                    self._done(action)
                case Failed(error):
                    self._failed(error)

    def _allocate(self, specs: Sequence[TensorSpec], keep: Sequence[str]) -> None:
        held = self._held.tensors if self._held is not None else {}
        self._arrays = {
            spec.name: held[spec.name].copy()
            if spec.name in keep
            else np.empty(spec.shape, dtype=spec.dtype)
            for spec in specs
        }

    def _ask(self, ask: AskChunk) -> None:
        link = self._links.get(ask.peer)
        if link is None:
            return  # its link-down is on the way and gives the chunk to somebody else
        flat = self._arrays[ask.tensor].reshape(-1).view(np.uint8)
        into = flat[ask.offset : ask.offset + ask.size]
        self._incoming[ask.key] = _Incoming(ask.peer, into)
        self._endpoint.post_blob(link.id, ask.key, into)
        self._links.send(ask.peer, ask.message, _BULK_PRIORITY)

    def _done(self, done: Done) -> None:
        leaves = {spec.name: leaves for spec, leaves in done.manifest.tensors}
        state = CommittedState(
            round=done.round, tensors=self._arrays, root=done.root, leaves=leaves
        )
        self._fetcher, self._arrays = None, {}
        if self._wanted is not None and self._wanted.state_root != done.root:
            self._held = state  # the run moved on: what is the same need not travel again
            self._begin()
            return
        self._wanted = None
        self._on_done(state)

    def _failed(self, error: DecentralError) -> None:
        self._fetcher, self._arrays = None, {}
        if isinstance(error, FingerprintError):
            self._on_failed(error)
            return
        moved_on = self._wanted is not self._fetching
        self._loop.call_later(0 if moved_on else _AGAIN_S, self._begin_again)

    def _begin_again(self) -> None:
        if self._fetcher is None:
            self._begin()
