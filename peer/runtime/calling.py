"""Carries out calls between peers: what `Caller` and `Callee` ask for, over links and blobs.

    Mesh.call ──▶ Caller ─┐                        ┌─▶ the caller's future
                          ├─▶ links, blobs ─▶ … ───┤
    handlers ◀── Callee ──┘   (loop's thread)      └─▶ a handler, on a thread of the pool

Handlers wait for one another on few threads; the loop never waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from decentral.errors import CallError, ConfigError, DecentralError, ProtocolError
from decentral.peer.calls.actions import (
    CallAction,
    Connect,
    Ended,
    Expect,
    Forget,
    Run,
    SendBody,
    Tell,
)
from decentral.peer.calls.callee import Callee
from decentral.peer.calls.caller import Caller
from decentral.peer.calls.messages import (
    MAX_BODY_BYTES,
    MAX_METHOD_BYTES,
    Answer,
    Failed,
    Send,
    unpack_message,
)
from decentral.peer.member import DEAD, LEFT, NOBODY
from decentral.peer.transfer import KeyMaker
from decentral.types import PeerId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.peer.runtime.node import Node

Handler: TypeAlias = Callable[[PeerId, bytes], bytes]
THREADS = 4
PRIORITY = 1
"""One for all that is said about calls: it arrives in the order in which it was said."""


class Calling:
    """A node's. Lives on the loop's thread, but for `serve`."""

    def __init__(self, node: Node, keys: KeyMaker) -> None:
        self._node = node
        self._handlers: dict[str, Handler] = {}
        self._caller = Caller(keys)
        self._callee = Callee(keys, self._handlers.__contains__)
        self._futures: dict[int, Future[bytes]] = {}
        self._room: dict[int, NDArray[np.uint8]] = {}
        """By key: where a blob is to land."""
        self._pool = ThreadPoolExecutor(THREADS, "decentral calls")  # starts threads when needed
        self._timer: asyncio.TimerHandle | None = None

    def serve(self, method: str, handler: Handler) -> None:
        """On any thread. ConfigError for a name that nobody could call."""
        _check_name(method)
        self._handlers[method] = handler

    def call(
        self, peer: PeerId, method: str, body: bytes, timeout_s: float, future: Future[bytes]
    ) -> None:
        """See `Mesh.call`."""
        node = self._node
        try:
            _check_name(method)
            if peer == node.me:
                raise ConfigError("that is this very peer: what it serves is at hand", phase="call")
            if not isinstance(body, bytes) or len(body) > MAX_BODY_BYTES:
                size = len(body) if isinstance(body, bytes) else type(body).__name__
                says = f"a call's body is bytes, up to {MAX_BODY_BYTES} of them, not {size}"
                raise ConfigError(says, phase="call")
            if node.closed:
                raise CallError("this peer has left the run", peer=peer, phase="link")
        except DecentralError as error:
            _settle(future, error)
            return
        number, actions = self._caller.call(
            peer,
            method,
            body,
            linked=node.links.get(peer) is not None,
            timeout_s=timeout_s,
            now=self._now(),
        )
        self._futures[number] = future
        future.add_done_callback(partial(self._settled, number))
        self._do(actions)

    def _settled(self, number: int, future: Future[bytes]) -> None:
        """On any thread: its user may have called it off."""
        if future.cancelled():
            self._soon(self._cancelled, number)

    def _cancelled(self, number: int) -> None:
        self._futures.pop(number, None)
        self._do(self._caller.cancel(number))

    # ----------------------------------------------------------------------------- what came

    def link_up(self, peer: PeerId) -> None:
        self._do(self._caller.link_up(peer))

    def link_down(self, peer: PeerId, says: str) -> None:
        self._do([*self._caller.link_down(peer, says), *self._callee.link_down(peer)])

    def message(self, peer: PeerId, payload: bytes) -> None:
        try:
            said = unpack_message(payload)
            if isinstance(said, Send | Answer | Failed):
                self._do(self._caller.received(peer, said))
            else:
                self._do(self._callee.received(peer, said, self._now()))
        except ProtocolError as error:
            self._node.links.refuse(peer, error.says)

    def blob(self, key: int, error: DecentralError | None) -> None:
        """A body has come, or failed."""
        room = self._room.pop(key, None)
        if room is None:
            return
        if error is None:
            body = room.tobytes()
            actions = self._caller.arrived(key, body)
            self._do(self._callee.arrived(key, body) or [] if actions is None else actions)
            return
        actions = self._caller.lost(key, error.says)
        if actions is None:
            actions = self._callee.lost(key, error.says, self._now())
        self._do(actions or [])
        if isinstance(error, ProtocolError) and error.peer is not None:
            self._node.links.refuse(error.peer, error.says)

    def blob_sent(self, key: int) -> None:
        self._do(self._callee.sent(key, self._now()) or [])

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._do(self._caller.close())
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------------- actions

    def _do(self, actions: Sequence[CallAction]) -> None:
        for action in actions:
            match action:
                case Tell(peer, message):
                    self._node.links.send(peer, message, PRIORITY)
                case Connect(peer) if self._is_gone(peer):
                    self._do(
                        self._caller.down(peer, "it has died or left, as far as is known here")
                    )
                case Connect(peer):
                    self._node.want_links((peer,))
                case SendBody(peer, key, body):
                    link = self._node.links.get(peer)
                    if link is not None:  # else its link-down is on the way
                        array = np.frombuffer(body, np.uint8)
                        self._node.endpoint.send_blob(link.id, key, array)
                case Expect():
                    self._expect(action)
                case Forget(key):
                    self._room.pop(key, None)
                    self._node.endpoint.cancel_blob(key)
                case Run():
                    self._run(action)
                case Ended(number, outcome):
                    future = self._futures.pop(number, None)
                    if future is not None:
                        _settle(future, outcome)
        self._set_timer()

    def _is_gone(self, peer: PeerId) -> bool:
        core = self._node.core
        return core is not None and core.membership.members.get(peer, NOBODY).state in (DEAD, LEFT)

    def _expect(self, wanted: Expect) -> None:
        link = self._node.links.get(wanted.peer)
        if link is None:
            return  # its link-down is on the way
        room = self._room[wanted.key] = np.empty(wanted.size, np.uint8)
        self._node.endpoint.post_blob(link.id, wanted.key, room)
        self._node.links.send(wanted.peer, wanted.message, PRIORITY)

    def _run(self, run: Run) -> None:
        if self._node.closed:
            return
        job = self._pool.submit(_handle, self._handlers[run.method], run)
        job.add_done_callback(lambda job: self._soon(self._finished, run, job))

    def _finished(self, run: Run, job: Future[bytes]) -> None:
        if self._node.closed:
            return
        error = job.exception()
        failed = None if error is None else ("handler", str(error) or type(error).__name__)
        self._do(self._callee.finished(run.ticket, failed or job.result(), self._now()))

    # ---------------------------------------------------------------------------------- time

    def _now(self) -> float:
        return self._node.loop.time()

    def _soon(self, function: Callable[..., Any], *args: Any) -> None:
        """From any thread. Once the loop has ended there is nobody left to care."""
        with suppress(RuntimeError):
            self._node.loop.call_soon_threadsafe(function, *args)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [one.next_timer() for one in (self._caller, self._callee)]
        due = min((one for one in times if one is not None), default=None)
        if due is not None and not self._node.closed:
            self._timer = self._node.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        self._do([*self._caller.tick(now), *self._callee.tick(now)])


def _handle(handler: Handler, run: Run) -> bytes:
    """On a thread of the pool."""
    answer = handler(run.peer, run.body)
    if not isinstance(answer, bytes | bytearray | memoryview):
        kind = type(answer).__name__
        raise TypeError(f"the handler of {run.method!r} returned no bytes but {kind}")
    return bytes(answer)


def _check_name(method: str) -> None:
    if not method or not method.isprintable() or len(method.encode()) > MAX_METHOD_BYTES:
        says = f"a method has a name of 1 to {MAX_METHOD_BYTES} printable bytes, not {method!r}"
        raise ConfigError(says, phase="call")


def _settle(future: Future[bytes], outcome: bytes | DecentralError) -> None:
    if future.done() or not future.set_running_or_notify_cancel():
        return  # its user has called it off
    if isinstance(outcome, bytes):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
