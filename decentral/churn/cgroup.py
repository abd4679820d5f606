"""A memory limit on one running process, so that the kernel kills it: cgroup v1 or v2."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
LIMIT_BYTES = 65536


def why_not() -> str:
    """Why this system lets us make no memory cgroup; empty if it does."""
    try:
        probe = _make("probe")
        probe.rmdir()
    except OSError as error:
        return f"no memory cgroup can be made here: {error}"
    return ""


def starve(pid: int) -> Path:
    """Let this process have next to nothing more: its next page brings the OOM killer. The group,
    to be given to `remove` once the process has ended."""
    group = _make(str(pid))
    v2 = (group / "memory.max").exists()
    (group / "cgroup.procs").write_text(str(pid))
    (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(LIMIT_BYTES))
    return group


def remove(group: Path) -> None:
    with contextlib.suppress(OSError):
        group.rmdir()


def _make(name: str) -> Path:
    """Beside our own group: in one with members, v2 allows no further limits."""
    ours = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )
    if "memory" in ours:
        base = ROOT / "memory" / ours["memory"].lstrip("/")
    elif (ROOT / "cgroup.controllers").exists():
        base = (ROOT / ours[""].lstrip("/")).parent
    else:
        raise OSError("the memory controller is not mounted")
    group = base / f"decentral-churn-{os.getpid()}-{name}"
    group.mkdir()
    if not any((group / one).exists() for one in ("memory.max", "memory.limit_in_bytes")):
        group.rmdir()
        raise OSError(f"{group} has no memory limit")
    return group
