"""Local control: commands and telemetry over unix sockets of this user."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
import uvloop
import zmq
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import (
    ConfigError,
    DecentralError,
    DiskError,
    ProtocolError,
    UnreachableError,
)
from decentral.peer import packing
from decentral.peer.control import ControlClient, pack_request, unpack_request
from decentral.peer.home import HomePaths
from decentral.peer.runtime.control import ControlServer

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, as the runtime has it."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = new_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, what: Awaitable[T]) -> T:
        async def wrapped() -> T:
            return await what

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"you_said": request}


def full(request: dict[str, Any]) -> dict[str, Any]:
    raise DiskError("the disk is full", peer="peer:x", phase="checkpoint")


def bug(request: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("oops")


async def never(request: dict[str, Any]) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


HANDLERS = {
    "status": lambda request: {"round": 3, "state_hash": b"\x01\x02"},
    "echo": echo,
    "full": full,
    "bug": bug,
    "never": never,
    "unpackable": lambda request: {"x": object()},
}


@contextmanager
def serving(
    path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> Iterator[tuple[ControlServer, Loop]]:
    path.mkdir(exist_ok=True)
    loop = Loop(new_loop)
    server = ControlServer(path, HANDLERS)
    try:
        loop.run(server.start())
        yield server, loop
    finally:
        loop.run(server.close())
        loop.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_commands(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with serving(tmp_path / "h", new_loop), ControlClient(tmp_path / "h") as client:
        assert client.alive()
        assert client.request("status") == {"round": 3, "state_hash": b"\x01\x02"}
        assert client.request("echo", text="é", number=2**63) == {
            "you_said": {"text": "é", "number": 2**63}
        }


def test_errors_arrive_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path / "h"), ControlClient(tmp_path / "h") as client:
        with pytest.raises(DiskError) as caught:
            client.request("full")
        assert (caught.value.says, caught.value.peer) == ("the disk is full", "peer:x")
        assert caught.value.phase == "checkpoint"
        with pytest.raises(ConfigError, match=r"knows no command 'dance' .it knows: bug, echo"):
            client.request("dance")
        for broken in ("bug", "unpackable"):
            with pytest.raises(DecentralError, match="the peer failed at this command"):
                client.request(broken)
        assert client.request("status")["round"] == 3  # and it goes on
    assert "a control command failed" in caplog.text


def test_a_slow_command_does_not_block_others(tmp_path: Path) -> None:
    with serving(tmp_path / "h"), ControlClient(tmp_path / "h") as client:
        with pytest.raises(UnreachableError, match=r"did not answer 'never' within 0.05 s"):
            client.request("never", timeout_s=0.05)
        assert client.request("status")["round"] == 3


def test_nobody_there(tmp_path: Path) -> None:
    with ControlClient(tmp_path / "none") as client:
        assert not client.alive()
        with pytest.raises(ConfigError, match=r"no peer runs with home .*/none"):
            client.request("status")
    with serving(tmp_path / "h"):
        pass
    with ControlClient(str(tmp_path / "h")) as client, pytest.raises(ConfigError):
        client.request("status")


def test_a_dead_peers_socket(tmp_path: Path) -> None:
    """SIGKILL leaves the file behind: the client says so, and the next peer takes its place."""
    import socket

    (tmp_path / "h").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "h" / "control.sock"))
    with ControlClient(tmp_path / "h") as client:
        with pytest.raises(ConfigError, match="no peer runs with home"):
            client.request("status")
        with serving(tmp_path / "h"):
            assert client.request("status")["round"] == 3


def test_sockets_are_private_and_removed(tmp_path: Path) -> None:
    paths = HomePaths(tmp_path / "h")
    with serving(paths.path):
        for socket in (paths.control_socket, paths.telemetry_socket):
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert not paths.control_socket.exists() and not paths.telemetry_socket.exists()


def test_a_home_with_a_long_path(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with serving(path), ControlClient(path) as client:
        assert client.request("status")["round"] == 3
    HomePaths(path).control_socket.parent.rmdir()


def test_a_place_that_cannot_be_bound(tmp_path: Path) -> None:
    loop = Loop(asyncio.new_event_loop)
    server = ControlServer(tmp_path / "missing", {})
    try:
        with pytest.raises(ConfigError, match="cannot serve local control at"):
            loop.run(server.start())
        loop.run(server.close())
    finally:
        loop.close()


def test_telemetry(tmp_path: Path) -> None:
    with serving(tmp_path / "h") as (server, loop), ControlClient(tmp_path / "h") as client:
        stop = threading.Event()

        def publish() -> None:  # again and again: a subscription takes a moment to arrive
            server.publish("round", {"round": 4, "hash": b"\x00"})
            server.publish("link", {"peer": "peer:x"})
            if not stop.is_set():
                loop.loop.call_later(0.005, publish)

        feed = client.telemetry(
            "round", timeout_s=10, ready=lambda: loop.loop.call_soon_threadsafe(publish)
        )
        seen = [next(feed) for _ in range(3)]
        stop.set()
        feed.close()
        assert seen == [("round", {"round": 4, "hash": b"\x00"})] * 3


def test_telemetry_ends_when_it_is_quiet(tmp_path: Path) -> None:
    with serving(tmp_path / "h"), ControlClient(tmp_path / "h") as client:
        assert list(client.telemetry(timeout_s=0.02)) == []


def test_publishing_to_nobody_or_after_the_end_is_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "h") as (server, _):
        server.publish("round", {})
    server.publish("round", {})


def test_strangers_on_the_socket_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with serving(path), ControlClient(path) as client, zmq.Context() as context:
        with context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(f"ipc://{HomePaths(path).control_socket}")
            for frames in ([b"x"], [b"", b""], [b"", b"\xc1"], [b"a", b"b", b"c"], [b""] * 9):
                stranger.send_multipart(frames)
            stranger.send_multipart([b"", packing.pack({"v": 2, "command": "status"})])
            replies = []
            while len(replies) < 3 and stranger.poll(2000):
                replies.append(msgpack.unpackb(stranger.recv_multipart()[-1]))
            assert [reply["ok"] for reply in replies] == [False] * 3
            assert any("version 2, this peer reads 1" in reply["error"] for reply in replies)
        assert client.request("status")["round"] == 3


def test_requests_survive_the_wire() -> None:
    assert unpack_request(pack_request("status", {"a": 1})) == ("status", {"a": 1})
    # Arguments cannot pose as the command or the version.
    packed = pack_request("status", {"command": "leave", "v": 9})
    assert unpack_request(packed) == ("status", {})


nested = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=100) | nested.map(packing.pack) | nested.map(
    lambda command: packing.pack({"v": 1, "command": command})
))  # fmt: skip
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    try:
        command, arguments = unpack_request(data)
        assert isinstance(command, str) and isinstance(arguments, dict)
    except ProtocolError:
        pass
