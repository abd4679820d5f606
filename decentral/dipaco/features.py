"""What a router sees of a sequence: the tokens of a context, as one vector of length 1.

    ids [n, C] ──▶ neighbouring pairs, hashed to `size` bins ──▶ √counts, normalized

The square root makes Euclidean distances those of Hellinger between the pairs' distributions, so
that a frequent pair does not drown the others. Contexts of different lengths are comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from decentral.dipaco.documents import Tokens
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array

_FIRST, _SECOND = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
"""Odd, with well-mixed bits (xxHash's primes)."""
_ROWS, _JUDGED = 4096, 64
"""Contexts at a time."""


def pairs(ids: Tokens, size: int) -> Array:
    """float32 [n, size] for integer ids [n, C], C ≥ 2. `size` is a power of two."""
    out = np.zeros((len(ids), size), np.float32)
    shift = np.uint32(32 - (size.bit_length() - 1))
    for start in range(0, len(ids), _ROWS):
        part = ids[start : start + _ROWS].astype(np.uint32)
        hashed = part[:, :-1] * _FIRST + part[:, 1:] * _SECOND
        bins = ((hashed ^ (hashed >> np.uint32(15))) * _FIRST) >> shift
        rows = np.arange(len(part), dtype=np.int64)[:, None] * size
        counts = np.bincount((rows + bins).ravel(), minlength=len(part) * size)
        out[start : start + len(part)] = np.sqrt(counts.reshape(len(part), size))
    out /= np.sqrt(np.float32(ids.shape[1] - 1))
    return out


def pooled(
    model: nn.Module, submodule: str, beat: Callable[[], None] = lambda: None
) -> Callable[[Tokens], Array]:
    """Features by a language model: a submodule's output [n, C, d], averaged over the context.

    float32 [n, d], each of length 1. ConfigError if the model has no such submodule."""
    try:
        part = model.get_submodule(submodule)
    except AttributeError as error:
        raise ConfigError(f"lm features: the model has no submodule {submodule!r}") from error
    seen: list[torch.Tensor] = []

    def featurize(ids: Tokens) -> Array:
        model.eval()
        rows = []
        hook = part.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        try:
            with torch.no_grad():
                for start in range(0, len(ids), _JUDGED):
                    beat()
                    model(torch.from_numpy(ids[start : start + _JUDGED].astype(np.int64)))
                    rows.append(F.normalize(seen.pop().mean(1), dim=1).numpy())
        finally:
            hook.remove()
        return np.concatenate(rows)

    return featurize
