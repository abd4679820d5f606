"""State transfer: the messages between who fetches a state and who holds it.

    fetcher                            holder A                   holder B …
      │ ── x/pin (round, root) ──────────▶ │  keeps that snapshot    │  (all holders)
      │ ── x/want (page 0) ──────────────▶ │                         │
      │ ◀────────────────── x/page ─────── │                         │  checked against the root
      │ ── x/chunk (tensor, index, key) ─▶ │ ── x/chunk ───────────▶ │
      │ ◀═════ blob (key): 1 MiB ═════════ │ ◀═════ blob (key) ═════ │  each chunk verified
      │ ── x/update? (round + 1) ────────▶ │ ──────────────────────▶ │  what was committed since
      │ ◀───────────────── x/update ────── │ ◀───────── x/update ─── │  (`replay.py`)
      │ ── x/release ────────────────────▶ │ ──────────────────────▶ │

Who wants some tensors of this one state, and nothing that follows, says x/read instead of x/pin.
Each tag (the model, or a module or fragment of it) has states and rounds of its own, and its
transfers with them; every message names it. Messages travel on the control stream, the bytes
themselves on the bulk streams, under a 64-bit key that the fetcher chose. See `fetcher.py` and
`donor.py`; neither touches a socket or a clock.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import ClassVar, TypeAlias

from decentral.errors import ProtocolError
from decentral.peer import packing

PAGE_BYTES = 1 << 20
"""A manifest travels in pages: one of a large model would exceed the cap on control messages."""
MAX_PAGES = 4096
_MAX_MESSAGE_BYTES = PAGE_BYTES + 4096
_MAX_NAME_BYTES = 512
_MAX_TAG_BYTES = 256
_MAX_ROUND = 2**62
MAX_HOW_BYTES = 1024


def is_transfer(payload: bytes) -> bool:
    """Is this control message one of ours? (An array whose first item is a string "x/…".)"""
    return (
        len(payload) >= 4
        and payload[0] & 0xF0 == 0x90  # msgpack: a short array …
        and payload[1] & 0xE0 == 0xA0  # … that starts with a short string
        and payload[2:4] == b"x/"
    )


@dataclass(frozen=True, slots=True)
class _Message:
    KIND: ClassVar[str] = ""

    round: int
    root: bytes
    """The root tells apart the states of two lineages at the same round."""
    tag: str = field(default="", kw_only=True)
    """Whose rounds are counted: the whole model's (""), or a module's or fragment's."""

    def pack(self) -> bytes:
        return packing.pack([self.KIND, *astuple(self)])


@dataclass(frozen=True, slots=True)
class Pin(_Message):
    """Keep this state for me, even when newer ones come."""

    KIND: ClassVar[str] = "x/pin"


@dataclass(frozen=True, slots=True)
class Read(_Message):
    """Keep this state for me while I read in it; what is committed next is no business of mine."""

    KIND: ClassVar[str] = "x/read"


@dataclass(frozen=True, slots=True)
class Release(_Message):
    """I have what I need of this state."""

    KIND: ClassVar[str] = "x/release"


@dataclass(frozen=True, slots=True)
class StateWanted(_Message):
    """Send me a page of this state's manifest. Pins it too."""

    KIND: ClassVar[str] = "x/want"

    page: int


@dataclass(frozen=True, slots=True)
class ManifestPage(_Message):
    """A page of the manifest, which has `pages` of them."""

    KIND: ClassVar[str] = "x/page"

    page: int
    pages: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ManifestMissing(_Message):
    """I do not hold this state (any more)."""

    KIND: ClassVar[str] = "x/missing"


@dataclass(frozen=True, slots=True)
class ChunkWanted(_Message):
    """Send me chunk `index` of `tensor` as the blob `key`."""

    KIND: ClassVar[str] = "x/chunk"

    tensor: str
    index: int
    key: int


@dataclass(frozen=True, slots=True)
class ChunkUnwanted(_Message):
    """Somebody else sends me that chunk: if it has not begun, it need not come."""

    KIND: ClassVar[str] = "x/drop"

    key: int


@dataclass(frozen=True, slots=True)
class ChunkMissing(_Message):
    """That blob will not come: `busy` with too many others, else not held."""

    KIND: ClassVar[str] = "x/nochunk"

    key: int
    busy: bool


@dataclass(frozen=True, slots=True)
class UpdateWanted(_Message):
    """What leads to this state from that of the round before? Keep it for me, and what follows."""

    KIND: ClassVar[str] = "x/update?"


@dataclass(frozen=True, slots=True)
class UpdateOffer(_Message):
    """That update, to be fetched like a state with the root `update` ("": I do not have it)."""

    KIND: ClassVar[str] = "x/update"

    update: bytes
    data_bytes: int
    how_bytes: int


TransferMessage: TypeAlias = (
    Pin
    | Read
    | Release
    | StateWanted
    | ManifestPage
    | ManifestMissing
    | ChunkWanted
    | ChunkUnwanted
    | ChunkMissing
    | UpdateWanted
    | UpdateOffer
)


def unpack_message(payload: bytes) -> TransferMessage:
    """Parse one message; ProtocolError if anything about it is off."""
    kind, *fields = packing.array(
        packing.unpack(payload, max_bytes=_MAX_MESSAGE_BYTES, max_items=16), "a message", 4, 16
    )
    round_ = packing.integer(fields[0], "a round", 0, _MAX_ROUND)
    root = packing.binary(fields[1], "a state root", 32)
    tag = packing.text(fields[2], "a tag", _MAX_TAG_BYTES)
    rest = fields[3:]
    match kind, len(rest):
        case "x/pin", 0:
            return Pin(round_, root, tag=tag)
        case "x/read", 0:
            return Read(round_, root, tag=tag)
        case "x/release", 0:
            return Release(round_, root, tag=tag)
        case "x/missing", 0:
            return ManifestMissing(round_, root, tag=tag)
        case "x/want", 1:
            page = packing.integer(rest[0], "a page", 0, MAX_PAGES - 1)
            return StateWanted(round_, root, page, tag=tag)
        case "x/page", 3:
            pages = packing.integer(rest[1], "the number of pages", 1, MAX_PAGES)
            page = packing.integer(rest[0], "a page", 0, pages - 1)
            data = packing.binary(rest[2], "a page's data", 1, PAGE_BYTES)
            return ManifestPage(round_, root, page, pages, data, tag=tag)
        case "x/chunk", 3:
            tensor = packing.text(rest[0], "a tensor's name", _MAX_NAME_BYTES)
            index = packing.integer(rest[1], "a chunk's index", 0, 2**40)
            return ChunkWanted(round_, root, tensor, index, _key(rest[2]), tag=tag)
        case "x/drop", 1:
            return ChunkUnwanted(round_, root, _key(rest[0]), tag=tag)
        case "x/update?", 0:
            return UpdateWanted(round_, root, tag=tag)
        case "x/update", 3:
            update = packing.binary(rest[0], "an update's root", 0, 32)
            if update and len(update) != 32:
                raise ProtocolError("an update's root is not 32 bytes")
            size = packing.integer(rest[1], "an update's size", 0, 2**50)
            how = packing.integer(rest[2], "an update's size", 0, MAX_HOW_BYTES)
            return UpdateOffer(round_, root, update, size, how, tag=tag)
        case "x/nochunk", 2:
            busy = packing.flag(rest[1], "busy")
            return ChunkMissing(round_, root, _key(rest[0]), busy, tag=tag)
        case _:
            raise ProtocolError("a state transfer message of an unknown kind or shape")


def _key(value: object) -> int:
    return packing.integer(value, "a blob key", 1, 2**64 - 1)


class KeyMaker:
    """Blob keys, unique within a process and, with a random `boot`, across restarts of it."""

    def __init__(self, boot: int) -> None:
        """`boot`: 32 random bits, drawn once per process."""
        self._next = self._first = (boot & 0xFFFFFFFF) << 32

    def __call__(self) -> int:
        self._next += 1
        return self._next

    def made(self, key: int) -> bool:
        """Whether it is one of these, or will be: nobody else may choose it."""
        return key >> 32 == self._first >> 32
