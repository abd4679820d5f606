"""One row and seed of ``decentral bench diffusion``: trained (or found), sampled, measured."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import tensor_file
from decentral.bench.diffusion_rows import Row, named
from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays, Computed, specs_of
from decentral.dataflow.progress import kind_of
from decentral.diffusion import grid, metrics
from decentral.diffusion.calibration import calibrate
from decentral.diffusion.classifier import Classifier
from decentral.diffusion.config import Config
from decentral.diffusion.cost import router_share, training_flops
from decentral.diffusion.ensemble import Ensemble, noise
from decentral.diffusion.evaluation import validation_losses
from decentral.diffusion.images import Images
from decentral.diffusion.program import CLUSTERS, STUDENT, DiffusionProgram
from decentral.diffusion.sampling import How, sample
from decentral.diffusion.space import Pixels, Principal, Space, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

GRID = 10
"""Rows and columns of the pictures that are kept; a column is a class."""


@dataclass(kw_only=True)
class Trial:
    """`folder` keeps states and pictures; what it holds is not made again."""

    images: Images
    base: Config
    steps: int
    samples: int
    folder: Path
    solver_steps: int = 50

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ results

    def measure(self, row: Row, seed: int) -> dict[str, Any]:
        """Losses and distances of one row and seed."""
        if row.of:
            return self._dead(row, seed) if row.dead else self._distilled(row, seed)
        program = self.program(row, seed)
        states, seconds = self.trained(row, seed)
        ensemble = Ensemble(program, states)
        held_out = self._held_out()
        return {
            **self._cost(program, seconds),
            "losses": validation_losses(ensemble, self.images.test[held_out:],
                                        self.images.test_labels[held_out:]),
            "calibration": asdict(calibrate(ensemble, self.images.test[:held_out],
                                            self.images.test_labels[:held_out]))
            if row.experts > 1 else None,
            "ways": {way: self.distances(ensemble, How(way=way), f"{row.name}-{seed}-{way}")
                     for way in row.ways},
            "cluster_sizes": np.bincount(
                states[CLUSTERS]["assignment"], minlength=row.experts).tolist(),
        }  # fmt: skip

    def _distilled(self, row: Row, seed: int) -> dict[str, Any]:
        """The student's own program has the teachers' cells; they are trained already."""
        taught = named(row.of)
        program = self.program(taught, seed)
        plain = program.config
        config = replace(plain, student_rounds=plain.rounds, student_batch=plain.batch // 4)
        program = DiffusionProgram(self.images, config, seed)
        states, _ = self.trained(taught, seed)
        inputs = [states[CLUSTERS], *({"ema": states[cell]["ema"]} for cell in program.experts)]
        student: Arrays = program.initial(STUDENT)
        begun = time.thread_time()
        for round in range(1, config.student_rounds + 1):
            student = program.compute(STUDENT, round, student, inputs, _nothing).tensors
        seconds = {STUDENT: time.thread_time() - begun}
        alone = DiffusionProgram(self.images, replace(plain, experts=1), seed)
        ensemble = Ensemble(alone, {CLUSTERS: _one_cluster(states[CLUSTERS]), "expert/0": student})
        held_out = self._held_out()
        test, labels = self.images.test[held_out:], self.images.test_labels[held_out:]
        return {
            **self._cost(program, seconds),
            "losses": validation_losses(ensemble, test, labels, ("full",)),
            "ways": {"sticky": self.distances(ensemble, How(), f"{row.name}-{seed}")},
        }

    def _dead(self, row: Row, seed: int) -> dict[str, Any]:
        taught = named(row.of)
        states, _ = self.trained(taught, seed)
        ensemble = Ensemble(self.program(taught, seed), states)
        return {
            "ways": {
                f"{way}, without {k}": self.distances(
                    ensemble, How(way=way, dead=frozenset({k})), f"{row.name}-{seed}-{way}-{k}"
                )
                for way in row.ways
                for k in range(taught.experts)
            }
        }

    # ------------------------------------------------------------------ training

    def program(self, row: Row, seed: int) -> DiffusionProgram:
        return DiffusionProgram(self.images, row.config(self.base, self.images, self.steps), seed)

    def trained(self, row: Row, seed: int) -> tuple[dict[str, Arrays], dict[str, float]]:
        """Last states of all cells, and the CPU seconds that each cell took."""
        program = self.program(row, seed)
        folder = self.folder / f"{row.name}-{seed}-{program.fingerprint.hex()[:12]}"
        files = {cell: f"{cell.replace('/', '-')}.safetensors" for cell in program.cells}
        if folder.exists():
            kept: dict[str, Arrays] = {
                cell: tensor_file.read(folder / file, program.schema(cell))
                for cell, file in files.items()
            }
            return kept, json.loads((folder / "seconds.json").read_text())
        seconds = dict.fromkeys(program.cells, 0.0)
        last = time.thread_time()

        def on_round(cell: str, _: int, __: Computed) -> None:
            nonlocal last
            seconds[cell] += time.thread_time() - last
            last = time.thread_time()

        states = dict(run_alone(program, on_round=on_round))
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(exist_ok=True)
        (partial / "seconds.json").write_text(json.dumps(seconds))
        for cell, name in files.items():
            with (partial / name).open("wb") as file:
                tensor_file.write(file, states[cell])
        partial.rename(folder)
        return states, seconds

    def _cost(self, program: DiffusionProgram, seconds: dict[str, float]) -> dict[str, Any]:
        by_kind: dict[str, float] = {}
        for cell, spent in seconds.items():
            by_kind[kind_of(cell)] = max(by_kind.get(kind_of(cell), 0.0), spent)
        return {
            "training_flops": training_flops(program),
            "router_share": router_share(program),
            "inner_steps": program.config.rounds * program.config.steps,
            "longest_cell_cpu_s": by_kind,
        }

    # ------------------------------------------------------------------ distances

    def distances(self, ensemble: Ensemble, how: How, name: str) -> dict[str, float]:
        """FID, KID, precision and recall of samples from fixed noise; keeps a picture of some."""
        how = replace(how, steps=self.solver_steps)
        classes = np.arange(self.samples) % self.images.classes
        begun = time.thread_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # top-1 without classes: its collapse is measured
            x = sample(
                ensemble.experts(),
                noise(self.samples, ensemble.program.config.dim(self.images), 0),
                classes if ensemble.program.config.conditional else None,
                how,
            )
        seconds = time.thread_time() - begun
        made = ensemble.space.decode(x)
        grid.write(self.folder / f"{name.replace(' ', '')}.png", made[: GRID * GRID], GRID)
        return {**self._compare(made), "sampling_cpu_s": seconds}

    def floor(self) -> dict[str, float]:
        """The same of training images that only went into the flow's space and back."""
        return self._compare(self._there_and_back(self.images.train[: self.samples]))

    def _compare(self, made: NDArray[np.uint8]) -> dict[str, float]:
        real, features = self._real, self.classifier.features(made)
        pixels = self.classifier.features(self.images.test)
        precision, recall = metrics.precision_recall(real, features)
        return {
            "fid": metrics.fid(real, features),
            "fid_pixels": metrics.fid(pixels, features),
            "kid": metrics.kid(real, features),
            "precision": precision,
            "recall": recall,
        }

    @cached_property
    def classifier(self) -> Classifier:
        path = self.folder / f"classifier-{self.images.digest[:12]}.safetensors"
        made = Classifier(self.images)
        if path.exists():
            made.load(tensor_file.read(path, specs_of(made.tensors())))
            return made
        made = Classifier.trained(self.images)
        with path.open("wb") as file:
            tensor_file.write(file, made.tensors())
        return made

    @cached_property
    def _real(self) -> Array:
        """Of test images as the flow's space shows them: what it loses is no expert's fault."""
        return self.classifier.features(self._there_and_back(self.images.test))

    def _there_and_back(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self._space.decode(self._space.encode(images))

    @cached_property
    def _space(self) -> Space:
        if not self.base.latent:
            return Pixels(self.images.shape)
        return Principal(self.images.shape, fit(self.images.train, self.base.latent))

    def _held_out(self) -> int:
        """So many of the test images are for calibration, the others for validation."""
        return len(self.images.test) // 5


def _one_cluster(clustered: Arrays) -> Arrays:
    zeros = {name: np.zeros_like(clustered[name]) for name in ("assignment", "coarse")}
    return {**clustered, **zeros}


def _nothing() -> None:
    pass
