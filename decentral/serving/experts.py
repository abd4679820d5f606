"""Diffusion's experts, from parts of committed states.

    expert/2  ema ─▶ a network ─▶ u_2(x, t, class)

As in `paths.py`, the network is built once, and copied for every expert.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from decentral.diffusion.ensemble import CHUNK
from decentral.diffusion.flat import Flat
from decentral.diffusion.program import DiffusionProgram
from decentral.diffusion.sampling import Experts, How, sample
from decentral.serving.cache import Cache
from decentral.serving.parts import Part, Parts, Version

if TYPE_CHECKING:
    from decentral.serving.messages import Classes
    from decentral.types import Array

LIMIT_BYTES = 1 << 30
SERVED = "ema"
"""The average over training, which is what samples are made with."""


class Networks:
    """Of one program. Thread-safe. Make it before anything is trained in this process."""

    def __init__(self, program: DiffusionProgram, parts: Parts) -> None:
        self.program, self.parts = program, parts
        self.dim = program.config.dim(program.images)
        self.classes = program.images.classes if program.config.conditional else 0
        torch.set_num_threads(1)  # as in training: for equal bits
        with torch.random.fork_rng(devices=[]):
            self._skeleton = program.config.build_expert(program.images).eval()
        self._networks: Cache[Version, Flat] = Cache(LIMIT_BYTES, lambda flat: flat.param.nbytes)

    @property
    def weights_bytes(self) -> int:
        """Of one expert."""
        return sum(4 * one.numel() for one in self._skeleton.parameters())

    def here(self, version: Version) -> bool:
        """Whether the expert can be asked without the network."""
        return version in self._networks or self.parts.here(Part(version, SERVED))

    def fetch(self, version: Version) -> None:
        """Have the expert here. StateError as below."""
        self._networks.get(version, lambda: self._filled(version))

    def velocity(self, version: Version, x: Array, t: Array, classes: Classes | None) -> Array:
        """u of one expert: x [n, dim], t [n], classes [n] or None → [n, dim].

        StateError: its weights are not to be had any more."""
        flat = self._networks.get(version, lambda: self._filled(version))
        return _through(flat.network, x, t, classes)

    def solve(self, version: Version, x: Array, classes: Classes | None, how: How) -> Array:
        """Samples that are one expert's all the way (`sticky`): x [n, dim] at t = 1 → at t = 0."""
        experts = self.program.experts
        alone = Experts(
            velocity=lambda _, x, t, classes: self.velocity(version, x, t, classes),
            route=_unasked,
            prior=np.ones((max(1, self.classes), len(experts)), np.float32),
        )
        others = frozenset(k for k, cell in enumerate(experts) if cell != version.cell)
        return sample(alone, x, classes, replace(how, way="sticky", dead=others))

    def untrained(self, x: Array, t: Array, classes: Classes | None) -> Array:
        """What a pass takes here, where only that matters."""
        return _through(self._skeleton, x, t, classes)

    def _filled(self, version: Version) -> Flat:
        weights = self.parts.get(Part(version, SERVED))[SERVED]
        flat = Flat(lambda: copy.deepcopy(self._skeleton))
        flat.load(weights)
        return flat


def _unasked(x: Array, t: Array, classes: Classes | None) -> Array:
    raise AssertionError("sticky samples ask no router")


@torch.inference_mode()
def _through(network: torch.nn.Module, x: Array, t: Array, classes: Classes | None) -> Array:
    out = torch.empty(x.shape)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        labels = None if classes is None else torch.tensor(classes[rows])
        out[rows] = network(torch.tensor(x[rows]), torch.tensor(t[rows]), labels)
    array: Array = out.numpy()
    return array
