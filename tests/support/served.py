"""A finished run in one process, and peers that keep its cells: what serving sees of a mesh."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np

from decentral.dataflow.alone import run_alone
from decentral.dataflow.handover import seal
from decentral.dataflow.program import Program
from decentral.errors import CallError, StateError
from decentral.types import CommittedState


class Served:
    """A `Reader` and an `Asked` at once. `handler` is a peer's; `dead`: cells nobody keeps."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.states: dict[str, CommittedState] = {}
        for cell, tensors in run_alone(program).items():
            copies = {name: np.array(one) for name, one in tensors.items()}
            self.states[cell] = seal(copies, program.rounds(cell))
        self.handler: Callable[[str, bytes], bytes] | None = None
        self.dead: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.read_cells: list[tuple[str, str]] = []

    def fresh(self) -> Served:
        """The same run, of which nobody has asked anything yet."""
        other = copy.copy(self)
        other.states, other.dead, other.asked, other.read_cells = dict(self.states), set(), [], []
        return other

    def read(
        self, tag: str, round: int, root: bytes, prefix: str = "", *, timeout_s: float = 1
    ) -> Future[dict[str, Any]]:
        self.read_cells.append((tag, prefix))
        future: Future[dict[str, Any]] = Future()
        state = self.states[tag]
        if tag in self.dead or state.root != root:
            future.set_exception(StateError(f"nobody has {tag}", phase="state transfer"))
        else:
            here = state.tensors.items()
            future.set_result({name: one for name, one in here if name.startswith(prefix)})
        return future

    def log(self) -> Any:
        states = dict(self.states)
        return SimpleNamespace(
            scope=lambda cell: SimpleNamespace(round=states[cell].round, root=states[cell].root)
        )

    def ask(self, cell: str, method: str, body: bytes, timeout_s: float) -> bytes:
        self.asked.append((cell, method))
        if cell in self.dead or self.handler is None:
            raise CallError(f"nobody keeps {cell}", phase="connect")
        try:
            return self.handler("peer:caller", body)
        except Exception as error:
            raise CallError(str(error), phase="handler") from error

    def advance(self, cell: str) -> None:
        """A newer round, whose state is a little different; the one before is nowhere any more."""
        state = self.states[cell]
        tensors = {
            name: one * np.float32(1.01) if one.dtype == np.float32 else one.copy()
            for name, one in state.tensors.items()
        }
        self.states[cell] = seal(tensors, state.round + 1)
