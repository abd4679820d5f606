"""The router: a linear map from features of a context to one score per path.

    generative       balanced k-means of the training documents' prefixes      (round 1)
    discriminative   logistic regression on "which path knows this reserved    (rounds 2 …)
                     document best", from what the paths themselves scored

DiPaCo, section 2.4. A cell's state holds what serves (``route/…``) and what trains (``shards/…``):

    route/weights  float32 [P, d]        shards/train       uint8 [overlap, documents]: path ids
    route/bias     float32 [P]           shards/validation  uint8 [documents]
    route/lm       float32 [S], with LM features only
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays
from decentral.dipaco.clusters import balanced_kmeans, prices, product
from decentral.dipaco.documents import Documents, Tokens
from decentral.errors import ConfigError
from decentral.strategies.outer import one_of, whole, within
from decentral.types import TensorSpec

if TYPE_CHECKING:
    from decentral.types import Array

Featurize: TypeAlias = "Callable[[Tokens], Array]"
"""Integer ids [n, C] → float32 [n, d]."""

MOST_PATHS = 256
"""A path id is one byte."""
SHARDS, ROUTE = "shards/", "route/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How documents find their path."""

    prefix: int = 32
    """Tokens that a router sees, and that no loss counts."""
    features: str = "pairs"
    """"pairs": hashed neighbouring tokens; "lm": what the pretrained model makes of the prefix."""
    size: int = 1024
    """d of "pairs": bins, a power of two."""
    lm_module: str = "norm"
    """Of "lm": the submodule whose output [n, C, d] is averaged over the prefix."""
    product: bool = False
    """Product k-means: each level clusters a part of the features for itself. For many paths."""
    balanced: bool = True
    """Shards of equal size."""
    overlap: int = 1
    """Each document trains so many paths, those with its highest scores."""
    l2: float = 1e-3
    """Of the logistic regression's weights."""

    def __post_init__(self) -> None:
        whole("prefix", self.prefix, 2)
        one_of("features", self.features, ("pairs", "lm"))
        if self.size < 2 or self.size & (self.size - 1):
            raise ConfigError(f"the size of features is a power of two, not {self.size!r}")
        whole("overlap", self.overlap, 1)
        within("l2", self.l2, 0, 10)


def schema(routing: Routing, paths: int, size: int, lm: int, documents: Documents) -> tuple[
    TensorSpec, ...
]:  # fmt: skip
    """Of the router's cell, for `size` features; `lm`: values of the LM that makes them, or 0."""
    if paths > MOST_PATHS:
        raise ConfigError(f"at most {MOST_PATHS} paths can be routed to, not {paths}")
    if routing.overlap > paths:
        raise ConfigError(f"overlap {routing.overlap} is more than the {paths} paths there are")
    train = (routing.overlap, len(documents.train))
    specs = [
        TensorSpec(name=ROUTE + "bias", dtype="float32", shape=(paths,)),
        TensorSpec(name=ROUTE + "weights", dtype="float32", shape=(paths, size)),
        TensorSpec(name=SHARDS + "train", dtype="uint8", shape=train),
        TensorSpec(name=SHARDS + "validation", dtype="uint8", shape=(len(documents.validation),)),
    ]
    if lm:
        specs.append(TensorSpec(name=ROUTE + "lm", dtype="float32", shape=(lm,)))
    return tuple(sorted(specs, key=lambda spec: spec.name))


def generative(
    routing: Routing,
    alternatives: Sequence[int],
    documents: Documents,
    featurize: Featurize,
    seed: int,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.generic]]:
    """Round 1: k-means over the training documents' prefixes."""
    x = featurize(documents.train[:, : routing.prefix])
    paths = int(np.prod(alternatives))
    if routing.product:
        weights, bias = _product(routing, alternatives, x, seed, beat)
    else:
        weights, bias = balanced_kmeans(x, paths, seed, balanced=routing.balanced, beat=beat)
    return _state(routing, documents, featurize, x, weights, bias, np.zeros_like(bias))


def discriminative(
    routing: Routing,
    documents: Documents,
    featurize: Featurize,
    scores: Array,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.generic]]:
    """A later round: `scores` float32 [P, reserved documents], mean nats; the lowest is the label.

    Prices make the training shards equal where `balanced`; what serves is the classifier as it
    is, for a document goes where it is known best and not where there is room."""
    labels = scores.argmin(0)
    weights, bias = logistic(
        featurize(documents.reserved[:, : routing.prefix]), labels, len(scores), routing.l2, beat
    )
    x = featurize(documents.train[:, : routing.prefix])
    priced = np.zeros_like(bias)
    if routing.balanced:
        priced = prices(product(x, np.ascontiguousarray(weights.T)) + bias, beat=beat)
    return _state(routing, documents, featurize, x, weights, bias, priced)


def logistic(
    x: Array,
    labels: NDArray[np.int64],
    classes: int,
    l2: float,
    beat: Callable[[], None] = lambda: None,
) -> tuple[Array, Array]:
    """(weights float32 [classes, d], bias float32 [classes]) of multinomial logistic regression,
    by L-BFGS in fp64 from zero."""
    inputs, targets = torch.from_numpy(x).double(), torch.from_numpy(labels)
    weights = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        beat()
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weights.T + bias, targets)
        value = value + l2 * (weights * weights).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().float().numpy(), bias.detach().float().numpy()


def score(route: Arrays, x: Array) -> Array:
    """float32 [n, P] of features [n, d]: the higher, the better the path."""
    made: Array = product(x, np.ascontiguousarray(route[ROUTE + "weights"].T))
    return made + route[ROUTE + "bias"]


def _state(
    routing: Routing,
    documents: Documents,
    featurize: Featurize,
    x: Array,
    weights: Array,
    bias: Array,
    priced: Array,
) -> dict[str, NDArray[np.generic]]:
    route = {ROUTE + "weights": weights, ROUTE + "bias": bias.astype(np.float32)}
    best = np.argsort(-(score(route, x) + priced), axis=1, kind="stable")[:, : routing.overlap]
    held_out = score(route, featurize(documents.validation[:, : routing.prefix]))
    return {
        **route,
        SHARDS + "train": np.ascontiguousarray(best.T).astype(np.uint8),
        SHARDS + "validation": held_out.argmax(1).astype(np.uint8),
    }


def _product(
    routing: Routing,
    alternatives: Sequence[int],
    x: Array,
    seed: int,
    beat: Callable[[], None],
) -> tuple[Array, Array]:
    """Path (i, j, …) scores the sum of its levels' scores, each on its own part of the features."""
    ends = [x.shape[1] * level // len(alternatives) for level in range(len(alternatives) + 1)]
    weights, bias = np.zeros((1, 0), np.float32), np.zeros(1, np.float32)
    for level, k in enumerate(alternatives):
        part = np.ascontiguousarray(x[:, ends[level] : ends[level + 1]])
        more, its_bias = balanced_kmeans(
            part, k, seed + level, balanced=routing.balanced, beat=beat
        )
        # The last level varies fastest, as in Grid.choice.
        weights = np.concatenate([np.repeat(weights, k, 0), np.tile(more, (len(weights), 1))], 1)
        bias = (bias[:, None] + its_bias[None, :]).ravel()
    return weights, bias
