"""Buffers beyond 2^31 bytes, where a 32-bit offset or length anywhere would show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from groups import mesh

COUNT = (1 << 29) + 7 * 256 + 3
"""Elements: just over 2^31 bytes of fp32, and no whole number of blocks."""
PIECE = 1 << 22


def piece(number: int) -> Any:
    """Elements [number · PIECE, …): whole numbers that int8 carries exactly, as long as their
    sums are multiples, and other ones in each block: one that lands elsewhere shows."""
    start = number * PIECE
    end = min(start + PIECE, COUNT)
    blocks = np.arange(start // 256, -(-end // 256), dtype=np.float32) % 8191 + 1
    pattern = (np.arange(256, dtype=np.float32) % 255) - 127
    return np.multiply.outer(blocks, pattern).ravel()[: end - start]


@pytest.mark.slow
def test_an_all_reduce_of_more_than_two_gibibytes() -> None:
    assert COUNT * 4 > 1 << 31
    # Sources are never written, so that both members may give the same one.
    source = np.empty(COUNT, np.float32)
    numbers = range(-(-COUNT // PIECE))
    for number in numbers:
        source[number * PIECE : (number + 1) * PIECE] = piece(number)
    results = [np.empty(COUNT, np.float32) for _ in range(2)]
    with mesh(2, encrypt=False, silence_limit_ms=20_000) as groups:
        works = [
            group.all_reduce(
                source, result, "int8", weights=[1, 3], schedule="ring", round=1, attempt=0,
                silence_limit_s=20.0,
            )
            for group, result in zip(groups, results, strict=True)
        ]  # fmt: skip
        assert all(work.wait(120) for work in works)
    # (1 x + 3 x) / 4, without an error anywhere.
    for number in numbers:
        part = slice(number * PIECE, (number + 1) * PIECE)
        for result in results:
            assert np.array_equal(result[part], source[part]), f"piece {number}"
        if number % 16 == 0 or number == numbers[-1]:
            assert np.array_equal(source[part], piece(number)), f"piece {number} of the source"
