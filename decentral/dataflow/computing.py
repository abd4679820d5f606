"""The thread that computes: fetches what a round is made from, works it out, writes it to disk.

    driver ── compute(job) ──▶ read inputs ─▶ program.compute ─▶ seal ─▶ store ── Outcome ──▶ driver

One round at a time. `beat`, which the program calls while it works, gives up a job whose round
somebody else has committed meanwhile.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from decentral.dataflow.handover import seal
from decentral.dataflow.program import Arrays, Input, Program, check
from decentral.dataflow.store import Store
from decentral.errors import StateError
from decentral.types import CommittedState

READ_TIMEOUT_S = 60.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """Round `round` of a cell, from `before`; and who holds the inputs here, or reads them."""

    cell: str
    round: int
    before: CommittedState
    held: Mapping[str, CommittedState]
    """Inputs that are here, by cell."""
    roots: Mapping[str, bytes]
    """Of the other inputs: what is committed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a job: a result, nothing (it was given up), or an error."""

    job: Job
    state: CommittedState | None = None
    tokens: int = 0
    loss: float | None = None
    seconds: float = 0.0
    error: BaseException | None = None


class GivenUp(Exception):
    """Raised by `beat` where a round need not be computed any more."""


class Computing:
    """`start`, `give_up` and `close` are the driver's; `tell` is called on the computing thread."""

    def __init__(
        self,
        program: Program,
        store: Store,
        read: Callable[..., Future[dict[str, Any]]],
        progress: Callable[[], None],
        tell: Callable[[Outcome], None],
    ) -> None:
        """`read(cell, round, root, prefix)`: tensors of a committed round that others hold."""
        self._program, self._store, self._read = program, store, read
        self._progress, self._tell = progress, tell
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self.job: Job | None = None
        """What is being worked on, as the driver knows it."""
        self._thread = threading.Thread(target=self._run, name="decentral compute", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        """Only when the outcome of the one before has come."""
        assert self.job is None, "one job after the other"
        self._given_up.clear()
        self.job = job
        self._jobs.put(job)

    def ended(self) -> None:
        """The driver has taken the outcome."""
        self.job = None

    def give_up(self) -> None:
        """The round is committed: the outcome comes soon, without a result."""
        self._given_up.set()

    def close(self) -> None:
        self._given_up.set()
        self._jobs.put(None)
        self._thread.join()

    # ------------------------------------------------------------------ the computing thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._tell(self._work(job))
            except GivenUp:
                self._tell(Outcome(job))
            except BaseException as error:  # the driver raises it, in the user's thread
                self._tell(Outcome(job, error=error))

    def _work(self, job: Job) -> Outcome:
        needs = self._program.inputs(job.cell, job.round)
        inputs = self._inputs(job, needs)
        began = time.monotonic()
        done = self._program.compute(job.cell, job.round, job.before.tensors, inputs, self._beat)
        seconds = time.monotonic() - began
        check(self._program, job.cell, done.tensors)
        state = seal(done.tensors, job.round)
        self._beat()
        self._store.save(job.cell, state)
        return Outcome(job, state, done.tokens, done.loss, seconds)

    def _inputs(self, job: Job, needs: tuple[Input, ...]) -> list[Arrays]:
        """All at once from wherever they are."""
        reads: dict[int, Future[dict[str, Any]]] = {}
        for place, need in enumerate(needs):
            if need.cell not in job.held:
                root = job.roots[need.cell]
                reads[place] = self._read(need.cell, need.round, root, need.prefix)
        try:
            return [
                self._wait(reads[place], need)
                if place in reads
                else _part(job.held[need.cell], need.prefix)
                for place, need in enumerate(needs)
            ]
        finally:
            for one in reads.values():
                one.cancel()

    def _wait(self, read: Future[dict[str, Any]], need: Input) -> Arrays:
        deadline = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline:
            self._beat()
            try:
                return read.result(LOOK_S)
            except TimeoutError:
                continue
        raise StateError(
            f"nobody who holds {need.cell}, round {need.round}, could be read from for "
            f"{READ_TIMEOUT_S:.0f} s",
            phase="read inputs",
        )

    def _beat(self) -> None:
        self._progress()
        if self._given_up.is_set():
            raise GivenUp


def _part(state: CommittedState, prefix: str) -> Arrays:
    return {name: one for name, one in state.tensors.items() if name.startswith(prefix)}
