"""What a caller may say about one operation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What all operations have in common."""

    round: int
    attempt: int
    tag: int = 0
    """(round, attempt, tag) name the operation on every member and are used once. Operations of one
    group that share round and attempt start in the same order on all members."""
    priority: int = 1
    """Operations of a lower number go first where they share a stream."""
    chunk_bytes: int | None = None
    """What one frame carries at most, before encoding. None: by the number of streams."""
    silence_limit_s: float = 5.0
    """A member that shows no sign of life for so long fails the operation on all."""
    start_limit_s: float = 60.0
    """So does one that has not started the operation by then."""
    staged: bool = False
    """For `staging`: `src` fills up while the operation runs."""
