"""Python processes without the interpreter's start: forked from one that has imported everything.

    with ForkServer("decentral.bench.sleep_peer") as server:
        PeerProcess("peer-1", home, args, launch=server.launch)

    harness ── arguments, environment, namespace; its stdout, stderr ──▶ server ── fork ──▶ child
            ◀── {"pid"}, and {"pid", "status"} once it has ended ────────┘       MODULE.main(args)

A start costs half a second of a core otherwise: with dozens of peers on two cores, a harness that
starts one every second would measure little else. The server has one thread and no link, so that
a child begins as any process does. A module may have ``prepare()``, which the server calls once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from decentral.errors import DecentralError

PRELOADED = ("decentral._native", "decentral.collectives", "decentral.peer.runtime")
MAX_REQUEST_BYTES = 1 << 20
CLONE_NEWNET = 0x40000000


class Forked:
    """What `subprocess.Popen` is for others, as far as a `PeerProcess` needs it."""

    def __init__(self, pid: int, stdout: IO[bytes]) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # ended, and nobody has told us yet
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, status: int) -> None:
        self.returncode = status
        self._ended.set()


class ForkServer:
    """The harness's end. Its children end with it."""

    def __init__(self, module: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket = ours
        self._started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._children: dict[int, Forked] = {}
        self._early: dict[int, int] = {}  # ended before `launch` had put it down
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="fork server", daemon=True)
        self._reader.start()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def launch(
        self, args: Sequence[str], env: Mapping[str, str], stderr: IO[bytes], netns: str = ""
    ) -> Forked:
        """One more process; `netns` names the network namespace that it lives in."""
        readable, writable = os.pipe()
        request = {"args": list(args), "env": dict(env), "netns": netns}
        try:
            socket.send_fds(
                self._socket, [json.dumps(request).encode()], [writable, stderr.fileno()]
            )
            pid = self._started.get()
        except OSError:
            pid = -1
        finally:
            os.close(writable)
        if pid < 0:
            os.close(readable)
            raise DecentralError("the fork server has ended", phase="launch")
        with self._lock:
            child = Forked(pid, os.fdopen(readable, "rb"))
            if pid in self._early:
                child.ended(self._early.pop(pid))
            else:
                self._children[pid] = child
        return child

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(MAX_REQUEST_BYTES)
            except OSError:
                data = b""
            if not data:
                self._orphaned()
                return
            said = json.loads(data)
            if "status" not in said:
                self._started.put(said["pid"])
                continue
            with self._lock:
                child = self._children.pop(said["pid"], None)
                if child is None:
                    self._early[said["pid"]] = said["status"]
                else:
                    child.ended(said["status"])

    def _orphaned(self) -> None:
        """Nobody will say any more how a child ends."""
        with self._lock:
            for child in self._children.values():
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                child.ended(-signal.SIGKILL)
            self._children.clear()
        self._started.put(-1)

    def close(self) -> None:
        with self._lock:
            left = list(self._children.values())
        for child in left:
            child.kill()
        for child in left:
            child.wait(10)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # the server ends
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:  # still importing: it has no child yet
            self._server.kill()
            self._server.wait()
        self._reader.join(5)
        self._socket.close()


# ------------------------------------------------------------------------- the server's process


def main(argv: Sequence[str]) -> int:
    name, fd = argv
    module = importlib.import_module(name)
    for one in PRELOADED:
        importlib.import_module(one)
    prepare = getattr(module, "prepare", None)
    if prepare is not None:
        prepare()
    gc.collect()
    gc.freeze()  # what all children share is never written to
    child = serve(socket.socket(fileno=int(fd)))
    return 0 if child is None else int(module.main(child))


def serve(harness: socket.socket) -> list[str] | None:
    """In a child: its arguments. In the server: None, once the harness is done."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker.fileno())
    while True:
        ready, _, _ = select.select([harness, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _report_ended(harness)
        if harness not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(harness, MAX_REQUEST_BYTES, 2)
        if not data:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (harness, woken, waker):
                one.close()
            return _become(json.loads(data), fds)
        for fd in fds:
            os.close(fd)
        harness.send(json.dumps({"pid": pid}).encode())


def _report_ended(harness: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        said = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
        harness.send(json.dumps(said).encode())


def _become(request: dict[str, Any], fds: Sequence[int]) -> list[str]:
    for fd, number in zip(fds, (1, 2), strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.update(request["env"])
    if request["netns"]:
        enter(request["netns"])
    return [str(word) for word in request["args"]]


def enter(netns: str) -> None:
    """Move this thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / netns).open() as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            says = f"cannot enter {netns}: {os.strerror(ctypes.get_errno())}"
            raise DecentralError(says, phase="launch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
