"""Which paths run through which modules. Nothing here knows what is trained.

    levels      0        1              Grid((2, 2)): four paths, four modules
    path/0    0/0 ──── 1/0
    path/1    0/0 ──── 1/1              module/0/0 is trained by path/0 and path/1,
    path/2    0/1 ──── 1/0              module/1/0 by path/0 and path/2
    path/3    0/1 ──── 1/1

Grid((K,)) is a flat mixture of K experts; Grid((1,), replicas=n) is DiLoCo with n peers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from decentral.errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class Module:
    """One of the alternatives of a level."""

    level: int
    index: int

    @property
    def cell(self) -> str:
        return f"module/{self.level}/{self.index}"


@dataclass(frozen=True, slots=True, order=True)
class Path:
    """One alternative of every level. Replicas of a path share all modules, not their samples."""

    id: int
    replica: int
    choice: tuple[int, ...]
    """The module's index at each level."""
    cell: str

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(Module(level, index) for level, index in enumerate(self.choice))


@dataclass(frozen=True, slots=True)
class Grid:
    """The product of the levels' alternatives."""

    alternatives: tuple[int, ...]
    """K_l: how many modules each level has. 1: all paths share it."""
    replicas: int = 1
    """Workers per path, each with a share of the path's samples."""

    def __post_init__(self) -> None:
        if not self.alternatives or min(self.alternatives) < 1:
            raise ConfigError(f"each level has at least one alternative, not {self.alternatives}")
        if self.replicas < 1:
            raise ConfigError(f"a path has at least one replica, not {self.replicas}")

    @property
    def size(self) -> int:
        """P: the number of different paths."""
        return math.prod(self.alternatives)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path and replica, in the order in which sums are taken."""
        return tuple(
            Path(id, replica, self.choice(id), self._cell(id, replica))
            for id in range(self.size)
            for replica in range(self.replicas)
        )

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(
            Module(level, index)
            for level, count in enumerate(self.alternatives)
            for index in range(count)
        )

    def choice(self, id: int) -> tuple[int, ...]:
        """The path's module at each level; the last level varies fastest."""
        indices = []
        for count in reversed(self.alternatives):
            id, index = divmod(id, count)
            indices.append(index)
        return tuple(reversed(indices))

    def through(self, module: Module) -> tuple[Path, ...]:
        """The paths that train a module, in the order of `paths`."""
        return tuple(path for path in self.paths if path.choice[module.level] == module.index)

    def _cell(self, id: int, replica: int) -> str:
        return f"path/{id}.{replica}" if self.replicas > 1 else f"path/{id}"
