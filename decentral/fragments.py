"""A model in fragments that are exchanged in turn: balanced, and layers stay whole.

Streaming DiLoCo (arXiv 2501.18512, section 3.1) cuts a transformer into fragments of whole layers,
in a strided pattern. Here units (numbered blocks, and every tensor that is in none) go to the
lightest fragment, largest first; blocks of one size, which most are, so end up strided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decentral.compute import Tensors
from decentral.errors import ConfigError
from decentral.modules import Modules
from decentral.state import FROZEN, Layout

if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def in_fragments(model: torch.nn.Module | Tensors, count: int) -> Modules:
    """All fragments are held by every peer. ConfigError where there are fewer units."""
    if isinstance(model, Tensors):
        raise ConfigError("a strategy with fragments wants a torch module", phase="fragments")
    from decentral.model_tensors import ModelTensors

    groups = balanced(ModelTensors(model).layout, count)
    held = {f"fragment-{i}": names for i, names in enumerate(groups)}
    return Modules(tags=tuple(held), held=held)


def balanced(layout: Layout, count: int) -> list[list[str]]:
    """Tensor names per fragment; each has something to train."""
    units: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for slot in layout.slots:
        block = _BLOCK.match(slot.name)
        unit = block.group(1) if block else slot.name
        units.setdefault(unit, []).append(slot.name)
        sizes[unit] = sizes.get(unit, 0) + (slot.size if slot.kind != FROZEN else 0)
    trained = [unit for unit in units if sizes[unit]]
    if len(trained) < count:
        raise ConfigError(
            f"{count} fragments of a model that has {len(trained)} parts: its numbered blocks, "
            "and the tensors outside of them",
            phase="fragments",
        )
    order = {unit: i for i, unit in enumerate(units)}
    fragments: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for unit in sorted(units, key=lambda unit: (-sizes[unit], order[unit])):
        lightest = min(range(count), key=lambda i: (loads[i], i))
        loads[lightest] += sizes[unit]
        fragments[lightest].append(unit)
    return [_names(sorted(one, key=lambda unit: order[unit]), units) for one in fragments]


def _names(chosen: Sequence[str], units: dict[str, list[str]]) -> list[str]:
    return [name for unit in chosen for name in units[unit]]
