"""Perplexity of a routed mixture, the prefix left out.

    losses   float32 [P, n, T − prefix]    what each path says of every token of n documents
    ways     int64 [n, T − prefix]         which path is asked for it
    exp(mean over n and tokens of losses[ways])

Every path's losses are worked out once; each way of routing is then a look-up. That is exact: a
path that takes over in mid-document encodes the whole context itself, as it would have anyway.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays
from decentral.dipaco import router
from decentral.dipaco.documents import Tokens
from decentral.dipaco.inner import judge
from decentral.dipaco.path_round import ROUTER
from decentral.dipaco.program import DiPaCo
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array


def losses(program: DiPaCo, states: dict[str, Arrays], documents: Tokens | None = None) -> Array:
    """Nats per token by every path: float32 [P, n, T − prefix]; the validation documents if none
    are given. Of replicas, the first is asked."""
    torch.set_num_threads(program.torch_threads)
    ids = program.documents.validation if documents is None else documents
    model = program.build()
    return np.stack(
        [
            judge(model.load(program.serving(cell, states)).model, ids, program.routing.prefix)
            for cell, path in program.paths.items()
            if path.replica == 0
        ]
    )


def ways(
    program: DiPaCo,
    route: Arrays,
    documents: Tokens,
    *,
    window: int | None = None,
    dead: Collection[int] = (),
) -> NDArray[np.int64]:
    """The path for each token after the prefix: [n, T − prefix].

    `route`: a router's state. `window`: W, the path is chosen anew every W tokens, from the whole
    context so far; None: once per document, from its prefix. `dead`: ids of paths that cannot be
    asked; the next by the router's score is."""
    featurize = program.featurizer(route)
    prefix, length = program.routing.prefix, documents.shape[1]
    if window is not None and window < 1:
        raise ConfigError(f"a window has at least one token, not {window}")
    chosen = np.empty((len(documents), length - prefix), np.int64)
    for start in range(prefix, length, window or length):
        scores = router.score(route, featurize(documents[:, :start]))
        scores[:, list(dead)] = -np.inf
        if not np.isfinite(scores).any():
            raise ConfigError("every path is dead: there is none to ask")
        stop = length if window is None else min(length, start + window)
        chosen[:, start - prefix : stop - prefix] = scores.argmax(1)[:, None]
    return chosen


def perplexity(losses: Array, ways: NDArray[np.int64]) -> float:
    """Per token, from what the two functions above give."""
    rows, tokens = np.ogrid[: ways.shape[0], : ways.shape[1]]
    return float(np.exp(losses[ways, rows, tokens].mean(dtype=np.float64)))


def evaluate(
    program: DiPaCo,
    states: dict[str, Arrays],
    *,
    window: int | None = None,
    dead: Collection[int] = (),
) -> float:
    """Validation perplexity at the end of a run."""
    chosen = ways(program, states[ROUTER], program.documents.validation, window=window, dead=dead)
    return perplexity(losses(program, states), chosen)


def oracle(losses: Array) -> float:
    """Perplexity if each document went to the path that suits it best: a bound for routers."""
    return float(np.exp(losses.mean(2, dtype=np.float64).min(0).mean()))
