"""DiPaCo's paths and router, put together from parts of committed states.

    path/2   private ─┐
    module/0/1  theta ─┼─▶ one flat buffer ─▶ a model of a path's size        (Split's order)
    module/1/0  theta ─┘
    router   route/… ─────────────────────▶ contexts ─▶ paths, best first

The model's skeleton is built once, when a `Paths` is made: building draws from torch's own random
numbers, which are training's once it runs. Every path's model is a copy of it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from decentral.dataflow.program import Arrays
from decentral.dipaco import router
from decentral.dipaco.features import pairs, pooled
from decentral.dipaco.flat import FlatModel
from decentral.dipaco.inner import derived, seeded
from decentral.dipaco.path_round import ROUTER
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.router import ROUTE, Featurize
from decentral.dipaco.split import PRIVATE
from decentral.errors import ConfigError, StateError
from decentral.peer.views_log import LogState
from decentral.serving.cache import Cache
from decentral.serving.parts import Part, Parts, Version
from decentral.serving.text import vocabulary_of

if TYPE_CHECKING:
    from decentral.types import Array

LIMIT_BYTES = 1 << 30
"""Of models that are kept put together."""
LEAST = 2
"""Bytes of a context that can be routed: a router sees pairs."""


class Paths:
    """Of one program. Thread-safe. Make it before anything is trained in this process."""

    def __init__(self, program: DiPaCo, parts: Parts) -> None:
        self.program, self.parts = program, parts
        torch.set_num_threads(program.torch_threads)  # what training does, too: for equal bits
        with seeded(derived(program.seed, "model")):
            self._skeleton = program.model().eval()
        self.vocabulary = vocabulary_of(self._skeleton)
        self.room = program.documents.length - 1
        """Bytes that a model has learnt to look back on."""
        self._models: Cache[tuple[Version, ...], FlatModel] = Cache(LIMIT_BYTES, _size_of)
        self._routers: Cache[Version, Featurize] = Cache(LIMIT_BYTES, lambda _: 0)
        first = (path for path in program.split.grid.paths if path.replica == 0)
        self._cells = tuple(path.cell for path in first)

    # ------------------------------------------------------------------ models

    def needs(self, cell: str) -> tuple[tuple[str, str], ...]:
        """(cell, prefix) of all that a path's model is made of."""
        if self.program.early_stopping:
            return ((cell, "best"),)
        own = ((cell, PRIVATE),) if self.program.split.private is not None else ()
        return (*own, *((one.cell, "theta") for one in self.program.paths[cell].modules))

    def versions(self, cell: str, log: LogState) -> tuple[Version, ...]:
        """The newest of what `needs` names. StateError before there is anything."""
        found = tuple(Version.newest(log, one) for one, _ in self.needs(cell))
        if not all(one.round for one in found):
            raise StateError(f"{cell} has not been trained yet", phase="serve")
        return found

    def here(self, cell: str, versions: tuple[Version, ...]) -> bool:
        """Whether its model is here, or all of its parts are."""
        return versions in self._models or all(map(self.parts.here, self._parts(cell, versions)))

    def model(self, cell: str, versions: tuple[Version, ...]) -> nn.Module:
        """To be used only for inference. StateError: parts are not to be had any more."""
        return self._models.get(versions, lambda: self._put_together(cell, versions)).model

    def _put_together(self, cell: str, versions: tuple[Version, ...]) -> FlatModel:
        gathered = self.parts.gather(self._parts(cell, versions))
        states = {v.cell: one for v, one in zip(versions, gathered, strict=True)}
        return self._filled(self.program.serving(cell, {cell: {}, **states}))

    def _parts(self, cell: str, versions: tuple[Version, ...]) -> list[Part]:
        needs = self.needs(cell)
        return [Part(v, prefix) for v, (_, prefix) in zip(versions, needs, strict=True)]

    def _filled(self, theta: Array) -> FlatModel:
        model = FlatModel(copy.deepcopy(self._skeleton), self.program.split).load(theta)
        for parameter in model.model.parameters():
            parameter.requires_grad_(False).grad = None
        model.flat.grad = None
        return model

    # ------------------------------------------------------------------ the router

    def check(self, context: bytes) -> None:
        """ConfigError for what no model of this run can read."""
        if len(context) < LEAST:
            raise ConfigError(f"a prompt has at least {LEAST} bytes, by which it is routed")
        unknown = next((one for one in context if one >= self.vocabulary), None)
        if unknown is not None:
            says = f"these models know bytes below {self.vocabulary}: not {bytes([unknown])!r}"
            raise ConfigError(says)

    def ranked(self, context: bytes, log: LogState) -> tuple[str, ...]:
        """All paths, the best for this context first. StateError before there is a router."""
        version = Version.newest(log, ROUTER)
        if not version.round:
            raise StateError("there is no router yet", phase="serve")
        route = self.parts.get(Part(version, ROUTE))
        featurize = self._routers.get(version, lambda: self._featurizer(route))
        ids = np.frombuffer(context[-self.room :], np.uint8)[None]
        scores = router.score(route, featurize(ids))[0]
        return tuple(self._cells[one] for one in np.argsort(-scores, kind="stable"))

    def _featurizer(self, route: Arrays) -> Featurize:
        """As `DiPaCo.featurizer`, which builds a model."""
        routing = self.program.routing
        if routing.features == "lm":
            return pooled(self._filled(route[ROUTE + "lm"]).model, routing.lm_module)
        return lambda ids: pairs(ids, routing.size)


def _size_of(model: FlatModel) -> int:
    return model.theta.nbytes
