"""Benchmark workers: one process per rank, told by its parent over pipes what to do.

    parent                           worker (rank r of n), perhaps on a host of a lab
      │ ◀── {"address": …} ────────── │   how the others reach me
      │ ─── {"do": "connect", …} ───▶ │
      │ ─── {"do": "reduce",          │   every worker starts at the same moment of the monotonic
      │      "start_at": …, …} ─────▶ │   clock, which all processes of a machine share
      │ ◀── {"seconds": …, …} ─────── │

Several systems can so take turns in one session, run by run, on the same machine state.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from decentral.errors import DecentralError

PR_SET_PDEATHSIG = 1
PATIENCE_S = 600.0
"""How long a worker may take to answer before it counts as hung."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs: on this machine as it is, or on a host of a lab."""

    address: str = "127.0.0.1"
    interface: str = "lo"
    prefix: tuple[str, ...] = ()


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


def die_with_parent() -> None:
    """A worker that is stopped, or waits for a stopped one, must not outlive the benchmark."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def sleep_until(moment: float) -> None:
    """A moment of the monotonic clock; at once if it is over."""
    time.sleep(max(0.0, moment - time.monotonic()))


def soon(processes: int) -> float:
    """A moment by which that many workers have been told to start."""
    return time.monotonic() + 0.02 + 0.003 * processes


class Worker:
    """The parent's side of one process. Its first line says how the others reach it."""

    def __init__(self, command: Sequence[str], place: Place, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*place.prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C is the parent's business
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def ready(self) -> bool:
        """Whether an answer is waiting."""
        return self._answers_within(0)

    def _answers_within(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def hear(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """One answer at a time: the parent never leaves two in the pipe."""
        assert self._process.stdout is not None
        if not self._answers_within(patience_s):
            raise DecentralError(
                f"{self.name} has not answered for {patience_s:g} s", phase="bench"
            )
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return dict(json.loads(line))

    def ask(self, **fields: Any) -> dict[str, Any]:
        self.tell(json.dumps(fields))
        return self.hear()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of a line that it never took
                    pipe.close()

    def _ended(self) -> DecentralError:
        return DecentralError(
            f"{self.name} ended with status {self._process.wait()}", phase="bench"
        )


class Workers:
    """n processes of ``python -m MODULE --rank R --peers N …``, one per place."""

    def __init__(self, module: str, places: Sequence[Place], arguments: Sequence[str]) -> None:
        self.module = module
        self.places = tuple(places)
        self._arguments = tuple(arguments)
        self.all: list[Worker] = []
        try:
            for rank in range(len(self.places)):
                self.all.append(self._start(rank))
            self.addresses = [worker.hear()["address"] for worker in self.all]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.all)

    def replace(self, rank: int) -> None:
        """A new process in the place of one that is killed: another peer."""
        self.all[rank].close()
        self.all[rank] = self._start(rank)
        self.addresses[rank] = self.all[rank].hear()["address"]

    def tell(self, to: Iterable[int] | None = None, **fields: Any) -> None:
        for rank in self._ranks(to):
            self.all[rank].tell(json.dumps(fields))

    def hear(self, ranks: Iterable[int] | None = None) -> list[dict[str, Any]]:
        return [self.all[rank].hear() for rank in self._ranks(ranks)]

    def ask(self, to: Iterable[int] | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Tell some (default: all) the same; their answers, in the order of the ranks."""
        ranks = self._ranks(to)
        self.tell(ranks, **fields)
        return self.hear(ranks)

    def close(self) -> None:
        for worker in self.all:
            worker.close()

    def _ranks(self, ranks: Iterable[int] | None) -> list[int]:
        return list(range(len(self.all)) if ranks is None else ranks)

    def _start(self, rank: int) -> Worker:
        command = [sys.executable, "-P", "-m", self.module, "--rank", str(rank)]
        command += ["--peers", str(len(self.places)), "--host", self.places[rank].address]
        return Worker(
            [*command, *self._arguments], self.places[rank], f"rank {rank} of {self.module}"
        )
