"""The images that a run is about, and where they are found.

fashion-mnist   28×28, 60,000 + 10,000, 10 classes   Debian's dataset-fashion-mnist
digits          8×8, 1,500 + 297, 10 classes         comes with scikit-learn
shapes          12×12, as many as asked for, 4       drawn here: for tests
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral.diffusion.seeds import numpy_random
from decentral.errors import ConfigError
from decentral.recipes import debian

SYSTEM = Path("/usr/share/datasets")
"""Where Debian's package puts it, once installed."""
CACHE = Path("~/.cache/decentral/data")
"""Where ``make data`` puts it; the environment's DECENTRAL_DATA is another place."""

_MAGIC = {1: b"\0\0\x08\x01", 3: b"\0\0\x08\x03"}
DIGITS_TRAIN = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Gray images, 0 to 255, with labels."""

    name: str
    train: NDArray[np.uint8]
    """[n, height, width]"""
    labels: NDArray[np.uint8]
    """[n]"""
    test: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    classes: int
    digest: str = field(init=False)
    """SHA-256 over all of it, in hex."""

    def __post_init__(self) -> None:
        arrays = (self.train, self.labels, self.test, self.test_labels)
        if len(self.train) != len(self.labels) or len(self.test) != len(self.test_labels):
            raise ConfigError(f"{self.name}: there are not as many labels as images")
        sha = hashlib.sha256()
        for array in arrays:
            sha.update(repr(array.shape).encode() + np.ascontiguousarray(array).data)
        object.__setattr__(self, "digest", sha.hexdigest())

    @property
    def shape(self) -> tuple[int, int]:
        """Height, width."""
        return (self.train.shape[1], self.train.shape[2])


def installed() -> Images:
    """Fashion-MNIST, or scikit-learn's digits where it is not there; else a ConfigError."""
    folder = find_fashion_mnist()
    if folder is not None:
        return fashion_mnist(folder)
    try:
        return digits()
    except ImportError as error:
        raise ConfigError(
            "there are no images to train on: run `make data`, or install Debian's "
            "dataset-fashion-mnist, or `pip install scikit-learn` for its digits",
            phase="data",
        ) from error


def find_fashion_mnist() -> Path | None:
    """The folder with its four files; None where there is none."""
    cache = Path(os.environ.get("DECENTRAL_DATA") or CACHE).expanduser()
    for root in (SYSTEM, cache):
        found = sorted(root.rglob("fashion-mnist/train-images-idx3-ubyte.gz"))
        if found:
            return found[0].parent
    return None


def fetch(say: Callable[[str], object] = print) -> None:
    """What `make data` does: Debian's package into the cache. A ConfigError where that fails."""
    if find_fashion_mnist() is not None:
        say("fashion-mnist: there already")
        return
    folder = Path(os.environ.get("DECENTRAL_DATA") or CACHE).expanduser() / "fashion-mnist"
    with tempfile.TemporaryDirectory(prefix="decentral-data-") as temporary:
        pattern = "usr/share/datasets/fashion-mnist/*-ubyte.gz"
        files = debian.unpacked("dataset-fashion-mnist", Path(temporary), pattern)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
    say(f"fashion-mnist: {len(files)} files from dataset-fashion-mnist")


def fashion_mnist(folder: Path) -> Images:
    """Xiao et al. 2017, arXiv 1708.07747. A ConfigError names a file that cannot be read."""
    return Images(
        name="fashion-mnist",
        train=_idx(folder / "train-images-idx3-ubyte.gz", 3),
        labels=_idx(folder / "train-labels-idx1-ubyte.gz", 1),
        test=_idx(folder / "t10k-images-idx3-ubyte.gz", 3),
        test_labels=_idx(folder / "t10k-labels-idx1-ubyte.gz", 1),
        classes=10,
    )


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """LeCun's format: magic, the axes' lengths as big-endian words, bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", phase="data") from error
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(data[i : i + 4]) for i in range(4, start, 4))
    if data[:4] != _MAGIC[axes] or len(data) - start != math.prod(shape):
        raise ConfigError(f"{path} is not an IDX file of bytes with {axes} axes", phase="data")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def digits() -> Images:
    """Those of scikit-learn, 0 to 16 stretched to 0 to 255. An ImportError without it."""
    bunch: Any = importlib.import_module("sklearn.datasets").load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    labels = bunch.target.astype(np.uint8)
    return Images(
        name="digits",
        train=images[:DIGITS_TRAIN],
        labels=labels[:DIGITS_TRAIN],
        test=images[DIGITS_TRAIN:],
        test_labels=labels[DIGITS_TRAIN:],
        classes=10,
    )


def shapes(train: int, test: int, *, size: int = 12) -> Images:
    """Soft-edged discs, squares, diamonds and rings, anywhere, of any size and brightness."""
    random = numpy_random("shapes", train, test, size)
    n = train + test
    labels = random.integers(4, size=n).astype(np.uint8)
    centre = random.uniform(0.35, 0.65, (2, n, 1, 1)) * size
    radius = random.uniform(0.15, 0.32, (n, 1, 1)) * size
    brightness = random.uniform(120, 255, (n, 1, 1))
    grid = np.arange(size) + 0.5
    dy, dx = np.abs(grid[:, None] - centre[0]), np.abs(grid - centre[1])
    disc = np.hypot(dy, dx)
    distance = np.choose(
        labels[:, None, None],
        [disc - radius, np.maximum(dy, dx) - radius, dy + dx - radius, np.abs(disc - radius) - 1],
    )
    images = (np.clip(0.5 - distance, 0, 1) * brightness).astype(np.uint8)
    return Images(
        name="shapes",
        train=images[:train],
        labels=labels[:train],
        test=images[train:],
        test_labels=labels[train:],
        classes=4,
    )


if __name__ == "__main__":
    fetch()
