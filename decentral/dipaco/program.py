"""DiPaCo as a program: cells whose rounds are pure functions (`decentral.dataflow`).

    base            leased   the dense model that all paths start from, a few rounds of pretraining
    router                   k-means, then classifiers fitted from the paths' scores
    path/<id>       leased   H inner steps from its modules' newest round; then Δ for each of them
    module/<l>/<k>           the outer step of its paths' Δ

Private parameters and inner moments are in a path's state: never averaged, but copied with it to
its second holder. DiPaCo, Douillard et al. 2024 (arXiv 2403.10616).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from decentral.dataflow.program import Arrays, Computed, Input
from decentral.dipaco import router
from decentral.dipaco.documents import Documents
from decentral.dipaco.features import pairs, pooled
from decentral.dipaco.flat import FlatModel
from decentral.dipaco.grid import Module, Path
from decentral.dipaco.inner import Inner, derived, seeded
from decentral.dipaco.outer import Outer
from decentral.dipaco.path_round import (
    BASE,
    EXP_AVG,
    EXP_AVG_SQ,
    ROUTER,
    path_round,
    pretraining_round,
)
from decentral.dipaco.phases import Phases
from decentral.dipaco.router import SHARDS, Featurize, Routing
from decentral.dipaco.split import PRIVATE, Group, Split
from decentral.errors import ConfigError
from decentral.state import aligned_zeros
from decentral.strategies.outer import whole
from decentral.types import TensorSpec

if TYPE_CHECKING:
    from decentral.types import Array

VERSION = "dipaco/1"
"""Raised with any change that gives other results."""


@dataclass(frozen=True, kw_only=True)
class DiPaCo:
    """Everything that a run's results depend on. Options are validated when it is made."""

    model: Callable[[], nn.Module]
    """Builds a path's model, fp32: logits [B, T, V] for ids [B, T]. Seeded by the program."""
    split: Split
    documents: Documents
    phases: int = 10
    inner: Inner = field(default_factory=Inner)
    outer: Outer = field(default_factory=Outer)
    routing: Routing = field(default_factory=Routing)
    pretraining: int = 0
    """Rounds of H inner steps that the base makes before all paths start from it."""
    reroute_after: Sequence[int] = ()
    """Phases after which the paths score the reserved documents and the router is fitted anew;
    training goes on with the new shards. The last phase: for serving only."""
    early_stopping: bool = False
    """Each path serves the parameters of the phase with its lowest validation loss."""
    validation_documents: int = 64
    """Of its shard, that a path validates itself on in each round: the first ones."""
    start: Arrays | None = None
    """The base's state, instead of a pretraining: what another run of this class ended with."""
    start_steps: int = 0
    """Inner steps that `start` has seen: the learning rate's clock."""
    name: str = ""
    """Of the recipe, with its version: what `model` builds beyond shapes."""
    seed: int = 0
    torch_threads: int = 1
    """Of every round's computation: other numbers give other bits."""

    def __post_init__(self) -> None:
        whole("pretraining", self.pretraining, 0)
        whole("validation_documents", self.validation_documents, 0)
        whole("torch_threads", self.torch_threads, 1)
        if self.start is not None and self.pretraining:
            raise ConfigError("a run has a start or a pretraining of its own, not both")
        if self.routing.prefix >= self.documents.length:
            raise ConfigError(
                f"a prefix of {self.routing.prefix} tokens leaves nothing of documents of "
                f"{self.documents.length} to judge"
            )
        assert self.plan and self.schema(ROUTER)  # their own checks

    # ------------------------------------------------------------------ what there is

    @cached_property
    def plan(self) -> Phases:
        return Phases(self.phases, tuple(self.reroute_after))

    @cached_property
    def paths(self) -> dict[str, Path]:
        return {path.cell: path for path in self.split.grid.paths}

    @cached_property
    def modules(self) -> dict[str, Module]:
        return {module.cell: module for module in self.split.grid.modules}

    @cached_property
    def cells(self) -> tuple[str, ...]:
        return (BASE, ROUTER, *self.modules, *self.paths)

    @cached_property
    def fingerprint(self) -> bytes:
        hashed = hashlib.sha256()
        facts = [VERSION, self.name, self.plan, self.inner, self.outer, self.routing]
        facts += [self.pretraining, self.early_stopping, self.validation_documents, self.seed]
        facts += [self.torch_threads, self.documents.digest, self.start_steps]
        facts += self.split.facts()
        for fact in facts:
            hashed.update(f"{fact!r}\n".encode())
        for name, array in sorted((self.start or {}).items()):
            hashed.update(name.encode() + array.tobytes())
        return hashed.digest()

    def leased(self, cell: str) -> bool:
        return cell == BASE or cell in self.paths

    def rounds(self, cell: str) -> int:
        if cell == BASE:
            return self.pretraining
        if cell == ROUTER:
            return self.plan.router_rounds
        return self.plan.module_rounds if cell in self.modules else len(self.plan.path)

    def inputs(self, cell: str, round: int) -> tuple[Input, ...]:
        if cell == BASE:
            return ()
        if cell == ROUTER:
            if round > 1:
                at = self.plan.labelling_round(round)
                return tuple(Input(one, at, "scores") for one in self._first_replicas)
            return (self._base("theta/"),) if self._lm else ()
        if cell in self.modules:
            module = self.modules[cell]
            if round == 1:
                return (self._base(f"theta/{module.level}"),)
            at = self.plan.training_round(round - 1)
            prefix = self.outer.prefix(module.level)
            through = self.split.grid.through(module)
            return tuple(Input(path.cell, at, prefix) for path in through)
        doing, path = self.plan.path[round - 1], self.paths[cell]
        needs = [Input(ROUTER, doing.router_round, SHARDS)]
        needs += [Input(one.cell, doing.module_round, "theta") for one in path.modules]
        if round == 1:
            needs.append(self._base("adam/"))
            needs += [self._base(f"theta/{PRIVATE}")] if self.split.private else []
        return tuple(needs)

    def schema(self, cell: str) -> tuple[TensorSpec, ...]:
        if cell == BASE:
            specs = [*_floats(self.split.groups, "theta/"), *self._moments]
        elif cell == ROUTER:
            lm = self.split.size if self._lm else 0
            features, size = self.routing, self.split.grid.size
            specs = [*router.schema(features, size, self._feature_size, lm, self.documents)]
        elif cell in self.modules:
            size = self.split.levels[self.modules[cell].level].size
            specs = [_float("theta", size), _float("momentum", size)]
        else:
            specs = [*self._moments, _float("scores", len(self.documents.reserved))]
            specs.append(_float("validation", 2))
            if self.split.private is not None:
                specs.append(_float(PRIVATE, self.split.private.size))
            if self.early_stopping:
                specs.append(_float("best", self.split.size))
            for level, group in enumerate(self.split.levels):
                specs += self.outer.packed_schema(level, group.size)
        return tuple(sorted(specs, key=lambda spec: spec.name))

    def initial(self, cell: str) -> Arrays:
        if cell == BASE:
            return self._initial_base if self.start is None else self.start
        zeros: dict[str, NDArray[Any]] = {
            spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.schema(cell)
        }
        if cell in self.paths:
            zeros["validation"][:] = np.finfo(np.float32).max
        return zeros

    # ------------------------------------------------------------------ what a round does

    def compute(
        self,
        cell: str,
        round: int,
        before: Arrays,
        inputs: Sequence[Arrays],
        beat: Callable[[], None],
    ) -> Computed:
        torch.set_num_threads(self.torch_threads)
        if cell == BASE:
            return pretraining_round(self, round, before, beat)
        if cell == ROUTER:
            return Computed(tensors=self._route(round, before, inputs, beat))
        if cell in self.modules:
            level = self.modules[cell].level
            if round == 1:
                return Computed(tensors=self.outer.found(inputs[0][f"theta/{level}"]))
            return Computed(tensors=self.outer.step(before, level, inputs))
        return path_round(self, self.paths[cell], round, before, inputs, beat)

    def _route(
        self, round: int, before: Arrays, inputs: Sequence[Arrays], beat: Callable[[], None]
    ) -> Arrays:
        lm = {name: one for name, one in before.items() if name == router.ROUTE + "lm"}
        if self._lm and round == 1:
            base = [inputs[0][f"theta/{group.name}"] for group in self.split.groups]
            lm = {"route/lm": self.joined(base)}
        featurize, known = self.featurizer(lm, beat), self.documents
        if round == 1:
            alternatives = self.split.grid.alternatives
            seed = derived(self.seed, ROUTER)
            made = router.generative(self.routing, alternatives, known, featurize, seed, beat)
        else:
            scores = np.stack([one["scores"] for one in inputs])
            made = router.discriminative(self.routing, known, featurize, scores, beat)
        return {**made, **lm}

    # ------------------------------------------------------------------ what others ask for

    def build(self) -> FlatModel:
        """A path's model, as the program's seed makes it."""
        with seeded(derived(self.seed, "model")):
            return FlatModel(self.model(), self.split)

    def featurizer(self, route: Arrays, beat: Callable[[], None] = lambda: None) -> Featurize:
        """What turns contexts into the features that `route` (a router's state) wants."""
        if self._lm:
            model = self.build().load(route["route/lm"])
            return pooled(model.model, self.routing.lm_module, beat)
        return lambda ids: pairs(ids, self.routing.size)

    def shard(self, path: Path, shards: Arrays) -> NDArray[np.int64]:
        """Which training documents a path has; replicas share its shard out."""
        mine = np.flatnonzero((shards[SHARDS + "train"] == path.id).any(0))
        return mine[path.replica :: self.split.grid.replicas]

    def serving(self, cell: str, states: dict[str, Arrays]) -> Array:
        """The parameters (float32 [split.size]) that a path serves with at the run's end."""
        own = states[cell]
        if self.early_stopping:
            return np.asarray(own["best"])
        return self.joined([states[one.cell]["theta"] for one in self.paths[cell].modules], own)

    @property
    def first_step(self) -> int:
        """Inner steps before the first phase."""
        return self.start_steps + self.pretraining * self.inner.steps

    @property
    def total_steps(self) -> int:
        return self.first_step + self.phases * self.inner.steps

    def joined(self, shared: Sequence[Array], own: Arrays | None = None) -> Array:
        """One flat buffer of a path's modules and, from its state, its private part."""
        theta, at = aligned_zeros(self.split.size), 0
        for part in [*shared, *([own[PRIVATE]] if own is not None and PRIVATE in own else [])]:
            theta[at : at + part.size] = part
            at += part.size
        return theta

    @property
    def tokens_per_round(self) -> int:
        return self.inner.steps * self.inner.batch_size * self.documents.length

    # ------------------------------------------------------------------ details

    @property
    def _lm(self) -> bool:
        return self.routing.features == "lm"

    @cached_property
    def _feature_size(self) -> int:
        if not self._lm:
            return self.routing.size
        featurize = pooled(self.build().model, self.routing.lm_module)
        return int(featurize(self.documents.train[:1, :2]).shape[1])

    @property
    def _first_replicas(self) -> tuple[str, ...]:
        """Who scores: replicas differ in what is private only."""
        return tuple(path.cell for path in self.split.grid.paths if path.replica == 0)

    @property
    def _moments(self) -> tuple[TensorSpec, TensorSpec]:
        return _float(EXP_AVG, self.split.size), _float(EXP_AVG_SQ, self.split.size)

    @cached_property
    def _initial_base(self) -> Arrays:
        theta = self.build().theta
        tensors: dict[str, NDArray[Any]] = {
            f"theta/{group.name}": theta[group.where].copy() for group in self.split.groups
        }
        for name in (EXP_AVG, EXP_AVG_SQ):
            tensors[name] = np.zeros(self.split.size, np.float32)
        return tensors

    def _base(self, prefix: str) -> Input:
        return Input(BASE, self.pretraining, prefix)


def _float(name: str, size: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(size,))


def _floats(groups: Sequence[Group], prefix: str) -> list[TensorSpec]:
    return [_float(prefix + group.name, group.size) for group in groups]
