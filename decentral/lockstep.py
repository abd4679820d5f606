"""What the processes of an island must agree on: the one seam between `run.py` and `islands/`.

A model that is sharded over several processes has collectives inside its forward and backward
passes. If one process made a step more than another, or waited for a round while another stepped,
both would wait for ever. So wherever a run can block, end or branch, it asks this first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from decentral.errors import DecentralError
    from decentral.leases import LeaseBook
    from decentral.outer_loop import OuterLoop
    from decentral.outer_round import OuterRounds
    from decentral.state import HeldState


class Lockstep(Protocol):
    """Used from the user's thread, in the same order by all processes of the island."""

    finished: str | None
    """Why the run is over for the island, once all its processes know."""
    round: int
    """Committed rounds that all of them have adopted, as of the last `settle`."""

    def enter(self, loop: OuterLoop, outer: OuterRounds) -> None:
        """Returns when all processes are members that hold their committed state."""

    def total(self, tokens: int) -> int:
        """The sum of what all processes count for a step."""

    def settle(
        self, loop: OuterLoop, outer: OuterRounds, book: LeaseBook, *, leased: bool, stepped: bool
    ) -> None:
        """Contribute and wait if it is time for any of the processes; see to it that all can go on,
        or that all know the end. `stepped`: an optimizer step has just been made."""

    def save(self, held: HeldState, path: Path) -> Path:
        """Export the island's committed parameters; called by all processes."""

    def explain(self, error: BaseException) -> DecentralError | None:
        """What to say instead of `error`, where another process of the island has caused it."""

    def close(self, why: str = "") -> None:
        """Tell the other processes that this one goes; `why`: it fails. Idempotent."""
