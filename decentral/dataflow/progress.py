"""Which rounds may be computed now: a pure function of those that are committed.

    cell at r  ──▶  r + 1   when  every input is its cell's newest round,
                                  nobody's next round still needs r,
                                  no cell of its kind is behind r          (fair progress)

The second condition is why newest rounds are all that a run keeps, the third why no path is more
than one phase ahead of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from decentral.dataflow.program import Program


class Progress:
    """Of one program. `at`, everywhere: the committed round of each cell."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def next_round(self, cell: str, at: Mapping[str, int]) -> int:
        """0: the cell is done."""
        following = at[cell] + 1
        return following if following <= self._program.rounds(cell) else 0

    def finished(self, at: Mapping[str, int]) -> bool:
        return not any(self.next_round(cell, at) for cell in self._program.cells)

    def inputs_there(self, cell: str, at: Mapping[str, int]) -> bool:
        """Whether the cell's next round has all that it is made from."""
        following = self.next_round(cell, at)
        return following > 0 and all(
            at[one.cell] == one.round for one in self._program.inputs(cell, following)
        )

    def ready(self, at: Mapping[str, int]) -> tuple[str, ...]:
        """Cells whose next round may be computed, in the run's order."""
        still = self._still_needed(at)
        return tuple(
            cell
            for cell in self._program.cells
            if cell not in still and self.inputs_there(cell, at) and self._fair(cell, at)
        )

    def _still_needed(self, at: Mapping[str, int]) -> set[str]:
        """Cells whose newest round somebody's next round is made from."""
        needed = set()
        for cell in self._program.cells:
            following = self.next_round(cell, at)
            if following:
                for one in self._program.inputs(cell, following):
                    if one.round == at[one.cell]:
                        needed.add(one.cell)
        return needed

    def _fair(self, cell: str, at: Mapping[str, int]) -> bool:
        return not self._program.leased(cell) or all(
            at[other] >= at[cell] for other in self._alike(cell) if self.next_round(other, at)
        )

    def _alike(self, cell: str) -> Iterator[str]:
        kind = kind_of(cell)
        return (one for one in self._program.cells if kind_of(one) == kind)


def kind_of(cell: str) -> str:
    """ "path" of "path/3"."""
    return cell.partition("/")[0]
