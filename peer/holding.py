"""What a peer brings along when it enters a run: per tag, its part of the model and what it has of
its state.

    tag                    schema     initial          resumed
    ""                     model      a founder's      from its disk      a run with one model
    "a", "b" of "a b c"    modules    a founder's      from its disk      those that it trains
    "c"                    module     a founder's                         given away, not trained
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decentral.types import CommittedState, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One tag, as one peer holds it."""

    schema: Sequence[TensorSpec]
    """Every tensor of the committed state."""
    initial: CommittedState | None = None
    """A founder's round 0."""
    resumed: CommittedState | None = None
    """The newest state on this peer's disk."""
    takes: bool = True
    """False: a founder gives the initial state away and takes no part in the tag's rounds."""

    @property
    def state(self) -> CommittedState | None:
        return self.resumed or self.initial
