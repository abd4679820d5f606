"""What a report says about where it comes from: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from decentral.version import __version__


def about() -> dict[str, object]:
    """CPU, cores, memory, kernel, Python, and the commit (or the version, outside a checkout)."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory_gib": round(
            int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20, 1
        ),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str:
    """`git describe` where the package lies in its checkout; else the version."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return __version__
    tracked = (here.parent.parent / ".git").exists()
    return done.stdout.strip() if done.returncode == 0 and tracked else __version__


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
