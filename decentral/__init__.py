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
    from decentral.hooks import hooked
    from decentral.islands.entry import island
    from decentral.local_run import local
    from decentral.run import Run
    from decentral.strategies import (
        AsyncDiLoCo,
        DataParallel,
        DecoupledDiLoCo,
        DiLoCo,
        SparseLoCo,
        StreamingDiLoCo,
    )
    from decentral.types import View

__all__ = [
    "AsyncDiLoCo",
    "DataParallel",
    "DecentralError",
    "DecoupledDiLoCo",
    "DiLoCo",
    "Run",
    "SparseLoCo",
    "StreamingDiLoCo",
    "View",
    "__version__",
    "errors",
    "hooked",
    "island",
    "join",
    "local",
    "start",
]

_WHERE = {
    "AsyncDiLoCo": "decentral.strategies",
    "DataParallel": "decentral.strategies",
    "DecentralError": "decentral.errors",
    "DecoupledDiLoCo": "decentral.strategies",
    "DiLoCo": "decentral.strategies",
    "Run": "decentral.run",
    "SparseLoCo": "decentral.strategies",
    "StreamingDiLoCo": "decentral.strategies",
    "View": "decentral.types",
    "hooked": "decentral.hooks",
    "island": "decentral.islands.entry",
    "join": "decentral.entry",
    "local": "decentral.local_run",
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
