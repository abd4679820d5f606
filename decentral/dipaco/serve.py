"""Text from a routed mixture: which path to ask for a context, and what it says next.

choose ─▶ [2, 0, 3, 1] ─▶ path 2's peer (the next, if it is dead) ─▶ generate W tokens ─▶ choose …
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from decentral.dataflow.program import Arrays
from decentral.dipaco import router
from decentral.dipaco.program import DiPaCo
from decentral.errors import ConfigError


def choose(program: DiPaCo, route: Arrays, context: bytes) -> list[int]:
    """Path ids, the best for this context first. `route`: the router's state.

    A context shorter than the prefix is taken as it is; of less than two bytes nothing is known,
    and the order is that of the router's bias."""
    ids = np.frombuffer(context, np.uint8)[None]
    if ids.shape[1] < 2:
        scores = route[router.ROUTE + "bias"]
    else:
        longest = program.documents.length if program.routing.features == "lm" else ids.shape[1]
        scores = router.score(route, program.featurizer(route)(ids[:, -longest:]))[0]
    return [int(id) for id in np.argsort(-scores, kind="stable")]


def generate(
    model: nn.Module,
    context: bytes,
    tokens: int,
    *,
    length: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> Iterator[int]:
    """`tokens` further bytes, one by one, each from the last `length` − 1 (what the model was
    trained on). Temperature 0: always the likeliest. The same for the same seed and context
    length, so a continuation after re-routing does not repeat the random numbers."""
    if not context:
        raise ConfigError("there is no context to go on from: give at least one byte")
    if temperature < 0:
        raise ConfigError(f"temperature is 0 or more, not {temperature!r}")
    ids = list(context)
    model.eval()
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-(length - 1) :]]))[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            chances = torch.softmax(logits / temperature, 0).numpy()
            random = np.random.Generator(np.random.Philox(key=[seed, len(ids)]))
            ends = np.cumsum(chances)
            token = min(int(np.searchsorted(ends, random.random() * ends[-1])), len(ends) - 1)
        ids.append(token)
        yield token
