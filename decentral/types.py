"""Values that every layer may hold. A leaf: imports nothing of ours, and neither torch nor numpy.

A peer id is the string ``peer:`` + lower-case base32 (no padding) of a raw Ed25519 public key.
Native code takes the 32 raw bytes instead; `raw_id` and `peer_id` convert.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = "NDArray[np.float32]"

PeerId: TypeAlias = str


def short(peer: PeerId) -> str:
    """The form shown to people: the first eight characters after ``peer:``."""
    return peer.removeprefix("peer:")[:8]


@lru_cache(maxsize=16384)
def raw_id(peer: PeerId) -> bytes:
    """The 32 raw bytes of a peer id. ValueError if it is none, or not in its one canonical form."""
    text = peer.removeprefix("peer:")
    try:
        raw = base64.b32decode(text.upper() + "====")
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or peer_id(raw) != peer:
        raise ValueError(f"not a peer id: {peer[:80]!r}")
    return raw


@lru_cache(maxsize=16384)
def peer_id(raw: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key (32 bytes)."""
    if len(raw) != 32:
        raise ValueError(f"a public key has 32 bytes, not {len(raw)}")
    return "peer:" + base64.b32encode(raw).decode("ascii").rstrip("=").lower()


@dataclass(frozen=True, order=True, slots=True)
class Range:
    """A half-open range of global sample ids, [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Who is in, as agreed by a majority: the one value that mesh and collectives share.

    `members` are in rank order; the first living one coordinates. `epoch` grows by one with
    every change of members; `lineage` changes only when survivors go on without a majority.
    """

    lineage: str
    epoch: int
    members: tuple[PeerId, ...]

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    def rank(self, peer: PeerId) -> int:
        return self.members.index(peer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one member adds to a round: counted whole, and once, or not at all (I6, I7)."""

    peer: PeerId
    tokens: int
    leases: tuple[Range, ...] = ()
    staleness: int = 0
    """Rounds of its tag that were committed between the start of this work and the round that
    counts it: 0 for work that began at the state which the round changes."""
    steps: int = 0
    """Inner optimizer steps that it holds; 0: not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the committed state: what a hash covers besides the bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedState:
    """The state that all members of a committed round hold bit for bit (I1). Never mutated.

    `tensors` map a name to a C-contiguous array; by convention ``param/…`` is a parameter
    (fp32), ``momentum/…`` the outer momentum (fp32) and ``run/meta`` msgpack bytes (uint8):
    the schedule's clock and whatever a strategy shares.
    """

    round: int
    tensors: Mapping[str, NDArray[Any]]
    root: bytes
    """Merkle root over all tensors (32 bytes)."""
    leaves: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Per tensor, its concatenated 32-byte chunk hashes: what state transfer verifies against."""
