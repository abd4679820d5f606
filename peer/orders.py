"""What reaches the trainer: the core's actions for it, and two that the runtime adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from decentral.errors import DecentralError
from decentral.peer import protocol
from decentral.types import CommittedState

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StateArrived:
    """A FetchState was carried out, verified against the committed root: adopt it and `hold` it."""

    state: CommittedState
    tag: str = ""


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """What led from the state before to that of `round`: apply it. If the result has this root,
    adopt and `hold` it; if not, `refuse_update`."""

    round: int
    state_root: bytes
    data: NDArray[Any]
    how: NDArray[Any]
    tag: str = ""


@dataclass(frozen=True, slots=True)
class MeshFailed:
    """Taking part is not possible (refused, nobody reachable): the run ends here with this."""

    error: DecentralError


Order: TypeAlias = (
    protocol.StartReduce
    | protocol.AbortReduce
    | protocol.Committed
    | protocol.CloseRound
    | protocol.Joined
    | protocol.Left
    | protocol.Evicted
    | protocol.Fault
    | StateArrived
    | UpdateArrived
    | MeshFailed
)
