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
from concurrent.futures import Future

import numpy as np

from decentral import _native, failpoints
from decentral.errors import DecentralError, FingerprintError, ProtocolError
from decentral.peer.donor import Donor, DonorAction, ServeChunk, Tell
from decentral.peer.fetcher import Blame, Done, Fetcher
from decentral.peer.merkle import tensor_bytes
from decentral.peer.orders import StateArrived, UpdateArrived
from decentral.peer.protocol import FetchState
from decentral.peer.replay import DATA, HOW, FetchUpdate, Replay, ReplayAction
from decentral.peer.runtime.fetching import BULK_PRIORITY, Fetch, Fetching
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.reads import Arrays, Read, Reads
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

_TICK_S = 0.5


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
        members: Callable[[], Iterable[PeerId]] = tuple,
    ) -> None:
        """`members()`: who is linked and may hold a state, for `read`."""
        self._endpoint, self._links, self._schema, self._loop = endpoint, links, schema, loop
        self._on_order, self._on_failed = on_order, on_failed
        self._tag = tag
        self._donor = Donor(tag=tag)
        self._keys = keys or KeyMaker(secrets.randbits(32))
        self._wanted: FetchState | None = None
        self._held: CommittedState | None = None
        self._fetching = Fetching(endpoint, links, loop)
        self._reads = Reads(self._fetching, self._read_of, members, loop)
        self._state: Fetch | None = None
        self._delivered: tuple[int, bytes] | None = None  # to the trainer, which adopts it next
        self._replay = self._new_replay()
        self._coming: dict[int, Fetch] = {}  # updates under way, by round
        self._updates: dict[int, CommittedState] = {}  # those that are here, by round
        self._serving: dict[int, PeerId] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

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
        self._held = self._wanted = self._delivered = None

    def hold_update(self, root: bytes, update: CommittedState) -> None:
        self._give(self._donor.hold_update(root, update, self._loop.time()))
        self._wake()

    def fetch(self, wanted: FetchState, held: CommittedState | None) -> None:
        """Get that state. A fetch that is under way finishes first, and helps this one."""
        self._wanted, self._held = wanted, held
        self._give(self._donor.fetches(wanted.round))
        coming = self._state
        if coming is not None and (coming.round, coming.root) == (wanted.round, wanted.state_root):
            for peer in sorted(set(wanted.holders) - set(coming.holders)):
                self._fetching.add_holder(coming, peer)
        self._wake()
        self._drive()

    def read(
        self, round: int, root: bytes, prefix: str, timeout_s: float, future: Future[Arrays]
    ) -> None:
        """Put the tensors of that state whose names begin with `prefix` into `future`: from here,
        if the state is here, else from whoever has it, asked until the time is over."""
        self._wake()
        self._reads.read(Read(round, root, prefix, self._tag, future), timeout_s)

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
        given = self._delivered
        if not wanted.past and given is not None and roots.get(given[0]) != given[1]:
            given = None  # nothing leads on from it: the trainer may never adopt it
        if self._state is None and given is None:
            self._forget_replay()
            self._state = self._fetch_state(wanted)

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
        for fetch in self._coming.values():
            self._fetching.end(fetch)
        self._coming.clear()
        self._updates.clear()
        self._replay = self._new_replay()

    def _linked(self, peers: Iterable[PeerId]) -> list[PeerId]:
        return [peer for peer in peers if self._links.get(peer) is not None]

    # ------------------------------------------------------------------------------- fetches

    def _fetch_state(self, wanted: FetchState) -> Fetch:
        fetcher = self._fetcher(
            wanted.round, wanted.state_root, self._schema, wanted.holders, held=self._held
        )
        return self._fetching.begin(
            Fetch(
                wanted.round, wanted.state_root, fetcher, wanted.holders,
                self._state_came, self._state_failed, self._blame, self._held,
            )
        )  # fmt: skip

    def _fetch_update(self, wanted: FetchUpdate) -> Fetch:
        fetcher = self._fetcher(wanted.round, wanted.update, wanted.schema, wanted.holders)
        return self._fetching.begin(
            Fetch(
                wanted.round, wanted.update, fetcher, wanted.holders,
                self._update_came, self._update_failed, self._blame,
            )
        )  # fmt: skip

    def _read_of(self, read: Read, holders: tuple[PeerId, ...]) -> Fetch | CommittedState:
        held = self._donor.state(read.round, read.root)
        if held is not None:
            return held
        fetcher = self._fetcher(read.round, read.root, self._schema, holders, only=read.prefix)

        def blamed(peer: PeerId, says: str) -> None:
            read.liars.add(peer)
            self._blame(peer, says)

        return Fetch(read.round, read.root, fetcher, holders, read.came, read.failed, blamed)

    def _fetcher(
        self,
        number: int,
        root: bytes,
        schema: Sequence[TensorSpec],
        holders: tuple[PeerId, ...],
        *,
        held: CommittedState | None = None,
        only: str | None = None,
    ) -> Fetcher:
        return Fetcher(
            schema=schema,
            round=number,
            root=root,
            holders=holders,
            keys=self._keys,
            seed=secrets.randbits(32),
            held=held,
            tag=self._tag,
            only=only,
        )

    def _state_came(self, fetch: Fetch, done: Done) -> None:
        state = _whole(fetch, done)
        self._state = None
        wanted = self._wanted
        current = wanted is None or (wanted.round, wanted.state_root) == (state.round, state.root)
        if current or not self._replay.lost:
            self._delivered = (state.round, state.root)
            self._on_order(StateArrived(state, self._tag))
            return
        self._held = state  # the run moved on: what is the same need not travel again
        self._drive()

    def _state_failed(self, fetch: Fetch, error: DecentralError) -> None:
        self._state = None
        if isinstance(error, FingerprintError):
            self._wanted = None
            self._on_failed(error)
            return
        wanted = self._wanted
        if wanted is not None and wanted.state_root != fetch.root:
            self._drive()  # the run moved on; else the next tick tries again

    def _update_came(self, fetch: Fetch, done: Done) -> None:
        self._coming.pop(fetch.round, None)
        self._updates[fetch.round] = _whole(fetch, done)
        self._replay.fetched(fetch.round)
        self._drive()

    def _update_failed(self, fetch: Fetch, error: DecentralError) -> None:
        self._coming.pop(fetch.round, None)
        self._replays(self._replay.failed(fetch.round, self._loop.time()))
        self._drive()

    def _blame(self, peer: PeerId, says: str) -> None:
        self._on_failed(ProtocolError(says, peer=peer, phase="state transfer"))

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
                self._fetching.answer(peer, message, payload)
            else:
                self._give(self._donor.handle(peer, payload, now))
                self._wake()
        except ProtocolError as error:
            self._links.refuse(peer, error.says)

    def holder_up(self, peer: PeerId) -> None:
        self._fetching.holder_up(peer)
        self._reads.look()
        self._drive()

    def peer_down(self, peer: PeerId) -> None:
        self._donor.peer_down(peer)
        self._fetching.peer_down(peer)
        self._replays(self._replay.gone(peer, self._loop.time()))
        self._abandon_the_old()
        self._drive()

    def blob(self, key: int, error: str | None) -> bool:
        """A chunk has come, or failed. False: it was not ours."""
        return self._fetching.blob(key, error)

    def blob_sent(self, key: int) -> bool:
        """A chunk has left. False: it was not ours."""
        peer = self._serving.pop(key, None)
        if peer is not None:
            self._give(self._donor.sent(peer, key, self._loop.time()))
        return peer is not None

    def _wake(self) -> None:
        """There is something to do from time to time: nothing runs for the many tags at rest."""
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._closed:
            return
        now = self._loop.time()
        self._give(self._donor.tick(now))
        self._fetching.tick(now)
        self._replays(self._replay.tick(now))
        self._abandon_the_old()
        self._drive()
        serves = self._donor.next_timer() is not None
        if serves or self._wanted is not None or not (self._fetching.idle and self._reads.idle):
            self._wake()

    def _abandon_the_old(self) -> None:
        """Whoever was pinning a state for us that the run has left behind, or was alone with an
        update, forgets it with the link: there is no use in waiting for that peer."""
        goal = self._wanted.state_root if self._wanted is not None else b""
        old = [self._state] if self._state is not None and self._state.root != goal else []
        for fetch in [*old, *self._coming.values()]:
            if fetch.fetcher.deserted:
                self._fetching.abandon(fetch)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._reads.close()
        self._fetching.close()

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
                case FetchUpdate(number):
                    self._coming[number] = self._fetch_update(action)
                case Blame(peer, says):
                    self._blame(peer, says)


def _whole(fetch: Fetch, done: Done) -> CommittedState:
    leaves = {spec.name: leaves for spec, leaves in done.manifest.tensors}
    return CommittedState(round=done.round, tensors=fetch.arrays, root=done.root, leaves=leaves)
