"""Seeds of everything random: each a hash of what it is for, so that no draw depends on another."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*words: str | int) -> int:
    """63 bits of a SHA-256 over the words."""
    text = "/".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_random(*words: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(*words)))


def torch_random(*words: str | int) -> torch.Generator:
    """On the CPU, whatever device trains: so that noise does not depend on the device."""
    return torch.Generator().manual_seed(seed_of(*words))
