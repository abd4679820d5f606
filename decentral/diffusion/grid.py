"""Many small images as one PNG. By hand, for it takes a checksum and a dozen lines, and the one
library of ours that could (matplotlib) is only there for plots.

    signature │ IHDR │ IDAT: per row a filter byte (0) and its pixels, deflated │ IEND
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GAP = 2
"""Pixels between images."""


def tiled(images: NDArray[np.uint8], columns: int, *, scale: int = 2) -> NDArray[np.uint8]:
    """[n, h, w] → one picture, row by row; every pixel `scale` × `scale`."""
    n, height, width = images.shape
    rows = -(-n // columns)
    picture = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = image
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def png(picture: NDArray[np.uint8]) -> bytes:
    """Of a gray picture [height, width]."""
    height, width = picture.shape
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])  # 8 bits, gray
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture], axis=1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def write(path: Path, images: NDArray[np.uint8], columns: int) -> None:
    path.write_bytes(png(tiled(images, columns)))
