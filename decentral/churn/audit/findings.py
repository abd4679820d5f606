"""What was found wrong: each thing once, in words that name what, who and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any

MOST_PER_INVARIANT = 200
"""One broken thing can repeat in every round; so many are kept, all are counted."""


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    """"I1" … "I7", or "log" where a log itself cannot be relied on."""
    at: float | None
    """CLOCK_MONOTONIC seconds; None where there is no one moment."""
    says: str
    peer: str | None = None
    """The name of the peer that it is about, or whose log shows it."""

    def __str__(self) -> str:
        return f"{self.invariant}: {self.says}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Findings:
    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._known: set[Hashable] = set()

    def add(
        self,
        invariant: str,
        at: float | None,
        says: str,
        *,
        peer: str | None = None,
        key: Hashable = None,
    ) -> None:
        """`key`: what makes two findings the same one; by default their words."""
        known = (invariant, says if key is None else key)
        if known in self._known:
            return
        self._known.add(known)
        self.counts[invariant] += 1
        if self.counts[invariant] <= MOST_PER_INVARIANT:
            self.violations.append(Violation(invariant, at, says, peer))

    @property
    def total(self) -> int:
        return sum(self.counts.values())
