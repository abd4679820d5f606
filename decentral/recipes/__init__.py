"""Recipes: what a volunteer trains with one command.

A recipe is a registered name, or ``module:function`` on the peer's own machine, where the
function takes nothing and returns a `Recipe` (one model, one strategy) or a `ProgramRecipe` (a
graph of cells, `decentral.dataflow`). Code never arrives from the network.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from decentral.dataflow.program import Program
    from decentral.schedule import Schedule
    from decentral.strategies.base import Strategy

REGISTERED: Mapping[str, str] = {
    "gpt": "decentral.recipes.gpt:recipe",
    "dipaco": "decentral.dipaco.recipe:recipe",
    "diffusion": "decentral.diffusion.recipe:recipe",
}


@dataclass(slots=True, kw_only=True)
class Task:
    """Everything that one peer trains with. Built anew for every process."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    dataset: Any
    """Map-style; its `digest` (a string), where it has one, goes into the fingerprint."""
    batch_size: int
    loss_fn: Callable[[torch.nn.Module, Any], torch.Tensor]
    """Mean loss of a batch."""
    tokens_of: Callable[[Any], int]
    """What a batch counts."""
    evaluate: Callable[[torch.nn.Module], float]
    """Validation loss on a fixed slice."""
    rounds: int
    """Length of the run, unless its founder says otherwise."""
    schedule: Schedule | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    num_workers: int = 0
    """Processes that load samples."""
    torch_threads: int | None = None
    """Threads of torch's own pool; a tiny model is fastest with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to build a task."""

    name: str
    version: str
    """Raise it with any change that makes old and new peers train differently."""
    build: Callable[[int], Task]
    """From a seed (of the initial parameters)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRecipe:
    """A named way to build a program. What its results depend on is in its own fingerprint."""

    name: str
    build: Callable[[int], Program]
    """From a seed."""


def load(name: str) -> Recipe | ProgramRecipe:
    """A registered recipe, or ``module:function`` (looked up in the working directory too)."""
    target = REGISTERED.get(name, name)
    module_name, colon, function_name = target.partition(":")
    if not colon:
        known = ", ".join(sorted(REGISTERED))
        raise ConfigError(f"there is no recipe {name!r}: use {known}, or module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ConfigError(f"recipe {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        says = f"recipe {name!r}: {module_name} has no function {function_name!r}"
        raise ConfigError(says) from error
    recipe = function()
    if not isinstance(recipe, Recipe | ProgramRecipe):
        raise ConfigError(f"recipe {name!r} gives a {type(recipe).__name__}, not a Recipe")
    return recipe


def load_training(name: str) -> Recipe:
    """A recipe of one model and one strategy, where nothing else will do."""
    recipe = load(name)
    if isinstance(recipe, ProgramRecipe):
        raise ConfigError(f"recipe {name!r} is a program of many cells: it has no single model")
    return recipe
