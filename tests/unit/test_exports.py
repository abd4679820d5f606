"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import decentral


def test_the_surface_is_pinned():
    assert decentral.__all__ == [
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
    assert dir(decentral) == sorted(decentral.__all__)
    for name in decentral.__all__:
        assert getattr(decentral, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(decentral, "joint")


def test_importing_it_imports_neither_torch_nor_numpy():
    code = "import decentral, sys; decentral.errors; decentral.View; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())
    assert "decentral.types" in modules
    assert not modules & {"torch", "numpy", "msgpack", "zmq"}
