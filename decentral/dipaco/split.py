"""Model surgery: which parameters of an ordinary module are shared, and by whom.

    split(model, levels=[2, 2], private=["wte", "wpe", "norm", "head"])

    wte, wpe │ blocks.0  blocks.1 │ blocks.2  blocks.3 │ norm, head        a model as it is written
             └─ level 0: 2 ways ──┘─ level 1: 2 ways ──┘                   modules
    private ─────────────────────────────────────────── private            each path's own

The model stays what it is, of a path's size. A `Split` only says where its parameters belong, so
a peer builds one path and never the whole network. Parameters lie in one flat fp32 buffer,

    | level 0 … | level 1 … | private … |

every tensor on a 64-byte boundary (`decentral.state.Layout`), so that what a module or a path
sends is one array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from decentral.dipaco.grid import Grid
from decentral.errors import ConfigError
from decentral.state import TRAINABLE, Layout

LevelLike: TypeAlias = "int | tuple[int, Sequence[str]]"
PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that belong together: a level's, or the private ones."""

    name: str
    """ "0", "1", … for levels, or "private"."""
    layout: Layout
    offset: int
    """Of its part of the flat buffer."""

    @property
    def size(self) -> int:
        return self.layout.total

    @property
    def where(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class Split:
    """Where each parameter of a path belongs."""

    grid: Grid
    levels: tuple[Group, ...]
    private: Group | None
    """None: everything is shared."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.levels if self.private is None else (*self.levels, self.private)

    @property
    def size(self) -> int:
        """Values in a path's flat buffer."""
        return sum(group.size for group in self.groups)

    @property
    def shared(self) -> slice:
        """The part of the buffer that modules own."""
        return slice(0, sum(group.size for group in self.levels))

    @property
    def parameters(self) -> int:
        """Of one path, without padding."""
        return sum(slot.size for group in self.groups for slot in group.layout.slots)

    @property
    def all_parameters(self) -> int:
        """Of all modules and all private parts together."""
        count = {g.name: sum(slot.size for slot in g.layout.slots) for g in self.groups}
        levels = zip(self.levels, self.grid.alternatives, strict=True)
        shared = sum(count[group.name] * alternatives for group, alternatives in levels)
        return shared + count.get(PRIVATE, 0) * len(self.grid.paths)

    def facts(self) -> Iterator[str]:
        """What a fingerprint covers."""
        yield repr(self.grid)
        for group in self.groups:
            for slot in group.layout.slots:
                yield f"{group.name}: {slot.name} {slot.shape}"


def split(
    model: nn.Module,
    levels: Sequence[LevelLike],
    private: Sequence[str] = (),
    shared: Sequence[str] = (),
    replicas: int = 1,
) -> Split:
    """Say which submodules of `model` form each level, and what each path keeps to itself.

    `levels`: per level the number of alternatives and the names of its submodules (or tensors),
    ``(2, ["blocks.0", "blocks.1"])``; or only numbers, ``[2, 2]``: the model's one
    ``nn.ModuleList`` is then cut into as many equal runs of blocks. `shared`: names that all paths
    train together, a level with one alternative. `replicas`: workers per path.

    Every trainable parameter belongs to exactly one level, to `shared` or to `private`; else a
    ConfigError names those that do not. Frozen parameters stay as the model is built.
    """
    counted = _with_names(model, levels)
    if shared:
        counted.append((1, shared))
    if not counted:
        raise ConfigError("a split has at least one level, or something shared", phase="split")
    homes = _homes(model, [*(names for _, names in counted), private])
    groups: list[Group] = []
    offset = 0
    for number, name in enumerate([*map(str, range(len(counted))), PRIVATE]):
        tensors = [
            (tensor, TRAINABLE, tuple(parameter.shape))
            for tensor, parameter in model.named_parameters()
            if homes.get(tensor) == number
        ]
        if not tensors:
            if name == PRIVATE:
                break
            raise ConfigError(f"level {name} has no trainable parameter", phase="split")
        groups.append(Group(name, Layout.of(tensors), offset))
        offset += groups[-1].size
    own = groups.pop() if groups[-1].name == PRIVATE else None
    return Split(Grid(tuple(count for count, _ in counted), replicas), tuple(groups), own)


def _with_names(model: nn.Module, levels: Sequence[LevelLike]) -> list[tuple[int, Sequence[str]]]:
    named = [level for level in levels if not isinstance(level, int)]
    if named and len(named) != len(levels):
        raise ConfigError("give names for every level, or for none", phase="split")
    if named:
        for count, names in named:
            if isinstance(names, str) or not isinstance(count, int):
                raise ConfigError(
                    "a level is (number of alternatives, [names of submodules]), not "
                    f"{(count, names)!r}",
                    phase="split",
                )
        return list(named)
    trunks = [
        (name, len(part)) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)
    ]
    if levels and len(trunks) != 1:
        raise ConfigError(
            f"the model has {len(trunks)} nn.ModuleLists "
            f"({', '.join(name for name, _ in trunks) or 'no trunk to cut'}): name the submodules "
            'of each level, as in levels=[(2, ["blocks.0", "blocks.1"]), …]',
            phase="split",
        )
    numbers = [level for level in levels if isinstance(level, int)]
    if not numbers:
        return []
    trunk, blocks = trunks[0]
    if len(numbers) > blocks:
        raise ConfigError(f"{trunk} has {blocks} blocks, too few for {len(numbers)} levels")
    ends = [round(blocks * level / len(numbers)) for level in range(len(numbers) + 1)]
    return [
        (count, [f"{trunk}.{block}" for block in range(ends[level], ends[level + 1])])
        for level, count in enumerate(numbers)
    ]


def _homes(model: nn.Module, wanted: Sequence[Sequence[str]]) -> dict[str, int]:
    """Of every trainable tensor (by its first name), the number of the group it belongs to."""
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = [
        (name, canonical[id(parameter)])
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    ]
    homes: dict[str, int] = {}
    said: dict[str, str] = {}
    for number, names in enumerate(wanted):
        for wish in names:
            matching = [pair for pair in tensors if _within(pair[0], wish)]
            if not matching:
                raise ConfigError(
                    f"the model has no trainable tensor or submodule {wish!r}", phase="split"
                )
            for name, first in matching:
                if homes.setdefault(first, number) != number:
                    tied = "" if name == first else f", which is tied to {first},"
                    raise ConfigError(
                        f"{name}{tied} is in two groups: by {said[first]!r} and by {wish!r}",
                        phase="split",
                    )
                said.setdefault(first, wish)
    left = [first for name, first in tensors if name == first and first not in homes]
    if left:
        raise ConfigError(
            f"{_some(left)} belong to no level and are neither shared nor private: name them in "
            "one of the three",
            phase="split",
        )
    _no_statistics(model)
    return homes


def _no_statistics(model: nn.Module) -> None:
    persistent = model.state_dict().keys()
    found = [
        name
        for name, one in model.named_buffers()
        if name in persistent and one.is_floating_point()
    ]
    if found:
        raise ConfigError(
            f"{_some(found)} are buffers that training may change, and a path carries parameters "
            "only: use a normalization without running statistics, or register the buffer with "
            "persistent=False if it is constant",
            phase="split",
        )


def _within(name: str, wish: str) -> bool:
    return name == wish or name.startswith(f"{wish}.")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more
