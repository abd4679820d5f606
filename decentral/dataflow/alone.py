"""A whole program in one process: what the mesh must come to, bit for bit.

`random`: rounds that may be computed are taken in any order; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from decentral.dataflow.program import Arrays, Computed, Program, check
from decentral.dataflow.progress import Progress
from decentral.errors import ConfigError


def run_alone(
    program: Program,
    *,
    random: Random | None = None,
    on_round: Callable[[str, int, Computed], Any] = lambda cell, round, computed: None,
) -> Mapping[str, Arrays]:
    """The last round of every cell. `on_round` hears of each one, in the order of computation.

    Raises a ConfigError where the program contradicts itself: a round that nobody can compute.
    """
    progress = Progress(program)
    at = dict.fromkeys(program.cells, 0)
    states: dict[str, Arrays] = {cell: program.initial(cell) for cell in program.cells}
    for cell, state in states.items():
        check(program, cell, state)
    while not progress.finished(at):
        ready = progress.ready(at)
        if not ready:
            raise ConfigError(f"the program stands still: no cell can go on from {at}")
        cell = random.choice(ready) if random is not None else ready[0]
        inputs = [
            {name: one for name, one in states[need.cell].items() if name.startswith(need.prefix)}
            for need in program.inputs(cell, at[cell] + 1)
        ]
        computed = program.compute(cell, at[cell] + 1, states[cell], inputs, lambda: None)
        check(program, cell, computed.tensors)
        at[cell] += 1
        states[cell] = computed.tensors
        on_round(cell, at[cell], computed)
    return states
