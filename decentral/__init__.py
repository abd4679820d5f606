"""Train one model on machines that do not share a data center.

    run = decentral.join("198.51.100.7:4242#…", model, optimizer, decentral.DiLoCo())
    for batch in run.data(dataset, batch_size=32):
        loss = loss_fn(model, batch)
        loss.backward()
        run.step(loss)
    run.save("final")

Names are loaded when they are first used: ``import decentral`` imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from decentral.version import __version__

if TYPE_CHECKING:
    from decentral import errors
    from decentral.entry import join, start
    from decentral.errors import DecentralError
    from decentral.islands.entry import island
    from decentral.run import Run
    from decentral.strategies.diloco import DiLoCo
    from decentral.types import View

__all__ = [
    "DecentralError",
    "DiLoCo",
    "Run",
    "View",
    "__version__",
    "errors",
    "island",
    "join",
    "start",
]

_WHERE = {
    "DecentralError": "decentral.errors",
    "DiLoCo": "decentral.strategies.diloco",
    "Run": "decentral.run",
    "View": "decentral.types",
    "island": "decentral.islands.entry",
    "join": "decentral.entry",
    "start": "decentral.entry",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("decentral.errors")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'decentral' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
