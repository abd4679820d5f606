"""What ``decentral demo diffusion`` says of the experts that its peers have trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays
from decentral.diffusion import grid
from decentral.diffusion.ensemble import Ensemble, noise
from decentral.diffusion.evaluation import validation_losses
from decentral.diffusion.program import DiffusionProgram
from decentral.diffusion.sampling import How, sample

SAMPLES_PER_CLASS = 6


def judge(
    program: DiffusionProgram,
    states: dict[str, Arrays],
    baselines: bool,
    beat: Callable[[str], object],
) -> dict[str, Any]:
    """Validation losses per way of routing, and some samples."""
    ensemble = Ensemble(program, states)
    held_out = program.images.test, program.images.test_labels
    losses = validation_losses(ensemble, *held_out)
    result: dict[str, Any] = {f"four experts, {way}": value for way, value in losses.items()}
    if baselines:
        whole = DiffusionProgram(program.images, replace(program.config, experts=1), program.seed)
        final = dict(run_alone(whole, on_round=lambda cell, round, done: beat(cell)))
        result["one model, same steps, four times an expert's batch"] = validation_losses(
            Ensemble(whole, final), *held_out
        )["full"]
    classes = np.repeat(np.arange(program.images.classes), SAMPLES_PER_CLASS)
    start = noise(len(classes), program.config.dim(program.images), program.seed)
    how = How(way="sticky", seed=program.seed)
    drawn = sample(ensemble.experts(), start, classes, how)
    return {"validation loss": result, "images": ensemble.space.decode(drawn)}


def show(found: dict[str, Any], folder: Path | None, console: Console) -> None:
    table = Table(title="validation flow-matching loss")
    table.add_column("run")
    table.add_column("loss", justify="right")
    for name, value in found["validation loss"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    picture = (folder or Path.cwd()) / "samples.png"
    grid.write(picture, found["images"], SAMPLES_PER_CLASS)
    console.print(f"samples, a row per class, one expert each (sticky): {picture}")
