"""What reaches the trainer: the core's actions for it, and two that the runtime adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from decentral.errors import DecentralError
from decentral.peer import protocol
from decentral.types import CommittedState


@dataclass(frozen=True, slots=True)
class StateArrived:
    """A FetchState was carried out, verified against the committed root: adopt it and `hold` it."""

    state: CommittedState


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
    | MeshFailed
)
