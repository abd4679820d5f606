"""The peer's end of local control: commands in, telemetry out. See `decentral.peer.control`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import zmq
import zmq.asyncio

from decentral.errors import ConfigError, DecentralError
from decentral.peer import packing
from decentral.peer.control import MAX_REQUEST_BYTES, pack_error, unpack_request
from decentral.peer.home import HomePaths

_log = logging.getLogger(__name__)
_MAX_RUNNING = 64

Handler: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]] | dict[str, Any]]


class ControlServer:
    """Serves one home's sockets on the running asyncio loop (uvloop or not).

    All methods belong to the loop's thread. The home must be locked: a stale socket of a dead
    process is replaced without asking.
    """

    def __init__(self, home: HomePaths | Path | str, handlers: Mapping[str, Handler]) -> None:
        """`handlers` map a command to a function of its arguments; DecentralError says no."""
        self._home = home if isinstance(home, HomePaths) else HomePaths(home)
        self._handlers = dict(handlers)
        self._context: zmq.asyncio.Context | None = None
        self._router: zmq.asyncio.Socket | None = None
        self._publisher: zmq.Socket[bytes] | None = None
        self._plain: zmq.Context[zmq.Socket[bytes]] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind both sockets. ConfigError if that cannot be."""
        self._home.make_socket_directory()
        self._context = zmq.asyncio.Context()
        self._plain = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        self._router.setsockopt(zmq.LINGER, 0)
        # Plain, not asyncio: a PUB socket never blocks, it drops what a slow reader cannot take.
        self._publisher = self._plain.socket(zmq.PUB)
        self._publisher.setsockopt(zmq.LINGER, 0)
        try:
            _bind_private(self._router, self._home.control_socket)
            _bind_private(self._publisher, self._home.telemetry_socket)
        except (zmq.ZMQError, OSError) as error:
            await self.close()
            raise ConfigError(
                f"cannot serve local control at {self._home.control_socket}: {error}"
            ) from None
        self._serving = asyncio.create_task(self._serve(self._router))

    async def close(self) -> None:
        """Stop serving and remove the sockets. Idempotent."""
        tasks = [*self._running, *([self._serving] if self._serving else [])]
        self._serving = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._router is not None and self._publisher is not None:
            self._router.close(linger=0)
            self._publisher.close(linger=0)
            self._router = self._publisher = None
        for context in (self._context, self._plain):
            if context is not None:
                context.destroy(linger=0)
        self._context = self._plain = None
        for path in (self._home.control_socket, self._home.telemetry_socket):
            with suppress(FileNotFoundError):
                path.unlink()

    def publish(self, topic: str, message: Mapping[str, Any]) -> None:
        """Send telemetry to whoever listens. Never blocks."""
        if self._publisher is not None:
            with suppress(zmq.Again):
                self._publisher.send_multipart(
                    [topic.encode(), packing.pack(dict(message))], zmq.NOBLOCK
                )

    async def _serve(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames: list[bytes] = await router.recv_multipart()
            if len(frames) != 3 or frames[1]:  # sender, empty, request: what a REQ socket sends
                continue
            if len(self._running) >= _MAX_RUNNING:
                busy = DecentralError("too many commands at once", phase="control")
                await router.send_multipart([*frames[:2], pack_error(busy)])
                continue
            task = asyncio.create_task(self._answer(router, frames[:2], frames[2]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(
        self, router: zmq.asyncio.Socket, envelope: list[bytes], request: bytes
    ) -> None:
        try:
            reply = packing.pack({**await self._run(request), "ok": True})
        except DecentralError as error:
            reply = pack_error(error)
        except Exception as error:  # a bug in a handler must not take the peer down
            _log.exception("a control command failed")
            reply = pack_error(
                DecentralError(f"the peer failed at this command: {error!r:.200}", phase="control")
            )
        await router.send_multipart([*envelope, reply])

    async def _run(self, request: bytes) -> dict[str, Any]:
        command, arguments = unpack_request(request)
        handler = self._handlers.get(command)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise ConfigError(f"this peer knows no command {command!r} (it knows: {known})")
        result = handler(arguments)
        return await result if inspect.isawaitable(result) else result


def _bind_private(socket: zmq.Socket[Any], path: Path) -> None:
    """Bind a unix socket that nobody else may open, not even for the moment before a chmod."""
    before = os.umask(0o077)
    try:
        socket.bind(f"ipc://{path}")
    finally:
        os.umask(before)
    path.chmod(0o600)
