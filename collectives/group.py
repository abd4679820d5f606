"""A group: the members of one view, ready to reduce. `Work`: an all-reduce that is running."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native
from decentral.collectives.plan import Plan, ring
from decentral.errors import (
    AbortedError,
    CollectiveError,
    ConfigError,
    DecentralError,
    MismatchError,
    PeerFailedError,
    ProtocolError,
)
from decentral.types import PeerId, View, peer_id, raw_id

if TYPE_CHECKING:
    from decentral.types import Array

CODECS = ("fp32", "bf16", "int8")
"""What values can travel as; sums are always fp32."""

_ERRORS: dict[str, type[DecentralError]] = {
    "closed": PeerFailedError,
    "silent": PeerFailedError,
    "aborted": AbortedError,
    "mismatch": MismatchError,
    "protocol": ProtocolError,
    "config": ConfigError,
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What an operation cost this member."""

    bytes_sent: int
    """Payloads and headers, before encryption."""
    bytes_received: int
    seconds: float


class Work:
    """A running all-reduce. Keeps its buffers alive; dropping it unfinished calls it off."""

    def __init__(self, op: Any) -> None:
        self._op = op

    def wait(self, timeout_s: float | None = None) -> bool:
        """True: `dst` holds the result. False: still running after `timeout_s`.

        Raises PeerFailedError (a member died or went silent), AbortedError, MismatchError, or
        another DecentralError, with `peer` and `phase`; `src` is then as it was, and neither
        buffer is touched any more.
        """
        if not self._op.wait(-1.0 if timeout_s is None else max(0.0, timeout_s)):
            return False
        if self._op.error is not None:
            raise _typed(*self._op.error)
        return True

    @property
    def done(self) -> bool:
        """Over, with success or not: no buffer is touched any more."""
        return bool(self._op.done)

    def abort(self, reason: str) -> None:
        """Call it off on all members; returns when no buffer is touched any more. Idempotent."""
        self._op.abort(reason)

    @property
    def stats(self) -> Stats:
        """So far, or in all."""
        return Stats(*self._op.stats)


class Group:
    """The members of a view as an immutable group; rank order is the view's order.

    `endpoint` is this peer's native endpoint, with admitted links to the members that the plan
    makes it exchange data with. Cheap to make: one per view, or per operation.
    """

    def __init__(self, endpoint: Any, view: View, me: PeerId) -> None:
        if me not in view.members:
            raise ConfigError("this peer is not a member of the view", peer=me, phase="all-reduce")
        self.view = view
        self.rank = view.rank(me)
        self._members = [raw_id(member) for member in view.members]
        self._engine = _native.Engine(endpoint)

    def __len__(self) -> int:
        return len(self._members)

    def all_reduce(
        self,
        src: Array,
        dst: Array,
        codec: str = "fp32",
        *,
        weights: Sequence[float] | None = None,
        round: int,
        attempt: int,
        tag: int = 0,
        planner: Callable[[int, int, int], Plan] = ring,
        chunk_bytes: int = 512 << 10,
        silence_limit_s: float = 5.0,
    ) -> Work:
        """Start dst = Σ weight_m · src_m / Σ weight_m over the members: the same bits for all.

        `src` and `dst` are distinct C-contiguous fp32 arrays of one size, borrowed until the work
        is done; `src` is never written. `weights` has one entry per member, in rank order and
        the same on every member (default: equal). A weight of 0 is an absence: that member's
        `src` is not read, and may hold anything.

        (round, attempt, tag) name the operation on every member and are used once; several may
        run at a time under different tags. Members that disagree about size, codec, weights or
        order get a MismatchError before any data moves. A member that shows no sign of life for
        `silence_limit_s` fails the operation on all.

        Raises ConfigError for a call that cannot work.
        """
        if codec not in CODECS:
            raise ConfigError(
                f"there is no codec {codec!r}: choose from {', '.join(CODECS)}", phase="all-reduce"
            )
        source, result = _flat(src, "src"), _flat(dst, "dst")
        if source.size != result.size or not result.flags.writeable:
            raise ConfigError(
                f"dst must be writable and as large as src ({source.size} values, "
                f"dst has {result.size})",
                phase="all-reduce",
            )
        weight, scale = _normalized(weights, len(self), self.rank)
        plan = planner(len(self), self.rank, source.size)
        op = self._engine.all_reduce(
            members=self._members,
            rank=self.rank,
            count=source.size,
            codec=codec,
            segments=[(s.offset, s.count, s.owner) for s in plan.segments],
            steps=[(int(s.kind), s.peer, s.segment) for s in plan.steps],
            weight=weight,
            scale=scale,
            round=round,
            attempt=attempt,
            tag=tag,
            chunk_bytes=chunk_bytes,
            silence_limit_ms=math.ceil(silence_limit_s * 1000),
            src=source,
            dst=result,
        )
        return Work(op)


def _flat(array: Array, name: str) -> Array:
    """The same memory as one dimension. ConfigError if that is impossible: never a silent copy."""
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ConfigError(
            f"{name} must be a C-contiguous float32 array, not {array.dtype} with strides "
            f"{array.strides}",
            phase="all-reduce",
        )
    return array.reshape(-1)


def _normalized(weights: Sequence[float] | None, members: int, rank: int) -> tuple[float, float]:
    """(this member's weight, the scale that all share): fp32, from the same weights everywhere."""
    given = [1.0] * members if weights is None else [float(np.float32(w)) for w in weights]
    if len(given) != members:
        raise ConfigError(f"{len(given)} weights for {members} members", phase="all-reduce")
    if not all(math.isfinite(w) and w >= 0 for w in given):
        raise ConfigError("weights must be finite and not negative", phase="all-reduce")
    total = math.fsum(given)  # exact, so its order does not matter
    if total == 0:
        raise ConfigError("at least one member must have a weight above zero", phase="all-reduce")
    return given[rank], float(np.float32(1.0 / total))


def _typed(kind: str, phase: str, peer: bytes, text: str) -> DecentralError:
    return _ERRORS.get(kind, CollectiveError)(
        text, peer=peer_id(peer) if any(peer) else None, phase=phase or "all-reduce"
    )
