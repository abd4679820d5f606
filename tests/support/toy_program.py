"""A program small enough to think through: a grid of paths through modules, whose "training" is a
few multiplications. Wrong inputs, a wrong order or a lost round change every number after it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decentral.dataflow.program import Arrays, Computed, Input, specs_of
from decentral.types import TensorSpec

WIDTH = 1000


class Toy:
    """`size` × `size` paths; path/ij goes through row/i and column/j."""

    def __init__(self, size: int = 2, last: int = 3, step_s: float = 0.0, steps: int = 3) -> None:
        self.size, self.last, self.step_s, self.steps = size, last, step_s, steps
        each = range(size)
        self.paths = tuple(f"path/{i}{j}" for i in each for j in each)
        self.modules = (*(f"row/{i}" for i in each), *(f"column/{j}" for j in each))

    @property
    def cells(self) -> tuple[str, ...]:
        return (*self.paths, *self.modules)

    @property
    def fingerprint(self) -> bytes:
        return hashlib.sha256(f"toy {self.size} {self.last} {self.steps}".encode()).digest()

    def leased(self, cell: str) -> bool:
        return cell in self.paths

    def rounds(self, cell: str) -> int:
        return self.last

    def through(self, module: str) -> tuple[str, ...]:
        place = 0 if module.startswith("row") else 1
        return tuple(p for p in self.paths if p.split("/")[1][place] == module.split("/")[1])

    def inputs(self, cell: str, round: int) -> tuple[Input, ...]:
        if self.leased(cell):
            i, j = cell.split("/")[1]
            return tuple(
                Input(f"{kind}", round - 1, "theta") for kind in (f"row/{i}", f"column/{j}")
            )
        return tuple(Input(path, round, f"delta/{cell}") for path in self.through(cell))

    def schema(self, cell: str) -> tuple[TensorSpec, ...]:
        return specs_of(self.initial(cell))

    def initial(self, cell: str) -> Arrays:
        rng = np.random.default_rng(sum(cell.encode()))
        if not self.leased(cell):
            return {
                "theta": rng.random(WIDTH, dtype=np.float32),
                "momentum": np.zeros(WIDTH, dtype=np.float32),
            }
        mine = [need.cell for need in self.inputs(cell, 1)]
        return {
            "private": rng.random(WIDTH, dtype=np.float32),
            "odd": np.zeros(7, dtype=np.uint8),
            **{f"delta/{one}": np.zeros(WIDTH, dtype=np.float32) for one in mine},
        }

    def compute(
        self,
        cell: str,
        round: int,
        before: Arrays,
        inputs: Sequence[Arrays],
        beat: Callable[[], None],
    ) -> Computed:
        if not self.leased(cell):
            mean = sum((one[f"delta/{cell}"] for one in inputs), np.zeros(WIDTH, np.float32))
            momentum = (np.float32(0.9) * before["momentum"] + mean).astype(np.float32)
            theta = (before["theta"] - np.float32(0.1) * momentum).astype(np.float32)
            return Computed(tensors={"theta": theta, "momentum": momentum})
        private = before["private"].copy()
        thetas = [one["theta"].copy() for one in inputs]
        for step in range(self.steps):
            beat()
            if self.step_s:
                time.sleep(self.step_s)
            rng = np.random.default_rng([sum(cell.encode()), round, step])
            private = np.tanh(private + thetas[0] * rng.random(WIDTH, dtype=np.float32))
            thetas = [np.tanh(one + np.float32(0.1) * private) for one in thetas]
        names = [need.cell for need in self.inputs(cell, round)]
        deltas: dict[str, Any] = {
            f"delta/{name}": given["theta"] - after
            for name, given, after in zip(names, inputs, thetas, strict=True)
        }
        odd = np.frombuffer(hashlib.sha256(private.tobytes()).digest()[:7], dtype=np.uint8)
        return Computed(
            tensors={"private": private, "odd": odd.copy(), **deltas},
            tokens=self.steps,
            loss=float(private.mean()),
        )
