"""Real text that is wherever Python is: the standard library's own source.

Only what every installation of the same Python has: no tests, and none of the modules that
distributions package apart or generate while building. Deduplicated by content, sorted, and split
into training and validation by file, so that no validation text is in a training file.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError

_LEFT_OUT = frozenset(
    {
        *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"),
        *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv"),
    }
)
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Corpus:
    """Bytes of all files, one after the other."""

    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    digest: str
    """Of both: peers whose Python differs see it in the fingerprint."""


def standard_library() -> Corpus:
    """The corpus of the running Python; read once per process."""
    return read_corpus(Path(sysconfig.get_path("stdlib")))


@cache
def read_corpus(root: Path) -> Corpus:
    train: list[bytes] = []
    validation: list[bytes] = []
    seen: set[bytes] = set()
    for path in sources(root):
        text = path.read_bytes()
        digest = hashlib.sha256(text).digest()
        if digest in seen or not text:
            continue
        seen.add(digest)
        # By content, not by name or order: a file more or less moves no other file.
        held_out = digest[0] < 256 * _VALIDATION_SHARE
        (validation if held_out else train).append(text)
    if not train or not validation:
        raise ConfigError(f"there is no Python source to train on in {root}", phase="corpus")
    both = b"".join(train), b"".join(validation)
    digest_of_both = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in both))
    return Corpus(
        train=np.frombuffer(both[0], dtype=np.uint8),
        validation=np.frombuffer(both[1], dtype=np.uint8),
        digest=digest_of_both.hexdigest()[:16],
    )


def sources(root: Path) -> list[Path]:
    """The library's own files, in the same order everywhere."""
    paths = (
        path
        for path in root.rglob("*.py")
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts[:-1])
        and not path.name.startswith(("_sysconfigdata", "sitecustomize"))
        and "config-" not in path.parent.name
    )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())
