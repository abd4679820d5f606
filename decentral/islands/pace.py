"""What the ranks of a sharded island agree on, step by step.

    rank 0   step ─ step ─ step ┐ due              ┌ step …
    rank 1   step ─ step ─ step ┤ asked, too few   ├ step …      all contribute, all wait
    rank 2   step ─ step ─ step ┘ leases used up   └ step …

Each rank has orders, leases and rounds of its own, one tag per shard. After each step they compare
where they stand, and all branch alike. The last comparison of a `settle` finds that nobody is due
and nobody without samples, so that the next step is made by all; or that the end has come for one,
which ends it for all.

**Why nobody waits in a circle.** A rank contributes only while its shard is at the lowest round
that any shard of its island is at. Rounds are the run's, so all islands agree which shards are
behind, and whoever waits for a commit waits for ranks that are free to contribute to it. It also
brings shards together again of which one has missed a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decentral.errors import DecentralError, FingerprintError, RefusedError
from decentral.islands.talk import Talk
from decentral.islands.watch import Watch

if TYPE_CHECKING:
    from decentral.leases import LeaseBook
    from decentral.outer_loop import OuterLoop
    from decentral.outer_round import OuterRounds
    from decentral.state import HeldState

_LOOK_S = 0.02
"""A rank without samples looks so often for the order that brings some."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One rank, as it compares itself with the others."""

    due: bool
    starved: bool
    """It has no sample for another step."""
    ended: bool
    round: int

    def row(self) -> list[int]:
        return [self.due, self.starved, self.ended, self.round]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows for all ranks: a pure function of their rows, so equal on all."""

    due: bool
    starved: bool
    ended: int | None
    """The first rank that knows why the run is over."""
    lowest: int
    """Rounds that every shard has."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Verdict:
        return cls(
            due=any(row[0] for row in rows),
            starved=any(row[1] for row in rows),
            ended=next((rank for rank, row in enumerate(rows) if row[2]), None),
            lowest=min(row[3] for row in rows),
        )


class Pace:
    """The `Lockstep` of one rank of a sharded island."""

    def __init__(
        self,
        talk: Talk,
        watch: Watch,
        beat: Callable[[], None],
        save: Callable[[HeldState, Path], Path],
    ) -> None:
        """`beat`: tells the mesh that this peer is not hung; `save`: see `shard_save`."""
        self.finished: str | None = None
        self.round = 0
        self._talk, self._watch, self._save = talk, watch, save
        self._beat = beat
        talk.on_beat = self._on_beat

    def enter(self, loop: OuterLoop, outer: OuterRounds) -> None:
        try:
            loop.wait_until_current()
        except (FingerprintError, RefusedError) as error:
            if isinstance(error, RefusedError) and "fingerprint" not in error.says:
                raise
            ranks = f"{self._talk.size} rank{'s' if self._talk.size != 1 else ''}"
            raise FingerprintError(
                f"{error.says}; this is an island of {ranks}, and all islands of a run have "
                "equally many ranks and shard the model in the same way",
                peer=error.peer,
                phase=error.phase,
            ) from error
        # The other ranks may take long to fetch their shards. The run shall not wait for that.
        self._talk.compare([], meanwhile=lambda: self._answer(loop, outer))
        self._wait_for_answers(loop, outer)

    def total(self, tokens: int) -> int:
        return sum(row[0] for row in self._talk.compare([tokens]))

    def settle(
        self, loop: OuterLoop, outer: OuterRounds, book: LeaseBook, *, leased: bool, stepped: bool
    ) -> None:
        due_counts = stepped
        while self.finished is None:
            verdict = self._look(loop, outer, starved=leased and not book.remaining)
            self.round = verdict.lowest
            if verdict.ended is not None:
                why = self._talk.share((loop.ended or "").encode(), verdict.ended)
                self.finished = why.decode()
                return
            if not verdict.starved and not (due_counts and verdict.due):
                return
            # Once a step: whose work was not counted offers it again after the next one.
            due_counts = False
            if outer.work.steps and outer.held.round <= verdict.lowest:
                loop.synchronize(early=True)
            else:
                if verdict.starved:
                    time.sleep(_LOOK_S)
                self._answer(loop, outer)
                self._wait_for_answers(loop, outer)

    def save(self, held: HeldState, path: Path) -> Path:
        return self._save(held, path)

    def explain(self, error: BaseException) -> DecentralError | None:
        return self._watch.explain(error)

    def close(self, why: str = "") -> None:
        self._watch.close(why)

    # ------------------------------------------------------------------ inside

    def _look(self, loop: OuterLoop, outer: OuterRounds, *, starved: bool) -> Verdict:
        mine = Standing(loop.due, starved, loop.ended is not None, outer.held.round)
        return Verdict.of(self._talk.compare(mine.row()))

    @staticmethod
    def _answer(loop: OuterLoop, outer: OuterRounds) -> None:
        """Whoever waits for this rank while it cannot train shall hear that it has nothing to
        add."""
        loop.drain()
        if outer.ended is None and outer.asked and outer.offered is None and not outer.work.steps:
            outer.contribute()

    @staticmethod
    def _wait_for_answers(loop: OuterLoop, outer: OuterRounds) -> None:
        """Steps that follow upon "nothing to add" must not be taken for what was offered."""
        if outer.held_up:
            loop.synchronize()

    def _on_beat(self) -> None:
        self._beat()
        self._watch.check()
