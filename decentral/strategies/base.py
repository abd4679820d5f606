"""What a strategy is: it decides what is exchanged and when, and makes the next committed state.

The run does the rest: it takes the outer gradient, reduces it, and applies nothing before the
commit. A strategy is a frozen value without state of its own, so that every member of a run
computes the same bits from the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from decentral.state import HeldState, Layout
from decentral.types import Contribution, PeerId

if TYPE_CHECKING:
    from decentral.types import Array


class Strategy(Protocol):
    """The seam between `decentral.outer_round` and the files of this package."""

    @property
    def name(self) -> str:
        """Written into the committed state and the fingerprint."""

    @property
    def sync_every(self) -> int:
        """Inner optimizer steps from one contribution to the next (H)."""

    @property
    def codec(self) -> str:
        """What the all-reduce puts on the wire."""

    def options(self) -> Mapping[str, int | float | str]:
        """Everything that changes results: part of the run's fingerprint."""

    @property
    def min_contributors(self) -> int:
        """K: a round may close on so many contributions; 0: all members'."""

    @property
    def grace_s(self) -> float:
        """How long a round that has its K contributions waits for more."""

    @property
    def steps_alone(self) -> int:
        """Inner steps that a peer may go on for while no majority can be reached."""

    def weight_of(self, contribution: Contribution) -> float:
        """What a contribution counts in the average, before normalization."""

    def outer_step(
        self, layout: Layout, held: HeldState, delta: Array, theta: Array, momentum: Array
    ) -> None:
        """Write the next (theta, momentum) from the held state and the averaged outer gradient.

        `delta` has `layout.exchanged` elements, `theta` and `momentum` are fresh. Native fp32
        arithmetic only: these bits are hashed and voted on.
        """


def rank_weights(
    strategy: Strategy, participants: Sequence[PeerId], contributions: Sequence[Contribution]
) -> tuple[float, ...]:
    """Each participant's weight, in rank order: 0 for those who exchange without contributing, or
    have nothing to add."""
    weight = {c.peer: strategy.weight_of(c) if c.tokens else 0.0 for c in contributions}
    if not any(weight.values()):
        # Nobody has a token to show (a GradScaler skipped every step): all count the same.
        weight = dict.fromkeys(weight, 1.0)
    return tuple(weight.get(peer, 0.0) for peer in participants)
