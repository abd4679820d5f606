"""Peers as child processes: what the demo, the harnesses and the tests drive.

A `PeerProcess` is ``decentral peer --json``; its event stream is read by a thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from decentral.cli.fork_server import Forked
from decentral.control_client import ask
from decentral.errors import DecentralError

Launch: TypeAlias = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Forked]
"""Arguments, what to add to the environment, and where stderr goes."""


class PeerProcess:
    """One ``decentral peer`` on this machine, seen through its events."""

    def __init__(
        self,
        name: str,
        home: Path,
        args: Sequence[str],
        *,
        prefix: Sequence[str] = (),
        listen: str = "127.0.0.1:0",
        env: dict[str, str] | None = None,
        program: Sequence[str] = ("decentral", "peer"),
        launch: Launch | None = None,
    ) -> None:
        """`prefix` goes before the command, e.g. ``ip netns exec NAME``; `program` is a module
        and its first arguments. Both are the fork server's business where that launches."""
        self.name, self.home = name, home
        home.mkdir(parents=True, exist_ok=True)
        self._log_path = home / "stderr.log"
        self._log = self._log_path.open("ab")
        self._seen: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        words = ["--json", "--name", name, "--home", str(home), "--listen", listen, *args]
        env = {"OMP_NUM_THREADS": "1", **(env or {})}
        self.process: subprocess.Popen[bytes] | Forked
        try:
            if launch is not None:
                self.process = launch(words, env, self._log)
            else:
                self.process = subprocess.Popen(
                    [*prefix, sys.executable, "-P", "-m", *program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    env={**os.environ, **env},
                )
        except BaseException:
            self._log.close()
            raise
        self._reader = threading.Thread(target=self._read, name=f"events of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by a SIGKILL in mid-line
            event["seen_at"] = time.monotonic()
            with self._changed:
                self._seen.append(event)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    # --------------------------------------------------------------------------- what it says

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        with self._changed:
            return [event for event in self._seen if kind is None or event["event"] == kind]

    def last(self, kind: str) -> dict[str, Any] | None:
        found = self.events(kind)
        return found[-1] if found else None

    @property
    def round(self) -> int:
        last = self.last("round")
        return int(last["round"]) if last else 0

    @property
    def peer_id(self) -> str:
        listening = self.last("listening")
        return str(listening["peer"]) if listening else ""

    def wait_for(self, kind: str, *, timeout_s: float, where: Any = None) -> dict[str, Any]:
        """The first event of this kind (for which ``where(event)`` holds), seen or yet to come."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for event in self._seen:
                    if event["event"] == kind and (where is None or where(event)):
                        return event
                left = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if left <= 0 or ended:
                    why = "ended" if ended else f"did not within {timeout_s:.0f} s"
                    raise DecentralError(
                        f"{self.name} was to say {kind!r} and {why}: {self.last_words()}",
                        phase="wait",
                    )
                self._changed.wait(min(left, 0.5))

    def wait_round(self, round_: int, *, timeout_s: float) -> dict[str, Any]:
        return self.wait_for("round", timeout_s=timeout_s, where=lambda e: e["round"] >= round_)

    def last_words(self) -> str:
        text = self._log_path.read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "it printed no error"

    def stderr(self) -> str:
        return self._log_path.read_text(errors="replace")

    # --------------------------------------------------------------------------- what we do

    def invite(self) -> str:
        """A join word, asked of the running peer."""
        return str(ask(self.home, "invite")["join"])

    def status(self) -> dict[str, Any]:
        return ask(self.home, "status")

    def send(self, sig: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sig)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM: leave cleanly. Returns the exit status."""
        self.send(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def exit_status(self) -> int | None:
        return self.process.poll()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        if self.process.stdout:
            self.process.stdout.close()
        self._log.close()
