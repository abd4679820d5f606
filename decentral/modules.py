"""Which parts of a model have rounds of their own, and which of them this peer trains.

    run's tags     a        b        c          one log, one membership
    peer 1         embed    left                trains embed + left, commits a and b
    peer 2         embed             right      trains embed + right, commits a and c

A module commits among those who hold it. Its tensors have the same names on all of them; those of
different modules may have equal names (two peers' "block.1" under two tags). What of a model is in
no module is a peer's own: it is trained, and never exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.compute import Tensors
from decentral.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Modules:
    """Validated when made."""

    tags: tuple[str, ...]
    """All of the run's, the same in the same order on all peers."""
    held: Mapping[str, Tensors | Sequence[str]]
    """Per tag that this peer trains: the names of its parameters and buffers, or of submodules."""
    given: Mapping[str, Tensors] = field(default_factory=dict)
    """A founder's initial parameters of the other tags; it gives them away and forgets them."""

    def __post_init__(self) -> None:
        if not self.tags or not all(self.tags) or len(set(self.tags)) != len(self.tags):
            raise ConfigError("the modules of a run have tags that are not empty and differ")
        for tag in (*self.held, *self.given):
            if tag not in self.tags:
                raise ConfigError(f"the run has no module {tag!r}: {', '.join(self.tags)}")
        if not self.held:
            raise ConfigError("a peer trains at least one module")
        if both := sorted(self.held.keys() & self.given.keys()):
            raise ConfigError(f"module {both[0]!r} is trained here and given away")


def parts(model: torch.nn.Module | Tensors, modules: Modules | None) -> dict[str, Tensors]:
    """What of the model belongs to each tag that this peer takes part in, in the run's order."""
    if modules is None:
        return {"": model if isinstance(model, Tensors) else _tensors(model, None)}
    found: dict[str, Tensors] = {}
    taken: dict[str, str] = {}
    for tag in modules.tags:
        if tag not in modules.held:
            continue
        part = modules.held[tag]
        if not isinstance(part, Tensors):
            if isinstance(model, Tensors):
                raise ConfigError(f"module {tag!r} is given by names, and the model has none")
            part = _tensors(model, part)
            for slot in part.layout.slots:
                if slot.name in taken:
                    raise ConfigError(f"{slot.name} is in modules {taken[slot.name]!r} and {tag!r}")
                taken[slot.name] = tag
        found[tag] = part
    return found


def _tensors(model: torch.nn.Module, names: Sequence[str] | None) -> Tensors:
    from decentral.model_tensors import ModelTensors

    return ModelTensors(model, names)
