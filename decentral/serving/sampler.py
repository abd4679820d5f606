"""Images through a run's experts, wherever they are; the router is always here.

    noise ─▶ one step: every expert that is asked, all at once ─▶ next step ─▶ … ─▶ images
                 remote   x_t and t go to a peer that keeps the expert, velocities come back
                 local    its weights come here once, and it is run here
                 auto     whichever takes less by what is measured first

A *sticky* sample is one expert's from noise to image. So a peer takes all of its steps in one call,
and images from peers cost one round trip.

An expert that a peer has failed to answer for is asked of its other keepers. Where there is none,
its share of the mixture is masked, and the rest renormalized (`diffusion/sampling.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays
from decentral.diffusion.ensemble import CHUNK, Ensemble, noise
from decentral.diffusion.program import CLUSTERS, ROUTER, DiffusionProgram
from decentral.diffusion.routing import drawn, without
from decentral.diffusion.sampling import ExpertLostError, Experts, How, check, sample
from decentral.errors import CallError, ConfigError, ProtocolError, StateError
from decentral.peer.views_log import LogState
from decentral.serving.experts import SERVED, Networks
from decentral.serving.keepers import Asked
from decentral.serving.messages import (
    DENOISE,
    SOLVE,
    SolveRequest,
    VelocityRequest,
    floats,
    rows_at_once,
)
from decentral.serving.parts import Part, Parts, Version

if TYPE_CHECKING:
    from decentral.serving.messages import Classes
    from decentral.types import Array

WAYS = ("auto", "local", "remote")
CALL_S, SOLVE_S = 20.0, 60.0
LONG_S = 2.0
"""Where peers would take longer, one expert's weights are fetched to see how long they take."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What has come of it."""

    images: NDArray[np.uint8]
    """[n, height, width]"""
    way: str
    """"local" or "remote"."""
    lost: tuple[int, ...]
    """Experts that nobody answered for."""
    seconds: float


class Sampler:
    """Somebody's who follows a run."""

    def __init__(
        self,
        program: DiffusionProgram,
        parts: Parts,
        keepers: Asked,
        log: Callable[[], LogState],
        *,
        way: str = "auto",
        warn: Callable[[str], None] = lambda says: None,
    ) -> None:
        """StateError where the run has not come so far that there is something to sample."""
        if way not in WAYS:
            raise ConfigError(f"experts are {', '.join(WAYS)}, not {way!r}")
        self.program, self.networks = program, Networks(program, parts)
        self._parts, self._keepers, self._log, self._warn = parts, keepers, log, warn
        self._way = way
        self._lost: set[int] = set()
        pinned = log()
        self._versions = [self._trained(pinned, cell) for cell in program.experts]
        self._ensemble = Ensemble(program, self._near(pinned))

    def _trained(self, log: LogState, cell: str) -> Version:
        version = Version.newest(log, cell)
        if not version.round:
            raise StateError(f"{cell} has not been trained yet", phase="serve")
        return version

    def _near(self, log: LogState) -> dict[str, Arrays]:
        """What is always local: clusters (for priors, and for pictures) and the router."""
        cells = [(CLUSTERS, "assignment")]
        if self.program.config.latent:
            cells.append((CLUSTERS, "space/"))
        if ROUTER in self.program.cells:
            cells.append((ROUTER, SERVED))
        parts = [Part(self._trained(log, cell), prefix) for cell, prefix in cells]
        states: dict[str, dict[str, NDArray[np.generic]]] = {}
        for part, tensors in zip(parts, self._parts.gather(parts), strict=True):
            states.setdefault(part.version.cell, {}).update(tensors)
        return {**states}

    # ------------------------------------------------------------------ samples

    def sample(self, n: int, classes: Classes | None, how: How, *, seed: int = 0) -> Sampled:
        """`n` images; `classes` int64 [n], or None where the run knows none."""
        began = time.monotonic()
        self._lost.clear()
        with ThreadPoolExecutor(len(self._versions), "decentral experts") as pool:
            experts = Experts(
                velocity=self._local, route=self._ensemble.route, prior=self._ensemble.prior
            )
            check(experts, classes, how)
            way = self._way if self._way != "auto" else self._cheaper(n, classes, how, pool)
            x = noise(n, self.networks.dim, seed)
            if way == "local":
                x = sample(experts, x, classes, how, pool=pool)
            elif how.way == "sticky":
                x = self._solved(x, classes, how, pool)
            else:
                x = sample(replace(experts, velocity=self._remote), x, classes, how, pool=pool)
        images = self._ensemble.space.decode(x)
        return Sampled(images, way, tuple(sorted(self._lost)), time.monotonic() - began)

    def _solved(self, x: Array, classes: Classes | None, how: How, pool: Executor) -> Array:
        """Sticky samples by peers. Those of an expert that is lost draw another, as in `sample`."""
        prior = self._ensemble.prior[np.zeros(len(x), np.int64) if classes is None else classes]
        dead = set(how.dead)
        chosen = drawn(without(prior, dead), how.seed)
        while True:
            asked = [(k, np.flatnonzero(chosen == k)) for k in range(len(self._versions))]
            asked = [(k, rows) for k, rows in asked if len(rows)]
            some = [None if classes is None else classes[rows] for _, rows in asked]
            out = np.empty_like(x)
            try:
                answers = pool.map(
                    lambda ask, c: self._carried(ask[0], x[ask[1]], c, how), asked, some
                )
                for (_, rows), answer in zip(asked, answers, strict=True):
                    out[rows] = answer
                return out
            except ExpertLostError as lost:
                dead.add(lost.expert)
                again = drawn(without(prior, dead), how.seed)
                chosen = np.where(chosen == lost.expert, again, chosen)

    def _carried(self, k: int, x: Array, classes: Classes | None, how: How) -> Array:
        size, out = rows_at_once(self.networks.dim, how.steps), np.empty_like(x)
        size -= size % CHUNK if size > CHUNK else 0  # passes as they would be here: equal bits
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            some = None if classes is None else classes[rows]
            out[rows] = self._now(k, partial(self._asked_all, x=x[rows], classes=some, how=how))
        return out

    def _asked_all(self, version: Version, x: Array, classes: Classes | None, how: How) -> Array:
        request = SolveRequest(
            version=version,
            x=x,
            classes=classes,
            steps=how.steps,
            solver=how.solver,
            guidance=how.guidance,
        )
        answer = self._keepers.ask(version.cell, SOLVE, request.pack(), SOLVE_S)
        return floats("the answer", answer, x.shape)

    def _remote(self, k: int, x: Array, t: Array, classes: Classes | None) -> Array:
        size, out = rows_at_once(self.networks.dim), np.empty_like(x)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            some = None if classes is None else classes[rows]
            out[rows] = self._now(k, partial(self._asked, x=x[rows], t=t[rows], classes=some))
        return out

    def _local(self, k: int, x: Array, t: Array, classes: Classes | None) -> Array:
        return self._now(k, partial(self.networks.velocity, x=x, t=t, classes=classes))

    def _asked(self, version: Version, x: Array, t: Array, classes: Classes | None) -> Array:
        request = VelocityRequest(version=version, x=x, t=t, classes=classes)
        answer = self._keepers.ask(version.cell, DENOISE, request.pack(), CALL_S)
        return floats("the answer", answer, x.shape)

    def _now(self, k: int, ask: Callable[[Version], Array]) -> Array:
        """Of the expert as it was when sampling began; of its newest round once that is gone."""
        while True:
            version = self._versions[k]
            try:
                return ask(version)
            except (CallError, ProtocolError, StateError) as error:
                newest = Version.newest(self._log(), version.cell)
                if newest == version:
                    self._lost.add(k)
                    self._warn(f"{version.cell} is lost, samples go on without it: {error.says}")
                    raise ExpertLostError(k, error.says) from error
                self._versions[k] = newest

    # ------------------------------------------------------------------ local or remote

    def _cheaper(self, n: int, classes: Classes | None, how: How, pool: Executor) -> str:
        """By measured time: a step through peers, a pass here, and how fast weights came so far."""
        if all(map(self.networks.here, self._versions)):
            return "local"
        shares = self._shares(n, classes, how)
        began = time.monotonic()
        try:
            list(pool.map(lambda share: self._remote(*share), shares))
        except ExpertLostError:
            self._lost.clear()
            return "remote"  # sampling finds out what is left
        remote_s = time.monotonic() - began
        began = time.monotonic()
        for _, x, t, some in shares:
            self.networks.untrained(x, t, some)
        local_s = time.monotonic() - began
        passes = how.steps * (2 if how.solver == "heun" else 1)
        calls = 1 if how.way == "sticky" else passes
        by_peers_s = calls * remote_s + (passes - calls) * local_s
        here_s = self._fetch_s(by_peers_s) + passes * local_s
        return "remote" if by_peers_s <= here_s else "local"

    def _fetch_s(self, by_peers_s: float) -> float:
        """How long the weights that are missing would take."""
        missing = [one for one in self._versions if not self.networks.here(one)]
        if by_peers_s <= LONG_S:  # an estimate from small parts: rather too long
            rate = self._parts.fetched_bytes / max(1e-6, self._parts.fetching_s)
            return len(missing) * self.networks.weights_bytes / max(1.0, rate)
        began = time.monotonic()
        try:
            self.networks.fetch(missing[0])
        except StateError:
            return math.inf
        return (len(missing) - 1) * (time.monotonic() - began)

    def _shares(
        self, n: int, classes: Classes | None, how: How
    ) -> Sequence[tuple[int, Array, Array, Classes | None]]:
        """About what the experts are asked in one step."""
        experts = len(self._versions)
        asked = {"full": experts, "threshold": experts, "top-2": min(2, experts)}.get(how.way, 1)
        rows = max(1, n * asked // experts) * (2 if how.guidance != 1 else 1)
        x = np.zeros((rows, self.networks.dim), np.float32)
        t = np.ones(rows, np.float32)
        some = None if classes is None else np.resize(classes, rows)
        return [(k, x, t, some) for k in range(experts)]
