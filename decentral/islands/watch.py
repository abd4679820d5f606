"""Who of an island's processes is alive, and what the one that failed had to say.

    rank 1 ──▶ rank 0 ◀── rank 2        one TCP connection each, silent while all is well
                 │
                 └─ "rank 2 is gone" ─▶ rank 1

A collective that fails says that a connection was closed, or nothing for minutes; never who it was.
Here a process that dies closes its connection, and one that fails says why first. The connections
stay inside the island and carry nothing else; a 16-byte secret keeps strangers out.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgpack

from decentral.errors import ConfigError, PeerFailedError
from decentral.islands.talk import Talk

_CONNECT_S = 20.0
_MAX_BYTES = 4096
_SECRET_BYTES = 16
_LAST_WORDS_S = 2.0
LOOPBACK = "127.0.0.1"
BY_HAND = ("interrupted", "terminated")
"""What `lifetime.why_it_ended` says of a signal."""


class Watch:
    """Made by all ranks at the same time. `failure` and `close` are for the user's thread."""

    def __init__(self, talk: Talk) -> None:
        """Raises a ConfigError where the ranks cannot connect to rank 0."""
        self._rank, self._size = talk.rank, talk.size
        self._changed = threading.Condition()
        self._failed: tuple[int, str] | None = None  # guarded by _changed
        self._done: set[int] = set()  # ranks that have said goodbye; guarded by _changed
        self._closed = False  # guarded by _changed
        self._left_at: float | None = None
        self._links: dict[int, socket.socket] = {}
        """Rank 0: one per other rank. The others: that to rank 0."""
        self._meet(talk)
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._work, name="island watch", daemon=True)
        self._thread.start()
        talk.on_beat = self.check

    def check(self) -> None:
        """While this rank waits for all others: raise the failure of one, if there is one; or say
        that one has left, and will not come."""
        failure = self.failure()
        if failure is not None:
            raise failure
        with self._changed:
            left = next(iter(self._done), None)
        if left is None:
            self._left_at = None
        elif self._left_at is None:
            self._left_at = time.monotonic()  # perhaps what it did last is only just arriving
        elif time.monotonic() > self._left_at + _LAST_WORDS_S:
            raise PeerFailedError(
                f"rank {left} of this island has left the run while rank {self._rank} goes on: all "
                "ranks of an island make the same steps and end together",
                phase="island",
            )

    def ended_by_hand(self) -> bool:
        """Whether the other rank was told to end: then this one has been told, too."""
        with self._changed:
            return self._failed is not None and self._failed[1] in BY_HAND

    def explain(self, error: BaseException) -> PeerFailedError | None:
        """The failure of another rank that must have led to `error`, if there is one."""
        failure = self.failure(wait_s=1.0)
        told = isinstance(error, SystemExit | KeyboardInterrupt) and self.ended_by_hand()
        return None if told else failure

    def failure(self, wait_s: float = 0.0) -> PeerFailedError | None:
        """The first rank that died or failed, if one has; news is waited for that long."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed is not None, wait_s)
            if self._failed is None:
                return None
            rank, why = self._failed
        what = f"has failed: {why}" if why else "is gone: its process has died"
        return PeerFailedError(
            f"rank {rank} of this island {what}; an island trains with all its ranks, so rank "
            f"{self._rank} leaves the run, too",
            phase="island",
        )

    def close(self, why: str = "") -> None:
        """Say goodbye (or why this rank fails). Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            why = "" if self._failed is not None else why
        for link in self._links.values():
            _say(link, self._rank, why)
        if self._rank == 0 and not why:
            self._wait_for_goodbyes()
        with suppress(OSError):
            self._waker.send(b".")
        self._thread.join(5.0)
        for link in (*self._links.values(), self._woken, self._waker):
            link.close()

    # ------------------------------------------------------------------ connecting

    def _meet(self, talk: Talk) -> None:
        host = _this_machine()
        if talk.rank == 0:
            secret = os.urandom(_SECRET_BYTES)
            hosts = _everybody(talk, host)
            near = all(one == host for one in hosts)
            with socket.create_server((LOOPBACK if near else "", 0), backlog=talk.size) as server:
                addresses = [LOOPBACK] if near else _own_addresses()
                told = (secret, server.getsockname()[1], addresses)
                talk.share(msgpack.packb(told))
                self._accept(server, secret)
            return
        _everybody(talk, host)
        secret, port, addresses = msgpack.unpackb(talk.share(None))
        self._links[0] = _dial(addresses, port, secret, talk.rank)

    def _accept(self, server: socket.socket, secret: bytes) -> None:
        deadline = time.monotonic() + _CONNECT_S
        while len(self._links) < self._size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = server.accept()
            except TimeoutError as error:
                raise ConfigError(
                    f"only {len(self._links) + 1} of the island's {self._size} ranks have "
                    f"connected to rank 0 within {_CONNECT_S:.0f} s",
                    phase="island",
                ) from error
            link.settimeout(5.0)
            hello = b""
            with suppress(OSError):
                while len(hello) < _SECRET_BYTES + 4:
                    more = link.recv(_SECRET_BYTES + 4 - len(hello))
                    if not more:
                        break
                    hello += more
            rank = int.from_bytes(hello[_SECRET_BYTES:], "big")
            known = hello[:_SECRET_BYTES] == secret and 0 < rank < self._size
            if not known or rank in self._links:
                link.close()
                continue
            link.sendall(secret)
            self._links[rank] = link

    # ------------------------------------------------------------------ the watch's thread

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for rank, link in self._links.items():
                link.settimeout(5.0)
                selector.register(link, selectors.EVENT_READ, rank)
            unpackers = {
                rank: msgpack.Unpacker(max_buffer_size=2 * _MAX_BYTES) for rank in self._links
            }
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    rank, link = int(key.data), self._links[int(key.data)]
                    try:
                        data = link.recv(_MAX_BYTES)
                    except OSError:
                        data = b""
                    if not data:
                        selector.unregister(link)
                        self._heard(rank, "", over=True)
                        continue
                    unpackers[rank].feed(data)
                    for about, why, fails in unpackers[rank]:
                        if fails or why:
                            self._heard(int(about), str(why))
                        else:
                            self._goodbye(int(about))

    def _goodbye(self, rank: int) -> None:
        with self._changed:
            self._done.add(rank)
            self._changed.notify_all()

    def _heard(self, rank: int, why: str, *, over: bool = False) -> None:
        """A rank has failed; or its connection is `over`, which is no news after a goodbye."""
        with self._changed:
            if over and (rank in self._done or self._closed):
                self._done.add(rank)
                self._changed.notify_all()
                return
            first, self._failed = self._failed is None, self._failed or (rank, why)
            self._done.add(rank)
            self._changed.notify_all()
        if first and self._rank == 0:
            for other, link in self._links.items():
                if other != rank:
                    _say(link, rank, why, fails=True)

    def _wait_for_goodbyes(self) -> None:
        # Rank 0 is where all connections end: who still trains would take its end for a death.
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._done) >= self._size - 1 or self._failed is not None, 5.0
            )


def _say(link: socket.socket, rank: int, why: str, *, fails: bool = False) -> None:
    with suppress(OSError):
        link.sendall(msgpack.packb((rank, why[: _MAX_BYTES // 4], fails)))


def _this_machine() -> str:
    """Equal for ranks that share a loopback interface."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _everybody(talk: Talk, host: str) -> list[str]:
    """Every rank's machine."""
    return [talk.share(host.encode() if rank == talk.rank else None, rank).decode()
            for rank in range(talk.size)]  # fmt: skip


def _own_addresses() -> list[str]:
    from decentral.peer.runtime.addresses import reachable

    found = [address.rpartition(":")[0] for address in reachable("0.0.0.0", 1)]
    with suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    return list(dict.fromkeys(found))


def _dial(addresses: list[str], port: int, secret: bytes, rank: int) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_S
    while time.monotonic() < deadline:
        for address in addresses:
            try:
                link = socket.create_connection((address, port), timeout=2.0)
            except OSError:
                continue
            with suppress(OSError):
                link.sendall(secret + rank.to_bytes(4, "big"))
                # Something else may listen on that port of this machine: rank 0 knows the secret.
                if link.recv(_SECRET_BYTES, socket.MSG_WAITALL) == secret:
                    return link
            link.close()
        time.sleep(0.1)
    raise ConfigError(
        f"rank {rank} cannot connect to rank 0 of its island at {', '.join(addresses)}, port "
        f"{port}",
        phase="island",
    )
