"""Carries out the fetches of one tag: what each `Fetcher` asks for, over links and blobs.

    Fetcher ──▶ Tell, AskChunk ─▶ links, posted blobs
            ◀── pages, chunks ── whatever came in

Several fetches may be of one root: a state for the trainer, and some of its tensors for a reader.
What a holder says about that root they all hear; a chunk's key tells whose it is. A holder knows of
one pin a peer and root, so the release is said when the last of them ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native, failpoints
from decentral.errors import DecentralError
from decentral.peer.donor import Tell
from decentral.peer.fetcher import (
    Allocate,
    AskChunk,
    Blame,
    CancelChunk,
    Done,
    Failed,
    FetchAction,
    Fetcher,
    LetGo,
)
from decentral.peer.merkle import leaf_hash
from decentral.peer.runtime.links import LinkTable
from decentral.peer.transfer import ChunkMissing, ManifestMissing, ManifestPage
from decentral.types import CommittedState, PeerId, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

BULK_PRIORITY = 2


@dataclass(slots=True, eq=False)
class Fetch:
    """A state, a part of one, or an update, on its way to us."""

    round: int
    root: bytes
    fetcher: Fetcher
    holders: tuple[PeerId, ...]
    done: Callable[[Fetch, Done], None]
    """Every byte is in `arrays`."""
    failed: Callable[[Fetch, DecentralError], None]
    blamed: Callable[[PeerId, str], None]
    held: CommittedState | None = None
    """What chunks that are here already are copied from."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class _Incoming:
    """A chunk on its way to us."""

    fetch: Fetch
    peer: PeerId
    into: NDArray[np.uint8]


class Fetching:
    """All that are under way. Lives on the loop's thread."""

    def __init__(
        self, endpoint: _native.Endpoint, links: LinkTable, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._endpoint, self._links, self._loop = endpoint, links, loop
        self._fetches: list[Fetch] = []
        self._incoming: dict[int, _Incoming] = {}
        self._heard: dict[PeerId, int] = {}  # bulk bytes received from a holder so far
        self._unsaid: dict[tuple[PeerId, bytes], bytes] = {}
        """By holder and root: the release, while another fetch of that root goes on."""

    @property
    def idle(self) -> bool:
        return not self._fetches

    def begin(self, fetch: Fetch) -> Fetch:
        """Soon, not now: it may be done at once, and we are in the middle of something."""
        self._fetches.append(fetch)
        self._loop.call_soon(self._start, fetch)
        return fetch

    def _start(self, fetch: Fetch) -> None:
        if fetch not in self._fetches:
            return
        now = self._loop.time()
        self.do(fetch, fetch.fetcher.start(now))
        for holder in fetch.holders:
            if self._links.get(holder) is None:
                self.do(fetch, fetch.fetcher.holder_down(holder, now))

    def end(self, fetch: Fetch) -> None:
        """Let go of a fetch, whatever is still on its way."""
        if fetch in self._fetches:
            self._fetches.remove(fetch)
        for key in [key for key, one in self._incoming.items() if one.fetch is fetch]:
            self._cancel(key)
        if not any(other.root == fetch.root for other in self._fetches):
            for at in [at for at in self._unsaid if at[1] == fetch.root]:
                self._links.send(at[0], self._unsaid.pop(at), BULK_PRIORITY)

    def abandon(self, fetch: Fetch) -> None:
        """Nobody waits for it any more; it fails."""
        self.do(fetch, fetch.fetcher.abandon())

    def close(self) -> None:
        """Nothing is asked of anybody from now on."""
        self._fetches.clear()
        self._incoming.clear()
        self._unsaid.clear()

    # ----------------------------------------------------------------------------- what came

    def answer(
        self, peer: PeerId, said: ManifestPage | ManifestMissing | ChunkMissing, payload: bytes
    ) -> None:
        """What a holder says about a root."""
        if isinstance(said, ManifestPage):
            failpoints.passing("fetch-manifest")
        now = self._loop.time()
        for fetch in [one for one in self._fetches if one.root == said.root]:
            self.do(fetch, fetch.fetcher.received(peer, payload, now))

    def holder_up(self, peer: PeerId) -> None:
        for fetch in list(self._fetches):
            if peer in fetch.holders:
                self.do(fetch, fetch.fetcher.holder_up(peer, self._loop.time()))

    def add_holder(self, fetch: Fetch, peer: PeerId) -> None:
        """One more may have it, or this one may have it by now."""
        if peer not in fetch.holders:
            fetch.holders = (*fetch.holders, peer)
        self.do(fetch, fetch.fetcher.holder_up(peer, self._loop.time()))

    def peer_down(self, peer: PeerId) -> None:
        for at in [at for at in self._unsaid if at[0] == peer]:
            del self._unsaid[at]  # it has forgotten us with the link
        for fetch in list(self._fetches):
            self.do(fetch, fetch.fetcher.holder_down(peer, self._loop.time()))

    def blob(self, key: int, error: str | None) -> bool:
        """A chunk has come, or failed. False: it was not ours."""
        incoming = self._incoming.pop(key, None)
        if incoming is None:
            return False
        fetch, now = incoming.fetch, self._loop.time()
        error = error or failpoints.failing("fetch-chunk")
        if error is None:
            leaf = leaf_hash(incoming.into.data)
            self.do(fetch, fetch.fetcher.chunk_done(key, leaf, now))
        else:
            self.do(fetch, fetch.fetcher.chunk_failed(key, now))
        return True

    def tick(self, now: float) -> None:
        self._listen(now)
        for fetch in list(self._fetches):
            self.do(fetch, fetch.fetcher.tick(now))

    def _listen(self, now: float) -> None:
        """A chunk may take a slow line longer than a stall: bytes that come are a sign of life."""
        for peer in {incoming.peer for incoming in self._incoming.values()}:
            link = self._links.get(peer)
            received = self._endpoint.stats(link.id).bulk_bytes_received if link is not None else 0
            if self._heard.get(peer) != received:
                self._heard[peer] = received
                for fetch in self._fetches:
                    fetch.fetcher.heard(peer, now)

    # ------------------------------------------------------------------------------- actions

    def do(self, fetch: Fetch, actions: Sequence[FetchAction]) -> None:
        if fetch not in self._fetches:
            return  # it ended while others were being told
        for action in actions:
            match action:
                case LetGo(peer, message) if self._shared(fetch.root):
                    self._unsaid[peer, fetch.root] = message
                case Tell(peer, message):
                    self._links.send(peer, message, BULK_PRIORITY)
                case Allocate(specs, keep):
                    self._allocate(fetch, specs, keep)
                case AskChunk():
                    self._ask(fetch, action)
                case CancelChunk(key):
                    self._cancel(key)
                case Blame(peer, says):
                    fetch.blamed(peer, says)
                case Done():
                    self.end(fetch)
                    fetch.done(fetch, action)
                case Failed(error):
                    self.end(fetch)
                    fetch.failed(fetch, error)

    def _shared(self, root: bytes) -> bool:
        return sum(one.root == root for one in self._fetches) > 1

    def _cancel(self, key: int) -> None:
        self._incoming.pop(key, None)
        self._endpoint.cancel_blob(key)

    def _allocate(self, fetch: Fetch, specs: Sequence[TensorSpec], keep: Sequence[str]) -> None:
        held = fetch.held.tensors if fetch.held is not None else {}
        fetch.arrays = {
            spec.name: held[spec.name].copy()
            if spec.name in keep
            else np.empty(spec.shape, dtype=spec.dtype)
            for spec in specs
        }

    def _ask(self, fetch: Fetch, ask: AskChunk) -> None:
        link = self._links.get(ask.peer)
        if link is None:
            return  # its link-down is on the way and gives the chunk to somebody else
        flat = fetch.arrays[ask.tensor].reshape(-1).view(np.uint8)
        into = flat[ask.offset : ask.offset + ask.size]
        self._incoming[ask.key] = _Incoming(fetch, ask.peer, into)
        self._endpoint.post_blob(link.id, ask.key, into)
        self._links.send(ask.peer, ask.message, BULK_PRIORITY)
