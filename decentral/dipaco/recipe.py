"""DiPaCo runs that any machine can make.

program   2×2 paths of 0.51 M parameters, byte-level, on what corpus.py finds; 1,200 path steps
tiny      the same in seconds, on made-up languages: for tests
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from decentral.dipaco import corpus
from decentral.dipaco.documents import Documents
from decentral.dipaco.inner import Inner
from decentral.dipaco.outer import Outer
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.router import Routing
from decentral.dipaco.split import split
from decentral.recipes import ProgramRecipe
from decentral.recipes.gpt_model import GPT, GPTConfig

PRIVATE = ("wte", "wpe", "norm", "head")
CONFIG = GPTConfig(context=160, width=96, heads=4, layers=4)
"""507,744 parameters with a head of its own."""
DOCUMENTS = (32_000, 800, 512)
"""To train on, reserved, for validation: windows of 160 bytes."""


def recipe() -> ProgramRecipe:
    return ProgramRecipe(name="dipaco", build=program)


def tiny_recipe() -> ProgramRecipe:
    return ProgramRecipe(name="dipaco-tiny", build=tiny)


def build(config: GPTConfig) -> nn.Module:
    """A GPT whose head is not tied to its embedding."""
    model = GPT(config)
    model.head.weight = nn.Parameter(model.wte.weight.detach().clone())
    return model


def program(seed: int, **changes: Any) -> DiPaCo:
    """The demo: eight domains (or two), four paths, routed by what they know best from half-way."""
    options: dict[str, Any] = {
        "model": lambda: build(CONFIG),
        "split": split(build(CONFIG), levels=[2, 2], private=PRIVATE),
        "documents": corpus.documents(*DOCUMENTS),
        "phases": 10,
        "inner": Inner(steps=30, batch_size=8, lr=3e-3),
        "outer": Outer(lr=0.7, momentum=0.5),
        "routing": Routing(prefix=32),
        "pretraining": 6,
        "reroute_after": (5, 10),
        "name": "dipaco/1",
        "seed": seed,
    }
    return DiPaCo(**{**options, **changes})


def tiny(seed: int, **changes: Any) -> DiPaCo:
    """2×2 paths of 8k parameters on four made-up languages: a path's round takes some 50 ms."""
    config = GPTConfig(vocabulary=64, context=32, width=16, heads=2, layers=2)
    options: dict[str, Any] = {
        "model": lambda: build(config),
        "split": split(build(config), levels=[2, 2], private=PRIVATE),
        "documents": languages(4, train=100, held_out=20, length=32, vocabulary=64),
        "phases": 4,
        "inner": Inner(steps=6, batch_size=8, lr=1e-2),
        "outer": Outer(lr=0.7, momentum=0.5),
        "routing": Routing(prefix=8, size=256),
        "pretraining": 2,
        "reroute_after": (2, 4),
        "validation_documents": 8,
        "name": "dipaco-tiny/1",
        "seed": seed,
    }
    return DiPaCo(**{**options, **changes})


def languages(count: int, *, train: int, held_out: int, length: int, vocabulary: int) -> Documents:
    """Made-up languages: in each, a token is followed by one of four others of its own."""
    parts: dict[str, list[NDArray[np.uint8]]] = {"train": [], "reserved": [], "validation": []}
    labels: dict[str, list[NDArray[np.uint8]]] = {"train": [], "reserved": [], "validation": []}
    for language in range(count):
        random = np.random.Generator(np.random.Philox(key=[language, vocabulary]))
        follows = random.integers(0, vocabulary, (vocabulary, 4))
        for part in parts:
            ids = np.zeros((train if part == "train" else held_out, length), np.uint8)
            ids[:, 0] = random.integers(0, vocabulary, len(ids))
            for at in range(1, length):
                ids[:, at] = follows[ids[:, at - 1], random.integers(0, 4, len(ids))]
            parts[part].append(ids)
            labels[part].append(np.full(len(ids), language, np.uint8))
    order = {part: _mixed(len(parts[part]) * len(parts[part][0])) for part in parts}
    return Documents(
        **{part: np.concatenate(parts[part])[order[part]] for part in parts},
        domains=tuple(f"language {number}" for number in range(count)),
        train_domains=np.concatenate(labels["train"])[order["train"]],
        validation_domains=np.concatenate(labels["validation"])[order["validation"]],
    )


def _mixed(count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=count)).permutation(count)
