"""Giving state away: who holds a committed state serves it while newer rounds commit.

A state is never mutated, so a pinned snapshot is a reference; it costs memory only once the
trainer has moved on to other arrays. Pins are few, and end when the last fetcher is done, gone or
silent for `pin_idle_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from decentral.errors import ConfigError, ProtocolError
from decentral.peer.manifest import manifest_of
from decentral.peer.merkle import CHUNK_BYTES, chunk_bytes, chunk_count
from decentral.peer.transfer import (
    MAX_PAGES,
    PAGE_BYTES,
    ChunkMissing,
    ChunkWanted,
    ManifestMissing,
    ManifestPage,
    Pin,
    Release,
    StateWanted,
    TransferMessage,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorConfig:
    """Bounds on what fetchers may cost."""

    pin_idle_s: float = 30.0
    """A pin that nobody used for so long is released."""
    max_pins: int = 2
    """Snapshots kept besides the newest state; each may cost the memory of a whole state."""
    max_serving: int = 16
    """Chunks on their way to one peer at a time."""

    def __post_init__(self) -> None:
        if self.pin_idle_s <= 0 or self.max_pins < 1 or self.max_serving < 1:
            raise ConfigError("a donor needs positive limits")


@dataclass(slots=True)
class _Pinned:
    state: CommittedState
    used_at: float
    peers: set[PeerId] = field(default_factory=set)
    pages: list[bytes] = field(default_factory=list)


class Donor:
    """Serves the newest state and the pinned ones. Sans-IO."""

    def __init__(self, config: DonorConfig | None = None) -> None:
        self._config = config or DonorConfig()
        self._newest: CommittedState | None = None
        self._pins: dict[bytes, _Pinned] = {}
        self._serving: dict[PeerId, set[int]] = {}

    @property
    def pinned_rounds(self) -> tuple[int, ...]:
        """Rounds whose state is kept for fetchers."""
        return tuple(sorted(pin.state.round for pin in self._pins.values()))

    def hold(self, state: CommittedState | None) -> None:
        """This is the committed state now (None: none is held)."""
        self._newest = state

    def handle(self, peer: PeerId, payload: bytes, now: float) -> list[DonorAction]:
        """Answer a fetcher. ProtocolError, naming it, for a message that no fetcher sends."""
        try:
            return self._handle(peer, payload, now)
        except ProtocolError as error:
            error.peer, error.phase = peer, "state transfer"
            raise

    def _handle(self, peer: PeerId, payload: bytes, now: float) -> list[DonorAction]:
        message = unpack_message(payload)
        if not isinstance(message, Pin | Release | StateWanted | ChunkWanted):
            raise ProtocolError(f"{type(message).__name__} is not for a holder")
        if isinstance(message, Release):
            self._release(peer, message.root)
            return []
        pin = self._pin(peer, message, now)
        if pin is None:
            return [Tell(peer, _missing(message))]
        if isinstance(message, StateWanted):
            return [Tell(peer, _page(pin, message))]
        if isinstance(message, ChunkWanted):
            return [self._chunk(peer, pin, message)]
        return []

    def sent(self, peer: PeerId, key: int) -> None:
        """A chunk is on the wire, or failed: its place is free."""
        self._serving.get(peer, set()).discard(key)

    def peer_down(self, peer: PeerId) -> None:
        """The link to a fetcher is gone."""
        self._serving.pop(peer, None)
        for root in list(self._pins):
            self._release(peer, root)

    def tick(self, now: float) -> None:
        """Release what nobody used for a while."""
        idle = self._config.pin_idle_s
        self._pins = {r: p for r, p in self._pins.items() if now < p.used_at + idle}

    def next_timer(self) -> float | None:
        """When `tick` is due."""
        return min((p.used_at + self._config.pin_idle_s for p in self._pins.values()), default=None)

    # ---------------------------------------------------------------------- parts

    def _pin(self, peer: PeerId, message: TransferMessage, now: float) -> _Pinned | None:
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

    def _chunk(self, peer: PeerId, pin: _Pinned, wanted: ChunkWanted) -> DonorAction:
        array = pin.state.tensors.get(wanted.tensor)
        if array is None or wanted.index >= chunk_count(array.nbytes) or array.nbytes == 0:
            raise ProtocolError(
                f"asks for chunk {wanted.index} of {wanted.tensor!r}, which the state has not"
            )
        serving = self._serving.setdefault(peer, set())
        if wanted.key in serving or len(serving) >= self._config.max_serving:
            return Tell(peer, ChunkMissing(wanted.round, wanted.root, wanted.key, True).pack())
        serving.add(wanted.key)
        return ServeChunk(
            peer=peer,
            key=wanted.key,
            tensor=wanted.tensor,
            offset=wanted.index * CHUNK_BYTES,
            size=chunk_bytes(array.nbytes, wanted.index),
            array=array,
        )


def _missing(message: TransferMessage) -> bytes:
    if isinstance(message, ChunkWanted):
        return ChunkMissing(message.round, message.root, message.key, False).pack()
    return ManifestMissing(message.round, message.root).pack()


def _page(pin: _Pinned, wanted: StateWanted) -> bytes:
    if not pin.pages:
        data = manifest_of(pin.state).encode()
        pin.pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
        assert len(pin.pages) <= MAX_PAGES, "a state of more than 128 TiB"
    if wanted.page >= len(pin.pages):
        raise ProtocolError(f"asks for page {wanted.page} of a manifest of {len(pin.pages)}")
    page = pin.pages[wanted.page]
    return ManifestPage(wanted.round, wanted.root, wanted.page, len(pin.pages), page).pack()
