"""What a strategy is: it decides what is exchanged and when, and makes the next committed state.

The run does the rest: it takes the outer gradient, reduces it, and applies nothing before the
commit. A strategy is a frozen value without state of its own, so that every member of a run
computes the same bits from the same inputs.

                 offer Δ                    commit
    H steps        │   overlap steps           │
    ───────────────┼───────────────────────────┼──────────────▶
                   └─ reduced meanwhile        └─ θm ← blend(θ, θm, …)

    overlap 0        training waits for the commit: DiLoCo
    0 < overlap < H  the outcome is applied so many steps after the offer: StreamingDiLoCo
    overlap = H      … when the next Δ is offered: AsyncDiLoCo; `restart` says where from
    overlap None     … as soon as it is there, and nobody ever waits: DecoupledDiLoCo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from decentral.state import HeldState, Layout
from decentral.types import Contribution, PeerId

if TYPE_CHECKING:
    from decentral.types import Array


class Strategy(Protocol):
    """The seam between the outer rounds and the files of this package.

    `decentral.strategies.outer.OuterOptimization` has all of it; a strategy overrides what its
    paper does differently.
    """

    @property
    def name(self) -> str:
        """Written into the committed state and the fingerprint."""

    @property
    def sync_every(self) -> int:
        """Inner optimizer steps from one contribution to the next (H)."""

    @property
    def fragments(self) -> int:
        """Parts of the model with rounds of their own, in turn (P); 1: all of it at once."""

    @property
    def overlap(self) -> int | None:
        """Inner steps from an offer to the adoption of its outcome (τ), as pictured above."""

    @property
    def codec(self) -> str:
        """What the all-reduce puts on the wire."""

    @property
    def feedback_decay(self) -> float | None:
        """β of error feedback (`decentral.feedback`); None: without."""

    @property
    def dynamic_steps(self) -> bool:
        """Whether a slow peer offers after fewer steps: as many as fit between two commits."""

    def reduce_options(self) -> Mapping[str, Any]:
        """Further arguments of `Group.all_reduce`, the same on all members."""

    def options(self) -> Mapping[str, int | float | str | None]:
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

        `delta` has `layout.exchanged` elements, `theta` and `momentum` are fresh. Arithmetic that
        is the same on all machines only: these bits are hashed and voted on.
        """

    def blend(self, theta: Array, local: Array, snapshot: Array) -> Array:
        """θm after a commit has counted what was offered at `snapshot`, `local` being θm now.

        All three are this peer's, fp32, `layout.exchanged` long; may write into `local`.
        """

    def restart(
        self, theta: Array, own: Array, progress: Array, members: int, memory: dict[str, Array]
    ) -> Array:
        """With overlap = H: where the next inner steps start from, a fresh array.

        `own`: this peer's Δ that is about to be offered; `progress`: the part of it that is new;
        `memory`: whatever this peer keeps for the strategy, by name.
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
