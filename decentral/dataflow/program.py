"""What a run consists of: cells, what each of their rounds is made from, and how.

    path/0 ── round 3 ─▶ ┐                                path/0 ── round 4 …
    path/1 ── round 3 ─▶ ┴─▶ module/left ── round 3 ─▶ ┬─▶ path/1 ── round 4 …

One rule makes a run small: whoever needs an earlier round than a cell's newest is too late. So a
cell waits until all who need its round have committed what they make from it (`progress.py`), and
nobody ever keeps more than the newest one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from decentral.errors import ConfigError
from decentral.types import TensorSpec

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

DTYPES = ("float32", "uint8")
"""What a cell's tensors may be made of: what a checkpoint can hold."""


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a round is made from: tensors of another cell's committed round."""

    cell: str
    round: int
    prefix: str = ""
    """Only tensors whose names begin so: nothing else of that cell is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a round has come to."""

    tensors: Arrays
    """As the cell's schema says: names, dtypes, shapes."""
    tokens: int = 0
    """Tokens (or samples) trained on; 0 where nothing was."""
    loss: float | None = None
    """For people."""


class Program(Protocol):
    """Pure: every method gives the same on every peer with the same fingerprint."""

    @property
    def cells(self) -> tuple[str, ...]:
        """All of them, in the run's order."""

    @property
    def fingerprint(self) -> bytes:
        """32 bytes over all that results depend on: model, data, options, version."""

    def leased(self, cell: str) -> bool:
        """True: a round is long work, done by one peer and copied to a second before it counts.
        False: it is quick, and two peers compute it, each for itself."""

    def rounds(self, cell: str) -> int:
        """The last round of the cell."""

    def inputs(self, cell: str, round: int) -> tuple[Input, ...]:
        """What round `round` (from 1) needs besides the cell's own round before."""

    def schema(self, cell: str) -> tuple[TensorSpec, ...]:
        """Every tensor, in all rounds; dtypes are those of `DTYPES`."""

    def initial(self, cell: str) -> Arrays:
        """Round 0."""

    def compute(
        self,
        cell: str,
        round: int,
        before: Arrays,
        inputs: Sequence[Arrays],
        beat: Callable[[], None],
    ) -> Computed:
        """Round `round`, from the tensors of the round before and the `inputs`, in their order.

        Nothing given may be written to. `beat` is to be called at least once a second: it says
        that the work goes on, and raises an exception of its own where it need not.
        """


def check(program: Program, cell: str, tensors: Arrays) -> None:
    """Raise a ConfigError that names what is not as the schema says."""
    specs = {spec.name: spec for spec in program.schema(cell)}
    if specs.keys() != tensors.keys():
        differs = ", ".join(sorted(specs.keys() ^ tensors.keys())[:3])
        raise ConfigError(f"cell {cell}: its schema and what was computed differ in {differs}")
    for name, spec in specs.items():
        array = tensors[name]
        if (str(array.dtype), array.shape) != (spec.dtype, spec.shape):
            raise ConfigError(
                f"cell {cell}: {name} is {array.dtype} {array.shape}, and its schema says "
                f"{spec.dtype} {spec.shape}"
            )
        if not array.flags.c_contiguous:
            raise ConfigError(f"cell {cell}: {name} is not contiguous")


def specs_of(tensors: Arrays) -> tuple[TensorSpec, ...]:
    """The schema of these tensors."""
    return tuple(
        TensorSpec(name=name, dtype=str(one.dtype), shape=one.shape)
        for name, one in sorted(tensors.items())
    )
