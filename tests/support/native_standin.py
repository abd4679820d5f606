"""What training needs of `decentral._native`, written once more in numpy and hashlib.

The tests compare the real module with this; where the extension is not built yet, `install`
puts this in its place, so that the training tests need no compiler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
import sys
from types import ModuleType
from typing import Any

import numpy as np

CHUNK = 1 << 20


def leaf_hashes(array: Any) -> bytes:
    """An empty tensor has one leaf, of no bytes."""
    data = np.ascontiguousarray(array).tobytes()
    chunks = [data[at : at + CHUNK] for at in range(0, max(1, len(data)), CHUNK)]
    return b"".join(hashlib.sha256(b"\0" + chunk).digest() for chunk in chunks)


def _tree(leaves: list[bytes]) -> bytes:
    """RFC 6962: the left subtree holds the largest power of two below the count."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + _tree(leaves[:split]) + _tree(leaves[split:])).digest()


def tensor_root(name: str, dtype: str, shape: Any, nbytes: int, leaves: bytes) -> bytes:
    digest = hashlib.sha256(b"\2")
    for text in (name.encode(), dtype.encode()):
        digest.update(struct.pack("<I", len(text)) + text)
    digest.update(struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in shape))
    digest.update(struct.pack("<Q", nbytes))
    digest.update(_tree([leaves[at : at + 32] for at in range(0, len(leaves), 32)]))
    return digest.digest()


def state_root(roots: list[tuple[str, bytes]]) -> bytes:
    joined = b"".join(root for _, root in sorted(roots))
    return hashlib.sha256(b"\3" + struct.pack("<I", len(roots)) + joined).digest()


def outer_nesterov(
    theta: Any, momentum: Any, delta: Any, lr: float, mu: float, out_theta: Any, out_momentum: Any
) -> None:
    lr32, mu32 = np.float32(lr), np.float32(mu)
    out_momentum[...] = mu32 * momentum + delta
    out_theta[...] = theta - lr32 * (delta + mu32 * out_momentum)


def subtract(a: Any, b: Any, out: Any) -> None:
    np.subtract(a, b, out=out)


def all_finite(x: Any) -> bool:
    return bool(np.isfinite(x).all())


def norm(x: Any) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def install() -> None:
    """Become `decentral._native`, unless the extension is there."""
    if importlib.util.find_spec("decentral._native") is None:
        module = ModuleType("decentral._native")
        for name, value in globals().items():
            if callable(value) and not name.startswith("_") and name != "install":
                setattr(module, name, value)
        sys.modules["decentral._native"] = module
