"""The order of a map-style dataset: which sample a global id is, in every epoch another one.

    global id ──▶ epoch = id // n,  index = permutation(seed, epoch)[id % n] ──▶ dataset[index]

The permutation is computed id by id (a Feistel network over [0, n), walking cycles back into the
range), so that no peer ever holds a list of n indices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4


def _mix(x: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """A 64-bit finalizer (splitmix64's constants): every input bit reaches every output bit."""
    x = x + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: NDArray[np.uint64], n: int, key: int) -> NDArray[np.uint64]:
    """A bijection of [0, n), chosen by `key`, at `positions`."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = positions.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        x = out[outside]
        left, right = x >> half, x & mask
        for i in range(_ROUNDS):
            subkey = (key + (i + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (_mix(right, subkey) & mask)
        out[outside] = (left << half) | right
        # The network permutes [0, 2^2·half): outside [0, n), go round the cycle once more.
        outside = out >= np.uint64(n)
    return out


def sample_indices(ids: NDArray[np.uint64], n: int, seed: int) -> list[int]:
    """Dataset indices of global sample ids: another permutation in every epoch."""
    epochs = ids // np.uint64(n)
    out = np.empty(len(ids), dtype=np.uint64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = int(_mix(np.array([epoch], dtype=np.uint64), seed & 0xFFFFFFFFFFFFFFFF)[0])
        out[here] = permute(ids[here] % np.uint64(n), n, key)
    return [int(index) for index in out]
