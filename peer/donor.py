"""Giving state away: who holds a committed state serves it while newer rounds commit.

A state is never mutated, so a pinned snapshot is a reference; it costs memory only once the
trainer has moved on to other arrays. Pins are few, and end when the last fetcher is done, gone or
silent for `pin_idle_s`.

    ChunkWanted ─▶ its fetcher's queue ─▶ `max_serving` on their way ─▶ sent: the next one

What has not begun can still be called off, and no fetcher's queue stands in front of another's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from decentral.errors import ConfigError, ProtocolError
from decentral.peer.manifest import manifest_of
from decentral.peer.merkle import CHUNK_BYTES, chunk_bytes, chunk_count
from decentral.peer.transfer import (
    MAX_PAGES,
    PAGE_BYTES,
    ChunkMissing,
    ChunkUnwanted,
    ChunkWanted,
    ManifestMissing,
    ManifestPage,
    Pin,
    Read,
    Release,
    StateWanted,
    TransferMessage,
    UpdateOffer,
    UpdateWanted,
    unpack_message,
)
from decentral.types import CommittedState, PeerId

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a control message."""

    peer: PeerId
    message: bytes


@dataclass(frozen=True, slots=True)
class ServeChunk:
    """Send `size` bytes at `offset` of a tensor as blob `key`; then call `Donor.sent`."""

    peer: PeerId
    key: int
    tensor: str
    offset: int
    size: int
    array: NDArray[Any] = field(repr=False, compare=False)
    """The tensor: holding it keeps the bytes alive while they are on their way."""


DonorAction: TypeAlias = Tell | ServeChunk
FOR_HOLDERS = (Pin, Read, Release, StateWanted, ChunkWanted, ChunkUnwanted, UpdateWanted)
ASKS = (Pin, Read, StateWanted, ChunkWanted, UpdateWanted)
"""Those of them that are answered where nothing is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorConfig:
    """Bounds on what fetchers may cost."""

    pin_idle_s: float = 30.0
    """A pin that nobody used for so long is released."""
    max_pins: int = 2
    """Snapshots kept besides the newest state; each may cost the memory of a whole state."""
    max_serving: int = 4
    """Chunks on their way to one peer at a time: what a dropped one may cost at most."""
    max_updates: int = 8
    """Updates of the last rounds that are kept in any case, while anybody fetches."""
    max_small_updates: int = 16
    small_updates_bytes: int = 32 << 20
    """So many are kept as long as they need no more than this: quick rounds have small updates."""
    max_queued: int = 128
    """Chunks that wait for that; who asks for more is told that this peer is busy."""

    def __post_init__(self) -> None:
        if min(self.pin_idle_s, self.max_pins, self.max_serving, self.max_queued) <= 0:
            raise ConfigError("a donor needs positive limits")


@dataclass(slots=True)
class _Pinned:
    state: CommittedState
    used_at: float
    peers: set[PeerId] = field(default_factory=set)
    pages: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Guest:
    """What one fetcher has asked for."""

    serving: set[int] = field(default_factory=set)
    queue: deque[ServeChunk] = field(default_factory=deque)


class Donor:
    """Serves the newest state of one tag, and the pinned ones. Sans-IO."""

    def __init__(self, config: DonorConfig | None = None, tag: str = "") -> None:
        self._config = config or DonorConfig()
        self._tag = tag
        self._newest: CommittedState | None = None
        self._fetching = -1
        """Up to which round this peer fetches states itself: their updates will not come to be
        here, and two who are behind must not wait for one another."""
        self._retired = False
        self._pins: dict[bytes, _Pinned] = {}
        self._guests: dict[PeerId, _Guest] = {}
        self._updates: dict[bytes, _Pinned] = {}  # by the root of the state it leads to
        self._interest: dict[PeerId, float] = {}  # who fetches all and will replay, until when
        self._questions: dict[bytes, tuple[int, set[PeerId]]] = {}  # about rounds to come

    @property
    def pinned_rounds(self) -> tuple[int, ...]:
        """Rounds whose state is kept for fetchers."""
        return tuple(sorted(pin.state.round for pin in self._pins.values()))

    @property
    def wants_updates(self) -> bool:
        """Whether somebody fetches a state, and will want what is committed meanwhile."""
        return bool(self._interest)

    def state(self, round: int, root: bytes) -> CommittedState | None:
        """That state, if it is still here."""
        pinned = [pin.state for pin in self._pins.values()]
        here = [one for one in (self._newest, *pinned) if one is not None]
        return next((one for one in here if (one.round, one.root) == (round, root)), None)

    def hold(self, state: CommittedState | None) -> list[DonorAction]:
        """This is the committed state now (None: none is held)."""
        self._newest, self._retired = state, False
        # It came without its update.
        return [] if state is None else self._deny(state.round)

    def fetches(self, number: int) -> list[DonorAction]:
        """This peer is behind, and gets the states up to that round from others."""
        self._fetching = number
        return self._deny(number)

    def retire(self) -> list[DonorAction]:
        """Nothing newer will be held here: only what fetchers have pinned is served."""
        self._newest, self._retired = None, True
        return self._deny()

    def _deny(self, up_to: float = inf) -> list[DonorAction]:
        """The updates of the rounds up to that one will not be here."""
        told: list[DonorAction] = []
        for root, (number, peers) in list(self._questions.items()):
            if number <= up_to:
                del self._questions[root]
                told += [Tell(peer, self._offer(number, root, None)) for peer in sorted(peers)]
        return told

    def hold_update(self, root: bytes, update: CommittedState, now: float) -> list[DonorAction]:
        """What led to the state `root` of the update's round; given before that state is held."""
        self._updates[root] = _Pinned(update, now)
        while len(self._updates) > self._kept_updates():
            del self._updates[next(iter(self._updates))]
        _, peers = self._questions.pop(root, (0, set()))
        return [Tell(peer, self._offer(update.round, root, update)) for peer in sorted(peers)]

    def handle(self, peer: PeerId, payload: bytes, now: float) -> list[DonorAction]:
        """Answer a fetcher. ProtocolError, naming it, for a message that no fetcher sends."""
        try:
            return self._handle(peer, payload, now)
        except ProtocolError as error:
            error.peer, error.phase = peer, "state transfer"
            raise

    def _handle(self, peer: PeerId, payload: bytes, now: float) -> list[DonorAction]:
        message = unpack_message(payload)
        if not isinstance(message, FOR_HOLDERS):
            raise ProtocolError(f"{type(message).__name__} is not for a holder")
        if isinstance(message, Release):
            self._release(peer, message.root)
            return []
        if isinstance(message, ChunkUnwanted):
            if (guest := self._guests.get(peer)) is not None:
                guest.queue = deque(chunk for chunk in guest.queue if chunk.key != message.key)
            return []
        if isinstance(message, Pin | UpdateWanted) or peer in self._interest:
            self._interest[peer] = now + self._config.pin_idle_s
        if isinstance(message, UpdateWanted):
            return self._update(peer, message)
        pin = self._pin(peer, message, now)
        if pin is None:
            return [Tell(peer, not_held(message))]
        if isinstance(message, StateWanted):
            return [Tell(peer, _page(pin, message))]
        if isinstance(message, ChunkWanted):
            return self._chunk(peer, pin, message)
        return []

    def sent(self, peer: PeerId, key: int, now: float) -> list[DonorAction]:
        """A chunk has left, or failed: its place is free."""
        guest = self._guests.get(peer)
        if guest is None or key not in guest.serving:
            return []
        guest.serving.remove(key)
        for pin in self._pins.values():  # whoever waits for a long queue is not idle
            if peer in pin.peers:
                pin.used_at = now
        return self._serve(guest)

    def peer_down(self, peer: PeerId) -> None:
        """The link to a fetcher is gone."""
        self._guests.pop(peer, None)
        self._interest.pop(peer, None)
        for _, peers in self._questions.values():
            peers.discard(peer)
        for root in list(self._pins):
            self._release(peer, root)

    def tick(self, now: float) -> list[DonorAction]:
        """Release what nobody used for a while."""
        idle = self._config.pin_idle_s
        self._pins = {r: p for r, p in self._pins.items() if now < p.used_at + idle}
        self._interest = {peer: until for peer, until in self._interest.items() if now < until}
        if self._interest:
            return []
        self._updates.clear()
        return self._deny()

    def next_timer(self) -> float | None:
        """When `tick` is due."""
        pins = (pin.used_at + self._config.pin_idle_s for pin in self._pins.values())
        return min([*pins, *self._interest.values()], default=None)

    # ---------------------------------------------------------------------- parts

    def _kept_updates(self) -> int:
        arrays = [a for one in self._updates.values() for a in one.state.tensors.values()]
        small = sum(array.nbytes for array in arrays) <= self._config.small_updates_bytes
        return self._config.max_small_updates if small else self._config.max_updates

    def _pin(self, peer: PeerId, message: TransferMessage, now: float) -> _Pinned | None:
        for update in self._updates.values():
            if (update.state.root, update.state.round) == (message.root, message.round):
                return update
        pin = self._pins.get(message.root)
        if pin is None:
            state = self._newest
            if state is None or (state.root, state.round) != (message.root, message.round):
                return None
            if len(self._pins) >= self._config.max_pins:
                return None
            pin = self._pins[message.root] = _Pinned(state, now)
        pin.used_at = now
        pin.peers.add(peer)
        return pin

    def _release(self, peer: PeerId, root: bytes) -> None:
        pin = self._pins.get(root)
        if pin is not None:
            pin.peers.discard(peer)
            if not pin.peers:
                del self._pins[root]

    def _update(self, peer: PeerId, wanted: UpdateWanted) -> list[DonorAction]:
        update = self._updates.get(wanted.root)
        here = self._fetching if self._newest is None else max(self._fetching, self._newest.round)
        ahead = not self._retired and wanted.round > here
        if update is None and ahead and len(self._questions) < self._config.max_updates:
            self._questions.setdefault(wanted.root, (wanted.round, set()))[1].add(peer)
            return []
        state = None if update is None else update.state
        return [Tell(peer, self._offer(wanted.round, wanted.root, state))]

    def _chunk(self, peer: PeerId, pin: _Pinned, wanted: ChunkWanted) -> list[DonorAction]:
        array = pin.state.tensors.get(wanted.tensor)
        if array is None or wanted.index >= chunk_count(array.nbytes) or array.nbytes == 0:
            raise ProtocolError(
                f"asks for chunk {wanted.index} of {wanted.tensor!r}, which the state has not"
            )
        guest = self._guests.setdefault(peer, _Guest())
        if wanted.key in guest.serving or len(guest.queue) >= self._config.max_queued:
            busy = ChunkMissing(wanted.round, wanted.root, wanted.key, True, tag=self._tag)
            return [Tell(peer, busy.pack())]
        guest.queue.append(
            ServeChunk(
                peer=peer,
                key=wanted.key,
                tensor=wanted.tensor,
                offset=wanted.index * CHUNK_BYTES,
                size=chunk_bytes(array.nbytes, wanted.index),
                array=array,
            )
        )
        return self._serve(guest)

    def _serve(self, guest: _Guest) -> list[DonorAction]:
        served: list[DonorAction] = []
        while guest.queue and len(guest.serving) < self._config.max_serving:
            chunk = guest.queue.popleft()
            guest.serving.add(chunk.key)
            served.append(chunk)
        return served

    def _offer(self, number: int, root: bytes, update: CommittedState | None) -> bytes:
        if update is None:
            return UpdateOffer(number, root, b"", 0, 0, tag=self._tag).pack()
        sizes = (update.tensors[name].nbytes for name in ("update/data", "update/how"))
        return UpdateOffer(number, root, update.root, *sizes, tag=self._tag).pack()


def not_held(message: TransferMessage) -> bytes:
    """The answer of who has nothing of what a fetcher asks for."""
    where = message.round, message.root
    match message:
        case ChunkWanted(key=key):
            return ChunkMissing(*where, key, False, tag=message.tag).pack()
        case UpdateWanted():
            return UpdateOffer(*where, b"", 0, 0, tag=message.tag).pack()
    return ManifestMissing(*where, tag=message.tag).pack()


def _page(pin: _Pinned, wanted: StateWanted) -> bytes:
    if not pin.pages:
        data = manifest_of(pin.state).encode()
        pin.pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
        assert len(pin.pages) <= MAX_PAGES, "a state of more than 128 TiB"
    if wanted.page >= len(pin.pages):
        raise ProtocolError(f"asks for page {wanted.page} of a manifest of {len(pin.pages)}")
    page = pin.pages[wanted.page]
    where = wanted.round, wanted.root, wanted.page
    return ManifestPage(*where, len(pin.pages), page, tag=wanted.tag).pack()
