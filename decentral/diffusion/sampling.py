"""From noise to images, through whichever experts there are, near or far.

    x ← noise;  t: 1 ─▶ 0 in `steps`:    x ← x + (t' − t) · Σ_k w_k(x, t) u_k(x, t)

All samples that ask an expert in one step ask it in one call, and experts are asked at the same
time, so that a step through peers costs one round trip.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from decentral.diffusion import routing
from decentral.errors import ConfigError, DecentralError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.types import Array

    Classes: TypeAlias = "NDArray[np.int64]"

SOLVERS = ("euler", "heun")


class ExpertLostError(DecentralError):
    """No peer answers for an expert any more: sampling goes on without it."""

    def __init__(self, expert: int, says: str = "") -> None:
        super().__init__(says or f"expert {expert} is lost", phase="sampling")
        self.expert = expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """What a sampler asks. `t` is always [n], classes are [n] int64 or None."""

    velocity: Callable[[int, Array, Array, Classes | None], Array]
    """(k, x [n, dim], t, classes) → u_k [n, dim]; raises an ExpertLostError. May be called from
    several threads."""
    route: Callable[[Array, Array, Classes | None], Array]
    """(x, t, classes) → p(k | x, t, class) [n, experts]"""
    prior: Array
    """p(k | class) as counted: [classes, experts]; one row where nothing is conditional."""

    @property
    def conditional(self) -> bool:
        return len(self.prior) > 1

    @property
    def null(self) -> int:
        """The number of the null class."""
        return len(self.prior)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Ways to sample."""

    way: str = "sticky"
    """One of `routing.WAYS`."""
    solver: str = "euler"
    """"euler"; "heun" asks twice per step and errs by the square of its length."""
    steps: int = 50
    guidance: float = 1.0
    """w: every expert's velocity is u(∅) + w (u(class) − u(∅)). 1: none. Sticky is exact without
    it only: guidance changes the mixture that the prior was counted for."""
    dead: frozenset[int] = frozenset()
    """Experts that are not asked."""
    seed: int = 0
    """Of sticky's draw."""

    def __post_init__(self) -> None:
        if self.way not in routing.WAYS:
            raise ConfigError(f"way is one of {', '.join(routing.WAYS)}, not {self.way!r}")
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver is one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if self.steps < 1:
            raise ConfigError(f"steps is at least 1, not {self.steps!r}")


def sample(
    experts: Experts,
    noise: Array,
    classes: Classes | None = None,
    how: How | None = None,
    *,
    pool: Executor | None = None,
) -> Array:
    """x at t = 0, [n, dim], from noise [n, dim] and classes [n].

    With a `pool`, the experts of one step are asked at the same time. An expert that is lost on
    the way is masked from there on; its sticky samples draw another. A ConfigError where that was
    the last one, or where classes and experts do not fit.
    """
    how = how or How()
    check(experts, classes, how)
    field = _Field(experts, classes, len(noise), how, pool)
    x = np.array(noise, dtype=np.float32)
    for t, after in pairwise(np.linspace(1, 0, how.steps + 1, dtype=np.float32)):
        u = field.at(x, t)
        if how.solver == "heun":
            u = (u + field.at(x + (after - t) * u, after)) * np.float32(0.5)
        x += (after - t) * u
    return x


def check(experts: Experts, classes: Classes | None, how: How) -> None:
    """A ConfigError where these do not fit together; a warning where they had better not."""
    if (classes is not None) != experts.conditional:
        wanted = "are conditional: give classes" if experts.conditional else "know no classes"
        raise ConfigError(f"these experts {wanted}", phase="sampling")
    if classes is not None and not ((classes >= 0) & (classes < experts.null)).all():
        raise ConfigError(f"classes are 0 to {experts.null - 1}", phase="sampling")
    if how.guidance != 1 and classes is None:
        raise ConfigError("guidance needs classes", phase="sampling")
    if says := routing.caution(how.way, conditional=experts.conditional):
        warnings.warn(says, stacklevel=3)


class _Field:
    """The mixture's velocity for one batch of samples."""

    def __init__(
        self,
        experts: Experts,
        classes: Classes | None,
        samples: int,
        how: How,
        pool: Executor | None,
    ) -> None:
        self._experts = experts
        self._classes = classes
        self._how = how
        self._map: Callable[..., Any] = pool.map if pool is not None else map
        self._dead = set(how.dead)
        rows = classes if classes is not None else np.zeros(samples, dtype=np.int64)
        self._prior = experts.prior[rows]
        self._drawn = routing.drawn(routing.without(self._prior, self._dead), how.seed)

    def at(self, x: Array, t: np.float32) -> Array:
        while True:
            try:
                return self._mixed(x, np.full(len(x), t, dtype=np.float32))
            except ExpertLostError as lost:
                self._dead.add(lost.expert)
                again = routing.drawn(routing.without(self._prior, self._dead), self._how.seed)
                self._drawn = np.where(self._drawn == lost.expert, again, self._drawn)

    def _mixed(self, x: Array, t: Array) -> Array:
        weights = self._weights(x, t)
        asked = [(k, np.flatnonzero(weights[:, k])) for k in range(weights.shape[1])]
        asked = [(k, rows) for k, rows in asked if len(rows)]
        out = np.zeros_like(x)
        answers = self._map(lambda ask: self._one(ask[0], x[ask[1]], t[ask[1]], ask[1]), asked)
        for (k, rows), velocity in zip(asked, answers, strict=True):
            out[rows] += weights[rows, k : k + 1] * velocity
        return out

    def _weights(self, x: Array, t: Array) -> Array:
        experts = self._prior.shape[1]
        if self._how.way == "sticky" or experts == 1:
            return np.eye(experts, dtype=np.float32)[self._drawn]
        p = self._experts.route(x, t, self._classes)
        return routing.weights(routing.without(p, self._dead), self._how.way)

    def _one(self, k: int, x: Array, t: Array, rows: NDArray[np.intp]) -> Array:
        ask = self._experts.velocity
        if self._classes is None:
            return ask(k, x, t, None)
        classes, w = self._classes[rows], self._how.guidance
        if w == 1:
            return ask(k, x, t, classes)
        null = np.full_like(classes, self._experts.null)
        both = ask(k, np.tile(x, (2, 1)), np.tile(t, 2), np.concatenate([classes, null]))
        with_class, without = both[: len(x)], both[len(x) :]
        return without + np.float32(w) * (with_class - without)
