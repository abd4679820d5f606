"""The hashes of state, as `native/core/hash.h` defines them: here only to verify what arrives.

    chunk (1 MiB) ─▶ leaf ─┐
    chunk ─────────▶ leaf ─┴▶ node … ─▶ tensor root (name, dtype, shape) ─▶ state root

Native code hashes whole states; this needs the leaves only, and single chunks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from decentral.types import TensorSpec

CHUNK_BYTES = 1 << 20
HASH_BYTES = 32

Buffer: TypeAlias = bytes | bytearray | memoryview

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4,
    "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes per element, by numpy's (or ml_dtypes') name."""


def tensor_bytes(spec: TensorSpec) -> int:
    """Size of a tensor. KeyError for a dtype that state does not have."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.dtype]


def chunk_count(nbytes: int) -> int:
    """Chunks of a tensor: an empty one has one, empty."""
    return max(1, -(-nbytes // CHUNK_BYTES))


def chunk_bytes(nbytes: int, index: int) -> int:
    """Size of chunk `index`."""
    return min(CHUNK_BYTES, nbytes - index * CHUNK_BYTES)


def leaf_hash(chunk: Buffer) -> bytes:
    """Hash of one chunk. Releases the GIL; a MiB takes about half a millisecond."""
    digest = hashlib.sha256(b"\x00")
    digest.update(chunk)
    return digest.digest()


def leaf_hashes(data: Buffer) -> bytes:
    """Concatenated hashes of all chunks. `data` is flat bytes."""
    view = memoryview(data)
    assert view.itemsize == 1 and view.ndim == 1, "leaf_hashes takes flat bytes"
    starts = range(0, max(1, len(view)), CHUNK_BYTES)
    return b"".join(leaf_hash(view[start : start + CHUNK_BYTES]) for start in starts)


def tree_root(leaves: bytes) -> bytes:
    """RFC 6962 shape: the left part holds the largest power of two below the number of leaves.

    Built with a stack instead of recursion: full subtrees merge as they complete.
    """
    assert leaves and len(leaves) % HASH_BYTES == 0, "leaves are whole hashes, at least one"
    stack: list[tuple[int, bytes]] = []  # (leaves below, hash), sizes strictly falling
    for start in range(0, len(leaves), HASH_BYTES):
        size, node = 1, leaves[start : start + HASH_BYTES]
        while stack and stack[-1][0] == size:
            node = _node(stack.pop()[1], node)
            size *= 2
        stack.append((size, node))
    root = stack.pop()[1]
    while stack:
        root = _node(stack.pop()[1], root)
    return root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def tensor_root(spec: TensorSpec, nbytes: int, leaves: bytes) -> bytes:
    """Root of one tensor: what it is, and its bytes."""
    assert len(leaves) == chunk_count(nbytes) * HASH_BYTES, "as many leaves as chunks"
    name, dtype = spec.name.encode(), spec.dtype.encode()
    head = b"\x02" + _le32(len(name)) + name + _le32(len(dtype)) + dtype + _le32(len(spec.shape))
    dims = b"".join(_le64(dim) for dim in spec.shape)
    return hashlib.sha256(head + dims + _le64(nbytes) + tree_root(leaves)).digest()


def state_root(tensors: Iterable[tuple[TensorSpec, bytes]]) -> bytes:
    """Root over (tensor, its leaves), in any order."""
    ordered: Sequence[tuple[TensorSpec, bytes]] = sorted(tensors, key=lambda t: t[0].name.encode())
    roots = (tensor_root(spec, tensor_bytes(spec), leaves) for spec, leaves in ordered)
    return hashlib.sha256(b"\x03" + _le32(len(ordered)) + b"".join(roots)).digest()


def _le32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _le64(value: int) -> bytes:
    return value.to_bytes(8, "little")
