"""A crowd of strangers, each with a connection open on which a byte goes out now and then.

with Dribblers("127.0.0.1:4242", 1000) as crowd: …      whoever is dropped comes again
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time

from decentral.peer.joinword import split_address

EVERY_S = 10.0
AGAIN_S = 2.0
"""Who is dropped waits so long before it comes again."""
_FIRST = b"\x16"
"""As a TLS ClientHello begins, and so slowly that it never ends."""


class Dribblers:
    """One thread for all of them."""

    def __init__(self, address: str, count: int) -> None:
        self._to = split_address(address)
        self._count = count
        self.opened = 0
        """Connections so far."""
        self._since: dict[socket.socket, float] = {}
        self._due: dict[socket.socket, float] = {}
        self._lock = threading.Lock()  # guards _since
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dribblers", daemon=True)

    def __enter__(self) -> Dribblers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def older_than_s(self, seconds: float) -> int:
        """How many connections the other end has put up with for longer."""
        now = time.monotonic()
        with self._lock:
            return sum(now - since > seconds for since in self._since.values())

    def _run(self) -> None:
        again: list[float] = [0.0] * self._count
        with selectors.DefaultSelector() as selector:
            while not self._ending.is_set():
                now = time.monotonic()
                due = [at for at in again if at <= now]
                again = [at for at in again if at > now]
                for _ in due:
                    if not self._open(selector, now):
                        again.append(now + AGAIN_S)
                for key, _ in selector.select(timeout=0.05):
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    if self._dropped(one):
                        self._close(selector, one)
                        again.append(time.monotonic() + AGAIN_S)
                for one in [s for s, at in self._due.items() if at <= now]:
                    self._due[one] = now + EVERY_S
                    with contextlib.suppress(OSError):
                        one.send(b"\x03")
            for one in list(self._since):
                self._close(selector, one)

    def _open(self, selector: selectors.BaseSelector, now: float) -> bool:
        one = socket.socket()
        one.settimeout(1.0)
        try:
            one.connect(self._to)
            one.setblocking(False)
            one.send(_FIRST)
        except OSError:
            one.close()
            return False
        self.opened += 1
        with self._lock:
            self._since[one] = now
        self._due[one] = now + EVERY_S
        selector.register(one, selectors.EVENT_READ)
        return True

    @staticmethod
    def _dropped(one: socket.socket) -> bool:
        try:
            return one.recv(4096) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _close(self, selector: selectors.BaseSelector, one: socket.socket) -> None:
        selector.unregister(one)
        with self._lock:
            del self._since[one]
        del self._due[one]
        one.close()
