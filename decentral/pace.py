"""When a tag's work is offered and its outcome adopted: the strategy's timing, and a peer's own.

Counted in inner steps, as the papers do; only `dynamic_steps` looks at a clock.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

from decentral.strategies.base import Strategy

_MEDIAN_OF = 32
_COMMITS = 8


class Pace:
    """Used from the user's thread only. `steps` are those since the last offer."""

    def __init__(self, strategy: Strategy, first_after: int | None = None) -> None:
        self._strategy = strategy
        self._first_after = first_after
        self._stepped_at = 0.0
        self._step_times: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._advanced_at = 0.0
        self._commit_times: deque[float] = deque(maxlen=_COMMITS)

    @property
    def whole_rounds(self) -> bool:
        """An outcome is adopted when the next work is offered."""
        overlap = self._strategy.overlap
        return overlap is not None and overlap >= self._strategy.sync_every

    def enough(self, *, alone: bool) -> int:
        """Inner steps that make a contribution."""
        if self._first_after is not None:
            return self._first_after
        steps = self._strategy.sync_every
        if alone:
            return steps + self._strategy.steps_alone
        if self._strategy.dynamic_steps and self._step_times and self._commit_times:
            # As many as the others give it time for: who is slow offers less, and is not stale.
            fit = statistics.median(self._commit_times) / statistics.median(self._step_times)
            return max(1, min(steps, int(fit)))
        return steps

    def waits(self, steps: int) -> bool:
        """Whether what was offered must have its outcome before another step is made."""
        overlap = self._strategy.overlap
        return overlap is not None and steps >= overlap

    def adopts(self, steps: int, *, counted: bool) -> bool:
        """Whether an outcome that has arrived is adopted now."""
        overlap = self._strategy.overlap
        if self.whole_rounds:
            return False
        return not counted or overlap is None or steps >= overlap

    # ------------------------------------------------------------------ what has happened

    @property
    def step_s(self) -> float:
        """The median inner step; 0: not known yet."""
        return statistics.median(self._step_times) if self._step_times else 0.0

    def stepped(self) -> None:
        now = time.monotonic()
        if self._stepped_at:
            self._step_times.append(now - self._stepped_at)
        self._stepped_at = now

    def resume(self) -> None:
        """The wait was no step."""
        self._stepped_at = 0.0

    def offered(self) -> None:
        self._first_after = None

    def advanced(self) -> None:
        """A commit has moved the tag on."""
        now = time.monotonic()
        if self._advanced_at:
            self._commit_times.append(now - self._advanced_at)
        self._advanced_at = now
