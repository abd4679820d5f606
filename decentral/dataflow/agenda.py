"""What this peer should do now: a pure function of the log and of what is here.

    keeps      cells to keep, by the leases
    next       the one round to work on, if any
    passed_on  whether a cell that is not ours (any more) may be let go

In this order a peer computes: what is quick and its own; what is leased to it; what others should
have done long ago (their peer is slow, or hung); what waits at the end of somebody's long queue.
The last two may be done twice: both come to the same bits, and the log takes one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from decentral.dataflow.leases import Assignment, rank
from decentral.dataflow.program import Program
from decentral.dataflow.progress import Progress, kind_of
from decentral.types import PeerId

LATE = 3.0
"""Leased work is late after so many times as long as such work takes here."""
LATE_S = 5.0
"""… and after so long at least, or where nothing is known: all else is a guess."""


@dataclass(slots=True)
class Mine:
    """What is here."""

    done: dict[str, int] = field(default_factory=dict)
    """Rounds computed here and not committed yet, by cell."""
    took_s: dict[str, float] = field(default_factory=dict)
    """How long a round takes here, by kind of cell."""


class Agenda:
    """One peer's. Remembers only since when each cell could have gone on."""

    def __init__(self, program: Program, me: PeerId, copies: int) -> None:
        self._program, self._me = program, me
        self._progress = Progress(program)
        self._assignment = Assignment(program, copies)
        self._ready_since: dict[tuple[str, int], float] = {}

    def keeps(self, members: Sequence[PeerId]) -> tuple[str, ...]:
        """The cells that this peer is to keep, in the run's order."""
        leases = self._assignment.leases(members)
        return tuple(cell for cell in self._program.cells if self._me in leases[cell])

    def passed_on(self, members: Sequence[PeerId], cell: str, holders: Collection[PeerId]) -> bool:
        """Whether this peer may let go of a cell whose newest round these hold: all who are to
        keep it are among them."""
        keepers = self._assignment.leases(members)[cell]
        return self._me not in keepers and set(keepers) <= set(holders)

    def finished(self, at: Mapping[str, int]) -> bool:
        """Whether every cell is at its last round."""
        return self._progress.finished(at)

    def next(
        self, members: Sequence[PeerId], at: Mapping[str, int], mine: Mine, now: float
    ) -> str | None:
        """The cell whose next round this peer should compute. `now`: in seconds."""
        ready = self._progress.ready(at)
        self._ready_since = {
            (cell, at[cell]): self._ready_since.get((cell, at[cell]), now) for cell in ready
        }
        leases = self._assignment.leases(members)
        open_ = [cell for cell in ready if mine.done.get(cell) != at[cell] + 1]
        own = [cell for cell in open_ if self._is_own(leases[cell], cell)]
        if own:
            return min(own, key=lambda cell: (self._program.leased(cell), at[cell]))
        for cell in open_:
            place = self._place(members, leases[cell], cell)
            if now >= self._ready_since[cell, at[cell]] + place * self._patience_s(cell, mine):
                return cell
        return self._waits_longest(leases, [one for one in open_ if self._program.leased(one)])

    def _is_own(self, keepers: Sequence[PeerId], cell: str) -> bool:
        return self._me in keepers[:1] if self._program.leased(cell) else self._me in keepers

    def _place(self, members: Sequence[PeerId], keepers: Sequence[PeerId], cell: str) -> int:
        """Stand-ins come one after another: those who keep the cell first."""
        others = sorted(set(members) - set(keepers), key=lambda peer: rank(cell, peer))
        return [*keepers, *others].index(self._me)

    def _patience_s(self, cell: str, mine: Mine) -> float:
        return max(LATE_S, LATE * mine.took_s.get(kind_of(cell), 0.0))

    def _waits_longest(
        self, leases: Mapping[str, Sequence[PeerId]], waiting: Sequence[str]
    ) -> str | None:
        """The last in the longest queue of another peer, which has not come to it yet."""
        queues: dict[PeerId, list[str]] = {}
        for cell in waiting:
            queues.setdefault(leases[cell][0], []).append(cell)
        queues.pop(self._me, None)
        longest = max(queues.values(), key=len, default=[])
        if len(longest) < 2:
            return None
        return min(longest[1:], key=lambda cell: rank(cell, self._me))
