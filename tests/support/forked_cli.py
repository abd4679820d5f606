"""`decentral peer` for a fork server: torch is imported once, not once per peer."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence


def prepare() -> None:
    for name in ("torch", "decentral.cli.peer", "decentral.run", "decentral.strategies"):
        importlib.import_module(name)


def main(argv: Sequence[str]) -> int:
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    from decentral.cli import main as decentral

    return decentral(["peer", *argv])
