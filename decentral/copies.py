"""The script that is running, run once more or several times: children that end with their parent.

    parent ── pipe: {"number", "word"} … "come" … "go" … end of file ──▶ copy
           ◀── its stdout and stderr, each line after its name ──

The end of the file says that the parent is gone, however it went: no copy outlives it. The pipe
carries the join word, which is a secret: others may read a command line or an environment.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from decentral.errors import ConfigError, DecentralError

MARK = "DECENTRAL_LOCAL"
"""Environment variable: the number of the pipe's descriptor in a copy."""
COME, GO = "come", "go"
"""The run is there to be joined; all have joined it, and training begins."""
LOOK_S = 0.02
STOP_S = 15.0
"""From SIGTERM to SIGKILL: leaving a run takes at most ten seconds."""
LAST_LINES_S = 2.0
"""How long the output of a copy that has ended is waited for: a child of its own may hold it."""


def check_script() -> None:
    """ConfigError where there is no script to run again, or where it would never end."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    scripted = "-c" in sys.orig_argv if file is None else file != "<stdin>"
    if not sys.executable or not scripted or hasattr(sys, "ps1"):
        raise ConfigError(
            "decentral.local runs the same script several times: call it from a script, not from "
            "a prompt or a notebook",
            phase="local",
        )
    if multiprocessing.parent_process() is not None:
        raise ConfigError(
            "decentral.local was called in a worker process, which imports the script again: call "
            'it under `if __name__ == "__main__":`',
            phase="local",
        )


class Copies:
    """The parent's end. Methods are the user's thread's; two threads per copy pass its words on."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pipes: dict[str, IO[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._printing = threading.Lock()
        self._stopped: set[str] = set()
        """Those that were told to end: how they do is no failure."""

    def start(self, names: Mapping[int, str], word: str, env: Mapping[str, str]) -> None:
        """One copy per number, with its name and what to add to its environment."""
        for number, name in names.items():
            readable, writable = os.pipe()
            try:
                process = subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[readable],
                    env={**os.environ, **env, "PYTHONUNBUFFERED": "1", MARK: str(readable)},
                    # Ctrl-C is the parent's: it tells the copies, which then leave in silence.
                    process_group=0,
                )
            except OSError as error:
                os.close(writable)
                says = f"no further copy of the script can be started: {error}"
                raise DecentralError(says, peer=name, phase="local") from error
            finally:
                os.close(readable)
            self._processes[name] = process
            self._pipes[name] = os.fdopen(writable, "wb", buffering=0)
            self._tell(name, {"number": number, "word": word})
            for stream, out in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                reader = threading.Thread(
                    target=self._pass_on, args=(name, stream, out), name=f"{out} of {name}"
                )
                reader.daemon = True
                reader.start()
                self._readers.append(reader)

    @property
    def living(self) -> int:
        return sum(process.poll() is None for process in self._processes.values())

    def call(self, what: str) -> None:
        """To all: COME or GO."""
        for name in self._pipes:
            self._tell(name, what)

    def wait(self) -> None:
        """Until all have ended by themselves. An exception (Ctrl-C) stops them first."""
        try:
            while self.living:
                time.sleep(LOOK_S)
        except BaseException:
            self.stop()
            raise
        self._close()

    def stop(self) -> None:
        """End them: SIGTERM, with which they leave the run, and SIGKILL for those who hang."""
        for name, process in self._processes.items():
            if process.poll() is None:
                self._stopped.add(name)
                process.terminate()
        deadline = time.monotonic() + STOP_S
        try:
            while self.living and time.monotonic() < deadline:
                time.sleep(LOOK_S)
        finally:  # a second Ctrl-C waits no longer
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
            self._close()

    def failures(self) -> dict[str, str]:
        """How those ended that failed, by name. Who was stopped from here has not."""
        statuses = {name: process.poll() for name, process in self._processes.items()}
        return {
            name: _how(status)
            for name, status in statuses.items()
            if status and name not in self._stopped
        }

    # ------------------------------------------------------------------ inside

    def _tell(self, name: str, what: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its status says more
            self._pipes[name].write(json.dumps(what).encode() + b"\n")

    def _pass_on(self, name: str, stream: IO[bytes], out: str) -> None:
        for line in stream:
            self._print(f"{name} | {line.decode(errors='replace').rstrip()}", out)
        if out == "stderr":
            status = self._processes[name].wait()
            if status and name not in self._stopped:
                self._print(f"decentral: {name} {_how(status)}; the others go on without it", out)

    def _print(self, line: str, out: str) -> None:
        # The copy must never wait for, or end by, what becomes of its words here.
        with self._printing, contextlib.suppress(OSError, ValueError):
            print(line, file=getattr(sys, out), flush=True)

    def _close(self) -> None:
        deadline = time.monotonic() + LAST_LINES_S
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes.values():
            for stream in (process.stdout, process.stderr):
                # A reader that still waits holds the stream's lock: closing would wait with it.
                if stream is not None and not any(r.is_alive() for r in self._readers):
                    stream.close()


class Origin:
    """A copy's end: what the parent says."""

    def __init__(self, number: int, word: str, pipe: IO[bytes]) -> None:
        self.number, self.word = number, word
        self._heard = {what: threading.Event() for what in (COME, GO)}
        self._pipe = pipe
        threading.Thread(target=self._listen, name="parent's pipe", daemon=True).start()

    @classmethod
    def find(cls) -> Origin | None:
        """None: this process is no copy. Takes the mark away, so that a child has none."""
        mark = os.environ.pop(MARK, None)
        if mark is None:
            return None
        try:
            descriptor = int(mark)
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise ValueError(mark)
            os.set_inheritable(descriptor, False)
            pipe = os.fdopen(descriptor, "rb")
            said = json.loads(pipe.readline())
            return cls(int(said["number"]), str(said["word"]), pipe)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{MARK} is set, but whoever set it is not there: unset it", phase="local"
            ) from error

    def wait(self, what: str, meanwhile: Callable[[], bool] = lambda: True) -> None:
        """For COME or GO, or until `meanwhile()` (called every now and then) is false."""
        heard = self._heard[what]
        while not heard.is_set() and meanwhile():
            heard.wait(LOOK_S)

    def _listen(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self._heard[json.loads(line)].set()
        os.kill(os.getpid(), signal.SIGTERM)  # leaves the run, if it can
        time.sleep(STOP_S)
        os.kill(os.getpid(), signal.SIGKILL)


def _how(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"
