"""Programs of a few multiplications, for peers as separate processes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from toy_program import Toy

from decentral.recipes import ProgramRecipe

LAST = 20
STEP_S = 0.06


def recipe() -> ProgramRecipe:
    """2 × 2 paths, 20 rounds of about 0.2 s each."""
    return ProgramRecipe(name="toy", build=lambda seed: Toy(last=LAST, step_s=STEP_S))


def wide() -> ProgramRecipe:
    """4 × 4 paths: more than peers."""
    return ProgramRecipe(name="wide", build=lambda seed: Toy(size=4, last=4, step_s=0.02))


def other() -> ProgramRecipe:
    """Another program with the same cells."""
    return ProgramRecipe(name="other", build=lambda seed: Toy(last=LAST, steps=4))
