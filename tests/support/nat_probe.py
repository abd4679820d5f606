"""What plain sockets on a `NatLab` host see of the routers before it: no peer, no native code.

`classify` follows RFC 5780 with TCP: three observers tell how mappings are made, strangers who
knock tell who is let in. `punch` is the simplest simultaneous open there is.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from decentral.bench.lab import inside
from decentral.bench.nat_lab import NatHost

PATIENCE_S = 0.4
ANSWER_S = 2.0


def tcp(host: NatHost, port: int = 0) -> socket.socket:
    """A socket on that host, at a port that others of it may share."""
    family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
    with inside(Path("/run/netns") / host.netns):
        made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Closing resets: no TIME-WAIT is in the way of the next test.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    made.bind((host.address, port))
    return made


@contextlib.contextmanager
def listening(host: NatHost, port: int = 0) -> Iterator[socket.socket]:
    with tcp(host, port) as listener:
        listener.listen(8)
        listener.settimeout(ANSWER_S)
        yield listener


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def knocks(
    host: NatHost, at: tuple[str, int], port: int = 0, patience_s: float = PATIENCE_S
) -> bool:
    """Whether a new connection from this host gets there."""
    with tcp(host, port) as sock:
        sock.settimeout(patience_s)
        try:
            sock.connect(at)
        except OSError:
            return False
        return True


def observed(
    host: NatHost, port: int, listener: socket.socket
) -> tuple[socket.socket, tuple[str, int]]:
    """Call a listener from that port: the open connection, and what the far end sees of it."""
    sock = tcp(host, port)
    sock.settimeout(ANSWER_S)
    sock.connect(listener.getsockname()[:2])
    accepted, address = listener.accept()
    accepted.close()
    return sock, (str(address[0]), int(address[1]))


@dataclass(frozen=True)
class Behaviour:
    """In RFC 4787's words."""

    mapping: str
    filtering: str
    keeps_port: bool
    outside: str
    """The address that others see."""


def classify(host: NatHost, one: NatHost, other: NatHost) -> Behaviour:
    """`one` and `other` are public hosts, and play two observers and three strangers."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(listening(one))
        same_address = stack.enter_context(listening(one))
        elsewhere = stack.enter_context(listening(other))
        inner = stack.enter_context(listening(host))
        port = port_of(inner)
        calls = []
        for listener in (first, same_address, elsewhere):
            sock, seen = observed(host, port, listener)
            stack.enter_context(sock)
            calls.append(seen)
    if calls[0] == calls[1] == calls[2]:
        mapping = "endpoint-independent"
    else:
        mapping = "address-dependent" if calls[0] == calls[1] else "address-and-port-dependent"
    with contextlib.ExitStack() as stack:  # a fresh mapping, that only `first` was called through
        first = stack.enter_context(listening(one))
        inner = stack.enter_context(listening(host))
        sock, at = observed(host, port_of(inner), first)
        stack.enter_context(sock)
        if knocks(other, at):
            filtering = "endpoint-independent"
        else:
            filtering = "address-dependent" if knocks(one, at) else "address-and-port-dependent"
        return Behaviour(mapping, filtering, at[1] == port_of(inner), at[0])


@dataclass
class Puncher:
    """One end: a port that is listened on, and what it looks like from outside."""

    host: NatHost
    listener: socket.socket
    outside: tuple[str, int]


@contextlib.contextmanager
def puncher(host: NatHost, observer: NatHost) -> Iterator[Puncher]:
    with listening(observer) as far, listening(host) as near:
        sock, seen = observed(host, port_of(near), far)
        with sock:
            yield Puncher(host, near, seen)


def punch(one: Puncher, other: Puncher, patience_s: float = 1.0) -> float | None:
    """Both call the other's outer endpoint from the port that they listen on, again and again:
    after how long bytes got across, or None."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        calling: dict[socket.socket, tuple[Puncher, Puncher]] = {}
        while time.monotonic() < began + patience_s:
            for me, to in ((one, other), (other, one)):
                if not any(ends[0] is me for ends in calling.values()):
                    sock = stack.enter_context(tcp(me.host, port_of(me.listener)))
                    sock.setblocking(False)
                    status = sock.connect_ex(to.outside)
                    if status in (0, errno.EINPROGRESS):
                        calling[sock] = (me, to)
            open_: list[socket.socket] = []
            ready = select.select([one.listener, other.listener], list(calling), [], 0.02)
            for sock in ready[1]:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    del calling[sock]
                    sock.close()
                else:
                    open_.append(sock)
            for listener in ready[0]:
                open_.append(stack.enter_context(listener.accept()[0]))
            if len(open_) >= 2 and _talk(open_):
                return time.monotonic() - began
    return None


def _talk(ends: list[socket.socket]) -> bool:
    """Whether one of these hears what another says."""
    for number, sock in enumerate(ends):
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(bytes([number]))
    heard, _, _ = select.select(ends, [], [], 0.2)
    for sock in heard:
        with contextlib.suppress(OSError):
            if (got := sock.recv(1)) and ends[got[0]] is not sock:
                return True
    return False
