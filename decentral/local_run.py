"""One script, several peers on this machine: `local` in the place of `start` or `join`.

run = decentral.local(4, model, optimizer, decentral.DiLoCo(sync_every=100), rounds=20)
with run:
    for batch in run.data(dataset, batch_size=32):
        loss = loss_fn(model, batch)
        loss.backward()
        run.step(loss)

python train.py ── local(4) ── founds the run; starts the same command three times
                                 ├── python train.py ── local(4) ── joins as peer-2
                                 ├── python train.py ── local(4) ── joins as peer-3
                                 └── python train.py ── local(4) ── joins as peer-4
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.copies import COME, GO, LOOK_S, Copies, Origin, check_script
from decentral.entry import Optimizers, open_run
from decentral.errors import ConfigError, DecentralError
from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import Schedule
from decentral.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

LOOPBACK = "127.0.0.1:0"
NOTICE_S = 30.0
"""A script that waits so long for its copies says so."""
THREADS = "OMP_NUM_THREADS"

_called = False


def local(
    n: int,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    schedule: Schedule | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    target_tokens: int | None = None,
    rounds: int | None = None,
    home: Path | str | None = None,
    seed: int = 0,
) -> Run:
    """Train as `n` peers on this machine: this process, and n − 1 that run the same command.

    Whatever the script does before and after it does n times; `run.data` gives each its own
    samples, and the first `run.data` (or `run.step`) waits until all are there. The peers are
    peer-1, this one, to peer-n; lines that the others print begin with their names. They listen
    on 127.0.0.1 only, keep nothing after the run (or, with `home`, folders of these names there),
    and share the processor's cores out (unless OMP_NUM_THREADS is set). The options are `start`'s.

    Leaving the run (``with run``, `run.close`) waits for the others, and raises a DecentralError
    if one has failed, so that the script's exit status says it; the rest have trained on without
    it. An exception, Ctrl-C or SIGTERM here stops the others, and none outlives this process.

    Raises ConfigError from a prompt or notebook, from a worker process, and when called twice.
    """
    global _called
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"local wants a number of peers, 1 or more, not {n!r}", phase="local")
    check_script()
    if _called:
        raise ConfigError("decentral.local can be called once in a process", phase="local")
    _called = True
    origin = Origin.find()
    name = f"peer-{origin.number if origin is not None else 1}"
    options = RunOptions(
        schedule=schedule,
        scaler=scaler,
        accumulate=accumulate,
        clip_norm=clip_norm,
        target_tokens=target_tokens,
        rounds=rounds,
        home=Path(home) / name if home is not None else None,
        seed=seed,
    )
    threads = _share_cores(n)
    if origin is not None:
        copy = open_run(CopyRun, origin.word, model, optimizer, strategy, options, name, LOOPBACK)
        copy.origin = origin
        return copy
    first = open_run(FirstRun, None, model, optimizer, strategy, options, name, LOOPBACK)
    first.launch(n, threads)
    return first


class CopyRun(Run):
    """A copy's: joins, and waits for the parent's word before it trains."""

    origin: Origin

    def _begin(self, **facts: Any) -> None:
        if self._begun:
            return
        self.origin.wait(COME)  # not before: who dials is admitted within seconds, or gives up
        super()._begin(**facts)

        def meanwhile() -> bool:
            self._loop.drain()
            return self.finished is None

        with self.busy("wait for the other peers"):
            self.origin.wait(GO, meanwhile)


class FirstRun(Run):
    """The parent's: founds the run, and answers for the copies."""

    _copies: Copies | None = None
    _went = False
    _exiting = False

    def launch(self, n: int, env: dict[str, str]) -> None:
        self._copies = Copies()
        atexit.register(self._at_exit)
        try:
            self._copies.start({i: f"peer-{i}" for i in range(2, n + 1)}, self.join_word, env)
        except BaseException:
            self.close("the other peers did not start")
            raise

    def _begin(self, **facts: Any) -> None:
        if self._begun:
            return
        copies = self._copies
        if copies is not None:
            # Not after: a run that goes on from its disk needs them to be a majority.
            copies.call(COME)
        super()._begin(**facts)
        # Before the handler that this has registered, which does not know of copies.
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)
        if copies is None:
            return
        with self.busy("wait for the other peers"):
            notice_at = time.monotonic() + NOTICE_S
            # Not for those who have ended: the rest train without them.
            while self.finished is None and len(self.members) < 1 + copies.living:
                self._loop.drain()
                time.sleep(LOOK_S)
                if time.monotonic() > notice_at:
                    notice_at = math.inf
                    there = f"{len(self.members)} of {1 + copies.living} peers are there"
                    print(f"decentral: {there}; waiting for the others", file=sys.stderr)
        copies.call(GO)
        self._went = True

    def close(self, reason: str = "done") -> None:
        """Leave the run, and see the copies end: by themselves, or stopped if this one fails."""
        copies, self._copies = self._copies, None
        if copies is None:
            super().close(reason)
            return
        atexit.unregister(self._at_exit)
        over = self.finished is not None
        failing = sys.exc_info()[0] is not None or (self._exiting and not over)
        try:
            if over and not failing:
                copies.wait()  # as a member: a copy may still need this one to leave
        except BaseException:
            failing = True
            raise
        finally:
            try:
                super().close(reason)
            finally:
                if failing or not self._went:
                    copies.stop()
                else:
                    copies.wait()
        failures = copies.failures()
        if failures and not failing:
            says = ", ".join(f"{name} {how}" for name, how in failures.items())
            raise DecentralError(says, peer=", ".join(failures), phase="local")

    def _at_exit(self) -> None:
        self._exiting = True
        try:
            self.close("its process ends")
        except DecentralError as error:
            print(f"decentral: {error}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # nothing else changes the exit status at this point


def _share_cores(n: int) -> dict[str, str]:
    """What the copies' environment says of threads; this process's are set at once."""
    if THREADS in os.environ:
        return {}
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // n)
    torch.set_num_threads(threads)
    return {THREADS: str(threads)}
