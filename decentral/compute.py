"""What a run needs of whatever trains: the seam between the outer rounds and the inner steps.

    Tensors     the trained parameters as one flat fp32 buffer     ModelTensors, for torch
    Inner       one inner optimizer step after another             InnerStep, for torch

No torch here: a peer whose compute is something else (`decentral.bench.sleep_peer`) never loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from decentral.schedule import Progress
from decentral.state import Layout

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did. `tokens` is 0 if it was skipped."""

    tokens: int
    loss: Any
    """Mean over the accumulated micro-batches: a float, or a scalar that stays on its device so
    that no step waits for it."""


@runtime_checkable
class Tensors(Protocol):
    """Used from the user's thread only."""

    layout: Layout
    lossy: bool
    """Some parameter cannot hold its fp32 master exactly."""

    def read(self, flat: Array) -> None:
        """flat[:] = the tensors, in fp32. A prefix of the layout may be asked for."""

    def write(self, flat: Array) -> None:
        """The tensors = flat."""

    def as_read(self) -> Array:
        """All of them, in a fresh buffer."""

    def save(self) -> Any:
        """Exact copies, for `restore`."""

    def restore(self, saved: Any) -> None: ...


@runtime_checkable
class Inner(Protocol):
    def __call__(self, loss: Any, tokens: int, progress: Progress) -> StepResult | None:
        """None: more micro-batches are due before the optimizer steps."""

    def forget(self) -> None:
        """Gradients and optimizer state go: what a non-finite step may have poisoned."""

    def state(self) -> dict[str, Array]:
        """Copies of the optimizer's tensors, fp32; empty where it has none yet."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave; nothing happens where it does not fit."""
