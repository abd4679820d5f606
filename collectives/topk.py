"""Chunked top-k with 2-bit values: what SparseLoCo sends (arXiv:2508.15706; Covenant-72B).

Of every chunk of 4096 values (64 × 64) the `k` largest by magnitude survive, each as a 12-bit
index, a sign and one of two magnitudes that are fitted to the chunk: 116 bytes instead of 16384
with k = 64. A sum of such vectors has other indices than its parts, so that these go by all-gather,
and every member adds them up in the same order. What did not survive stays with the sender, as
error feedback: `e = c - decode(encode(c))`.

The wire form is in native/collective/topk.h.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from decentral import _native

if TYPE_CHECKING:
    from decentral.types import Array

CHUNK = 4096
"""Values that are ranked together."""
K = 64
"""Survivors per full chunk (1.56 %), the paper's choice. A shorter last chunk keeps the same share,
rounded up."""


def encoded_size(count: int, *, k: int = K) -> int:
    """Wire bytes for `count` values."""
    return _native.topk_encoded_size(count, k)


def encode(values: Array, *, k: int = K) -> bytes:
    """Wire bytes of fp32 values, shape [n]. Of equal magnitudes the first survive; a chunk that
    holds a NaN or an infinity decodes to NaN where its largest values were."""
    return _native.topk_encode(values, k)


def decode_add(data: bytes, out: Array, weight: float = 1.0, *, k: int = K) -> None:
    """`out += weight · decode(data)`, in place, fp32, shape [n]. A weight of zero is an absence.

    `ProtocolError` where `data` is not the encoding of n values with this k; `out` is untouched.
    """
    _native.topk_decode_add(data, k, weight, out)


def clips_to_median(
    encoded: Mapping[int, bytes], scratch: Array, *, k: int = K
) -> dict[int, float]:
    """By rank, the factor in (0, 1] that brings each contribution's 2-norm down to their median.

    `scratch`: fp32, shape [n]; overwritten. The same bits on all members.
    """
    norms: dict[int, float] = {}
    for rank, data in encoded.items():
        scratch[:] = 0
        decode_add(data, scratch, k=k)
        norms[rank] = _native.norm(scratch)
    median = statistics.median(norms.values())
    return {rank: min(1.0, median / norm) if norm else 1.0 for rank, norm in norms.items()}
