"""What an outer round is about: own work, the state that it leads to, and the disk behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from decentral.leases import Ranges
from decentral.peer.protocol import RollbackEntry, RoundEntry, StartReduce
from decentral.state import HeldState
from decentral.types import View

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(slots=True)
class OwnWork:
    """What the model has over the anchor, and no commit has counted."""

    began_at: int = 0
    """The round of the committed state that the first of these steps started from."""
    steps: int = 0
    """Inner steps, those carried over from an earlier round included."""
    tokens: int = 0
    losses: list[Any] = field(default_factory=list)
    """Floats, or scalars on a device, which nothing waits for until the round is over; None where
    a loop did not say."""
    contributed_to: int = 0
    """The round that it was offered to; 0: not yet."""
    counted: bool = False
    """A commit has it; it goes with the next adoption."""

    def mean_loss(self) -> float | None:
        said = [loss for loss in self.losses if loss is not None]
        return float(sum(said)) / len(said) if said else None


@dataclass(frozen=True, slots=True)
class ReduceEnded:
    """The all-reduce that was ordered is over: an order of ours to ourselves."""

    order: StartReduce
    error: BaseException | None

    @property
    def tag(self) -> str:
        return self.order.tag


@dataclass(frozen=True, slots=True)
class Adoption:
    """A committed round that this peer has just applied."""

    entry: RoundEntry
    view: View
    held: HeldState
    loss: float | None
    """Mean training loss of this peer's own steps since the last adoption."""


class Disk(Protocol):
    """What becomes of states that the run leaves behind (`decentral.reporting`)."""

    def rolled_back(self, round: int, root: bytes) -> HeldState | None:
        """The run has gone back to this state: here it is, if this peer has kept it."""

    def superseded(self, held: HeldState, lineage: str) -> None:
        """Another lineage has won over the one that this state was committed in."""


class Witness(Protocol):
    """Who writes down what an audit needs (`decentral.witness`)."""

    def contributes(
        self, lineage: str, held: HeldState, work: OwnWork, leases: Ranges, delta: Array
    ) -> None:
        """This work is about to be offered for the round after `held`."""

    def rolls_back(self, lineage: str, entry: RollbackEntry) -> None:
        """The run has agreed to go back."""
