"""What is trained on: fixed windows of token ids, in three parts that share no text.

    train        sharded over the paths
    reserved     scored by every path, to label them for the router; never trained on
    validation   never seen by anybody

A label from a training sequence would say which path has learnt it by heart, not which path
understands its kind (DiPaCo, section 2.4.2): hence the reserved part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError

Tokens: TypeAlias = "NDArray[Any]"
"""Integer [documents, T]."""


@dataclass(frozen=True)
class Documents:
    """Three arrays of windows. `…_domains` (integer [documents]) are for people: nothing that is
    trained or routed looks at them, only plots and the oracle of a benchmark."""

    train: Tokens
    reserved: Tokens
    validation: Tokens
    domains: Sequence[str] = ()
    train_domains: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    validation_domains: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        for name in ("train", "reserved", "validation"):
            part = getattr(self, name)
            if part.ndim != 2 or not np.issubdtype(part.dtype, np.integer) or not len(part):
                raise ConfigError(
                    f"{name} documents are integers [documents, T], not {part.dtype} {part.shape}",
                    phase="documents",
                )
        if not self.train.shape[1] == self.reserved.shape[1] == self.validation.shape[1]:
            raise ConfigError("all documents are windows of one length", phase="documents")

    @property
    def length(self) -> int:
        """T."""
        return int(self.train.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all three parts, in hex."""
        hashed = hashlib.sha256()
        for part in (self.train, self.reserved, self.validation):
            hashed.update(f"{part.shape}".encode())
            hashed.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
        return hashed.hexdigest()
