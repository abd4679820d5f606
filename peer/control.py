"""Talking to a peer on this machine: what the CLI, the dashboard and the churn harness use.

    client                       peer (peer/runtime/control.py)
    REQ  ── {"v":1,"command":"status",…} ──▶  ROUTER   control.sock
         ◀─ {"ok":true,…} or {"ok":false,"error":…} ──
    SUB  ◀─ topic, {…} ────────────────────  PUB       telemetry.sock

Both are unix sockets (0600) in the peer's home, so the file system decides who may.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

import decentral.errors as errors
from decentral.errors import ConfigError, DecentralError, ProtocolError, UnreachableError
from decentral.peer import packing
from decentral.peer.home import HomePaths

VERSION = 1
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = 16 << 20
_MAX_ITEMS = 100_000


def pack_request(command: str, arguments: Mapping[str, Any]) -> bytes:
    """A request's bytes."""
    return packing.pack({**arguments, "v": VERSION, "command": command})


def unpack_request(data: bytes) -> tuple[str, dict[str, Any]]:
    """(command, arguments); ProtocolError if it is none."""
    request = unpack_map(data, MAX_REQUEST_BYTES)
    version, command = request.pop("v", None), request.pop("command", None)
    if version != VERSION:
        raise ProtocolError(f"a request of version {version!r:.20}, this peer reads {VERSION}")
    return packing.text(command, "a command", 64), request


def unpack_map(data: bytes, max_bytes: int) -> dict[str, Any]:
    """A msgpack map with string keys."""
    value = packing.unpack(data, max_bytes=max_bytes, max_items=_MAX_ITEMS)
    if not isinstance(value, dict) or not all(type(key) is str for key in value):
        raise ProtocolError("a message is not a map with names as keys")
    return value


def pack_error(error: DecentralError) -> bytes:
    """The reply that says why not."""
    return packing.pack({
        "ok": False, "error": error.says, "kind": type(error).__name__,
        "peer": error.peer, "phase": error.phase,
    })  # fmt: skip


def _raised(reply: Mapping[str, Any]) -> DecentralError:
    """The error that the peer reported, of the same class where that is one of ours."""
    kind = getattr(errors, str(reply.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, DecentralError)):
        kind = DecentralError
    says, peer, phase = (reply.get(name) for name in ("error", "peer", "phase"))
    return kind(
        str(says) if says else "the peer refused the command",
        peer=peer if isinstance(peer, str) else None,
        phase=phase if isinstance(phase, str) else None,
    )


class ControlClient:
    """Synchronous; one per thread. Usable as a context manager."""

    def __init__(self, home: HomePaths | Path | str, *, timeout_s: float = 5.0) -> None:
        """`timeout_s` bounds every answer, unless a call says otherwise."""
        self._home = home if isinstance(home, HomePaths) else HomePaths(home)
        self._timeout_s = timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def alive(self) -> bool:
        """Does a peer serve this home?"""
        try:
            self._check_runs()
        except DecentralError:
            return False
        return True

    def request(
        self, command: str, *, timeout_s: float | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Run a command of the peer; its reply without ``ok``.

        Raises the peer's own error if it says no; ConfigError if no peer runs with this home;
        UnreachableError if it does not answer in time.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self._check_runs()
        with self._socket(zmq.REQ) as request:
            request.setsockopt(zmq.LINGER, 0)
            request.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
            request.setsockopt(zmq.RCVTIMEO, max(1, int(timeout_s * 1000)))
            request.setsockopt(zmq.SNDTIMEO, max(1, int(timeout_s * 1000)))
            request.connect(f"ipc://{self._home.control_socket}")
            try:
                request.send(pack_request(command, arguments))
                data = request.recv()
            except zmq.Again:
                raise UnreachableError(
                    f"the peer with home {self._home.path} did not answer {command!r} "
                    f"within {timeout_s:g} s",
                    phase="control",
                ) from None
        reply = unpack_map(data, MAX_REPLY_BYTES)
        if reply.pop("ok", None) is not True:
            raise _raised(reply)
        return reply

    def telemetry(
        self,
        *topics: str,
        timeout_s: float | None = None,
        ready: Callable[[], None] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(topic, message) as the peer publishes them (all topics if none is named).

        Ends when nothing came for `timeout_s`; messages from before the first `next` are not
        seen. `ready` is called once the subscription has been sent.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self._check_runs()
        with self._socket(zmq.SUB) as subscription:
            subscription.setsockopt(zmq.LINGER, 0)
            subscription.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
            for topic in topics or ("",):
                subscription.setsockopt(zmq.SUBSCRIBE, topic.encode())
            subscription.connect(f"ipc://{self._home.telemetry_socket}")
            if ready is not None:
                ready()
            deadline = time.monotonic() + timeout_s
            while (left_s := deadline - time.monotonic()) > 0:
                if not subscription.poll(max(1, int(left_s * 1000))):
                    continue
                frames = subscription.recv_multipart()
                if len(frames) == 2:
                    topic = frames[0].decode("utf-8", "replace")
                    yield topic, unpack_map(frames[1], MAX_REPLY_BYTES)
                deadline = time.monotonic() + timeout_s

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        if self._context is None:
            self._context = zmq.Context()
        return self._context.socket(kind)

    def _check_runs(self) -> None:
        """zmq would wait for a socket to appear; a person wants to know that none is there."""
        path = self._home.control_socket
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(self._timeout_s)
                probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise ConfigError(
                f"no peer runs with home {self._home.path}: start one with decentral peer, "
                "or give its --home"
            ) from None
        except PermissionError:
            raise ConfigError(f"the peer with home {self._home.path} is another user's") from None
        except OSError as error:
            raise UnreachableError(
                f"the peer with home {self._home.path} cannot be asked: {error}", phase="control"
            ) from None
