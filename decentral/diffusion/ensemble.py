"""Experts and router of a run, in this process: what a peer serves, and what is evaluated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from decentral.dataflow.program import Arrays
from decentral.diffusion import clusters, routing
from decentral.diffusion.flat import Flat
from decentral.diffusion.program import CLUSTERS, ROUTER, DiffusionProgram
from decentral.diffusion.sampling import Experts
from decentral.diffusion.seeds import numpy_random, seed_of
from decentral.diffusion.space import Pixels, Principal, Space, principal_features
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.diffusion.sampling import Classes
    from decentral.types import Array

CHUNK = 1024
"""Samples of one pass through a network: what a core's cache holds."""


class Ensemble:
    """From committed states of a program's cells: `clusters`, and what `held` names.

    A peer that serves some experts has only their states; asked for another it raises a KeyError.
    """

    def __init__(
        self,
        program: DiffusionProgram,
        states: Mapping[str, Arrays],
        *,
        temperature: float = 1.0,
        device: str = "cpu",
    ) -> None:
        """`temperature`: what the router's logits are divided by (see `calibration.py`)."""
        config, images = program.config, program.images
        self.program = program
        self.temperature = temperature
        self._device = device
        self._clusters = states[CLUSTERS]
        self.space: Space = (
            Principal(images.shape, self._clusters) if config.latent else Pixels(images.shape)
        )
        self._experts: dict[int, Flat] = {}
        for k, cell in enumerate(program.experts):
            if cell in states:
                self._experts[k] = Flat(lambda: config.build_expert(images), device)
                self._experts[k].load(states[cell]["ema"])
        self._router: Flat | None = None
        if ROUTER in states:
            self._router = Flat(lambda: config.build_router(images), device)
            self._router.load(states[ROUTER]["ema"])
        labels = images.labels if config.conditional else None
        self.prior = routing.counted(
            self._clusters["assignment"], labels, config.experts, images.classes
        )

    @property
    def held(self) -> Collection[int]:
        """Experts that are here."""
        return self._experts.keys()

    def experts(self) -> Experts:
        """For `sample`."""
        return Experts(velocity=self.velocity, route=self.route, prior=self.prior)

    def velocity(self, k: int, x: Array, t: Array, classes: Classes | None) -> Array:
        """u_k: x [n, dim], t [n], classes [n] or None (then of the null class) → [n, dim]"""
        return self._run(self._experts[k], x, t, classes)

    def route(self, x: Array, t: Array, classes: Classes | None) -> Array:
        """p(k | x, t, class): [n, experts]"""
        logits = self.logits(x, t, classes) / np.float32(self.temperature)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def logits(self, x: Array, t: Array, classes: Classes | None) -> Array:
        """The router's, before the temperature: [n, experts]"""
        if self._router is None:
            if self.program.config.experts == 1:
                return np.zeros((len(x), 1), dtype=np.float32)
            raise KeyError(ROUTER)
        return self._run(self._router, x, t, classes)

    def clusters_of(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Of images [n, h, w] that the run has not seen. At random where the clusters are; a
        ConfigError where they were made of features that were given."""
        config = self.program.config
        if config.clusters == "random":
            random = numpy_random("held out", self.program.seed)
            return random.integers(config.experts, size=len(images)).astype(np.uint8)
        if not self.program.own_features:
            raise ConfigError("the clusters are of features that only their encoder can tell")
        features = principal_features(images, self.program.images.shape, self._clusters)
        return clusters.assign(features, self._clusters["centroids"], self._clusters["coarse"])

    @torch.inference_mode()
    def _run(self, flat: Flat, x: Array, t: Array, classes: Classes | None) -> Array:
        out = []
        for start in range(0, len(x), CHUNK):
            some = slice(start, start + CHUNK)
            given = [np.ascontiguousarray(x[some]), np.ascontiguousarray(t[some])]
            tensors = [torch.from_numpy(one).to(self._device) for one in given]
            labels = None if classes is None else torch.from_numpy(classes[some]).to(self._device)
            out.append(flat.network(*tensors, labels).cpu().numpy())
        return np.concatenate(out) if out else np.zeros_like(x)


def noise(n: int, dim: int, seed: int) -> Array:
    """What samples begin as: standard normal, [n, dim] fp32."""
    random = np.random.Generator(np.random.Philox(seed_of("noise", seed)))
    return random.standard_normal((n, dim), dtype=np.float32)
