"""What an outer round is about: own work, what the committed side says of it, and the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from decentral.leases import Ranges
from decentral.mesh_port import Order
from decentral.peer.protocol import Committed, RollbackEntry, RoundEntry, StartReduce
from decentral.state import HeldState
from decentral.types import View

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(slots=True)
class OwnWork:
    """Inner steps that no commit has counted."""

    began_at: int = 0
    """The round of the committed state that the first of these steps started from."""
    steps: int = 0
    """Inner steps, those carried over from an earlier round included."""
    tokens: int = 0
    losses: list[Any] = field(default_factory=list)
    """Floats, or scalars on a device, which nothing waits for until the round is over; None where
    a loop did not say."""

    def mean_loss(self) -> float | None:
        said = [loss for loss in self.losses if loss is not None]
        return float(sum(said)) / len(said) if said else None

    def with_later(self, later: OwnWork) -> OwnWork:
        """Both as one. Losses are reported once: the earlier ones have been."""
        return OwnWork(
            began_at=self.began_at,
            steps=self.steps + later.steps,
            tokens=self.tokens + later.tokens,
            losses=later.losses,
        )


@dataclass(frozen=True, slots=True)
class ReduceEnded:
    """The all-reduce that was ordered is over: an order of ours to ourselves."""

    order: StartReduce
    error: BaseException | None

    @property
    def tag(self) -> str:
        return self.order.tag


@dataclass(frozen=True, slots=True)
class Restored:
    """The disk had the state that the run goes back to."""

    held: HeldState
    tag: str


# ------------------------------------------------ what the committed side tells the user's thread


@dataclass(frozen=True, slots=True)
class Heard:
    """An order that concerns own work or the run as a whole."""

    order: Order
    tag: str
    late: bool = False
    """A commit whose outcome, or a newer one, had arrived before it: it changes nothing more."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """The committed state is another one, and held here."""

    held: HeldState
    order: Committed | None
    """The commit that this state is the outcome of, if it was followed."""
    replaces: bool
    """Own work began from a state that does not lead here: it goes."""
    tag: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The committed side has failed in a way that nobody foresaw."""

    error: BaseException
    tag: str = ""


News: TypeAlias = Heard | Advanced | Broken


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
