"""Benchmark workers: one process per rank, told by its parent over pipes when to run.

    parent                      worker (rank r of n)
      │ ◀── {"address": …} ─────── │   how the others reach me
      │ ─── {"addresses": […]} ──▶ │   connects; then for every run:
      │ ─── {"go": true} ────────▶ │   barrier, operation
      │ ◀── {"seconds", "cpu", …}─ │

Several systems can so take turns in one session, run by run, on the same machine state.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from decentral.errors import DecentralError


def cpu_seconds() -> float:
    """User and system time of this process and all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(**fields: Any) -> None:
    """Worker to parent."""
    print(json.dumps(fields), flush=True)


def hear() -> dict[str, Any]:
    """Parent to worker; ends the worker when the parent is gone."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return dict(json.loads(line))


class Workers:
    """The parent's side: n processes of ``python -m MODULE --rank R --peers N …``."""

    def __init__(self, module: str, peers: int, arguments: Sequence[str]) -> None:
        self.module = module
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--rank", str(rank), "--peers", str(peers)]
                + list(arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(peers)
        ]
        self.tell_all(addresses=[answer["address"] for answer in self.hear_all()])
        self.hear_all()  # connected

    def tell_all(self, **fields: Any) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(fields) + "\n")
            process.stdin.flush()

    def hear_all(self) -> list[dict[str, Any]]:
        answers = []
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise DecentralError(
                    f"rank {rank} of {self.module} ended with status {process.wait()}",
                    phase="bench",
                )
            answers.append(json.loads(line))
        return answers

    def run_once(self) -> list[dict[str, Any]]:
        self.tell_all(go=True)
        return self.hear_all()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
