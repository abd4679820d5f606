"""A diffusion run as a `Program`: what is trained where, and what needs what.

    clusters ── round 1 ─┬─▶ expert/0 ── round 1 ─▶ … ─▶ round R      each leased to a peer,
                         ├─▶ expert/1 ── round 1 ─▶ … ─▶ round R      each for itself
                         └─▶ router   ── round 1 ─▶ … ─▶ round R

    with several peers per expert:      expert/0 ── r ─┬─▶ part/0.0 ── r + 1 ─┬─▶ expert/0 ── r + 1
                                                       └─▶ part/0.1 ── r + 1 ─┘

    and then, if wanted:      all experts ── R ─▶ student ── round 1 ─▶ …      one dense model

An expert's only inputs are the clusters and its own parts: isolation is the graph's shape, not a
promise. Parts are leased; their expert is then a short outer step (DiLoCo inside the expert).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from decentral.dataflow.program import Arrays, Computed, Input, Program
from decentral.dataflow.progress import kind_of
from decentral.diffusion import clusters, outer, space
from decentral.diffusion.config import Config
from decentral.diffusion.flat import initial
from decentral.diffusion.images import Images
from decentral.diffusion.rounds import Task, expert_round, router_round, student_round
from decentral.diffusion.seeds import numpy_random, seed_of
from decentral.diffusion.space import principal_features
from decentral.diffusion.training import one_thread
from decentral.errors import ConfigError
from decentral.types import TensorSpec

if TYPE_CHECKING:
    from decentral.types import Array

VERSION = 3
"""Raise it with any change that makes old and new peers compute differently."""

CLUSTERS, ROUTER, STUDENT = "clusters", "router", "student"


class DiffusionProgram(Program):
    """Of `images`. `features` [n, f] fp32, where given, are clustered instead of components."""

    def __init__(
        self,
        images: Images,
        config: Config,
        seed: int,
        *,
        features: Array | None = None,
        device: str = "cpu",
    ) -> None:
        if features is not None and len(features) != len(images.train):
            raise ConfigError(f"{len(features)} features for {len(images.train)} images")
        if config.fine > len(images.train):
            raise ConfigError(f"{config.fine} fine centroids for {len(images.train)} images")
        if 1 < config.experts > config.fine:
            raise ConfigError(f"{config.fine} fine centroids for {config.experts} clusters")
        if config.latent > images.shape[0] * images.shape[1]:
            raise ConfigError(f"{config.latent} components of images with fewer pixels")
        self.images, self.config, self.seed = images, config, seed
        self._features = features
        self._device = device
        self._kept: tuple[bytes, Task] | None = None
        self._schemas: dict[str, tuple[TensorSpec, ...]] = {}

    # ------------------------------------------------------------------ the graph

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(f"expert/{k}" for k in range(self.config.experts))

    @property
    def cells(self) -> tuple[str, ...]:
        router = (ROUTER,) if self.config.experts > 1 else ()
        parts = tuple(part for expert in self.experts for part in self._parts(expert))
        student = (STUDENT,) if self.config.student_rounds else ()
        return (CLUSTERS, *router, *self.experts, *parts, *student)

    @property
    def own_features(self) -> bool:
        """Whether clusters are made of components, and so can be told for any image."""
        return self._features is None

    @property
    def fingerprint(self) -> bytes:
        features = b"" if self._features is None else np.ascontiguousarray(self._features).data
        facts = {
            "program": f"diffusion {VERSION}",
            "config": self.config.facts(),
            "images": self.images.digest,
            "features": hashlib.sha256(features).hexdigest(),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()

    def leased(self, cell: str) -> bool:
        return cell != CLUSTERS and not self._is_outer(cell)

    def rounds(self, cell: str) -> int:
        if cell == STUDENT:
            return self.config.student_rounds
        return 1 if cell == CLUSTERS else self.config.rounds

    def inputs(self, cell: str, round: int) -> tuple[Input, ...]:
        if cell == CLUSTERS:
            return ()
        if cell == STUDENT:
            last = self.config.rounds
            return (Input(CLUSTERS, 1), *(Input(one, last, "ema") for one in self.experts))
        if kind_of(cell) == "part":
            expert = f"expert/{cluster_of(cell)}"
            return (Input(CLUSTERS, 1), Input(expert, round - 1, "param"))
        if self._is_outer(cell):
            return tuple(Input(part, round, "param") for part in self._parts(cell))
        return (Input(CLUSTERS, 1),)

    def _is_outer(self, cell: str) -> bool:
        return kind_of(cell) == "expert" and self.config.peers > 1

    def _parts(self, expert: str) -> tuple[str, ...]:
        if self.config.peers == 1:
            return ()
        return tuple(f"part/{cluster_of(expert)}.{i}" for i in range(self.config.peers))

    # ------------------------------------------------------------------ states

    def schema(self, cell: str) -> tuple[TensorSpec, ...]:
        kind = kind_of(cell)
        if kind not in self._schemas:
            floats = self._clusters_shapes() if cell == CLUSTERS else self._shapes(cell)
            specs = [TensorSpec(name=n, dtype="float32", shape=s) for n, s in floats.items()]
            if cell == CLUSTERS:
                for name, n in (("assignment", len(self.images.train)), ("coarse", self._fine)):
                    specs.append(TensorSpec(name=name, dtype="uint8", shape=(n,)))
            self._schemas[kind] = tuple(sorted(specs, key=lambda spec: spec.name))
        return self._schemas[kind]

    def _clusters_shapes(self) -> dict[str, tuple[int, ...]]:
        pixels = self.images.shape[0] * self.images.shape[1]
        dim = self._components
        width = dim if self._features is None else self._features.shape[1]
        return {
            "centroids": (self._fine, width),
            "space/basis": (dim, pixels),
            "space/mean": (pixels,),
            "space/scale": (dim,),
        }

    def _shapes(self, cell: str) -> dict[str, tuple[int, ...]]:
        return {name: one.shape for name, one in self.initial(cell).items()}

    @property
    def _components(self) -> int:
        """Components that are found: those that the flow lives in, or at most 64."""
        return self.config.latent or min(64, self.images.shape[0] * self.images.shape[1])

    @property
    def _fine(self) -> int:
        return self.config.fine if self.config.experts > 1 else 1

    def initial(self, cell: str) -> Arrays:
        if cell == CLUSTERS:
            return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.schema(cell)}
        if cell == ROUTER:
            return initial(lambda: self.config.build_router(self.images), self.seed)
        state = initial(lambda: self.config.build_expert(self.images), self.seed)
        if self._is_outer(cell):
            return outer.initial(state)
        if kind_of(cell) == "part":
            del state["ema"]
        return state

    # ------------------------------------------------------------------ rounds

    def compute(
        self,
        cell: str,
        round: int,
        before: Arrays,
        inputs: Sequence[Arrays],
        beat: Callable[[], None],
    ) -> Computed:
        with one_thread():
            if cell == CLUSTERS:
                return Computed(tensors=self._cluster(beat))
            if cell == ROUTER:
                return router_round(self._task(inputs[0]), round, before, beat)
            if cell == STUDENT:
                teachers = [one["ema"] for one in inputs[1:]]
                return student_round(self._task(inputs[0]), round, before, teachers, beat)
            if self._is_outer(cell):
                params = [one["param"] for one in inputs]
                return Computed(tensors=outer.step(before, params, self.config, round))
            if kind_of(cell) == "part":
                before = {**before, "param": inputs[1]["param"]}
            return expert_round(self._task(inputs[0]), cell, round, before, beat)

    def _cluster(self, beat: Callable[[], None]) -> Arrays:
        fitted = space.fit(self.images.train, self._components, beat=beat)
        if self.config.clusters == "random":
            places = numpy_random("clusters", self.seed).permutation(len(self.images.train))
            assignment = (places % self.config.experts).astype(np.uint8)
            return {**self.initial(CLUSTERS), **fitted, "assignment": assignment}
        features = self._features
        if features is None:
            features = principal_features(self.images.train, self.images.shape, fitted)
        found = clusters.cluster(
            np.ascontiguousarray(features, dtype=np.float32),
            self.config.experts,
            fine=self._fine,
            seed=seed_of("clusters", self.seed),
            beat=beat,
        )
        return {**fitted, **found}

    def _task(self, clustered: Arrays) -> Task:
        """The same in every round, so it is kept."""
        sha = hashlib.sha256()
        for name in sorted(clustered):
            sha.update(np.ascontiguousarray(clustered[name]).data)
        if self._kept is None or self._kept[0] != sha.digest():
            task = Task.of(self.images, self.config, self.seed, clustered, self._device)
            self._kept = (sha.digest(), task)
        return self._kept[1]


def cluster_of(cell: str) -> int:
    """3 of "expert/3" and of "part/3.1"."""
    return int(cell.partition("/")[2].partition(".")[0])
