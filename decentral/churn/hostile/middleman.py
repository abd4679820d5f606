"""Between two peers: a proxy that records, and one that tampers with TLS records on their way.

    dialer ──▶ Middleman ──▶ peer        records of TLS: 5 bytes of header, then what it announces

What it does is given per direction, as a function of the records that have gone by.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from random import Random
from typing import TypeAlias

from decentral.peer.joinword import split_address

RECORD_HEADER = 5
IDLE_S = 30.0

Tamper: TypeAlias = Callable[[list[bytes]], list[bytes]]
"""Gets all records of one direction so far, the newest last; returns what goes out in its place."""


def untouched(records: list[bytes]) -> list[bytes]:
    return records[-1:]


def at_record(number: int, tamper: Tamper) -> Tamper:
    """Tamper once, with that record; nothing else is changed."""
    return lambda records: tamper(records) if len(records) == number else records[-1:]


def tampers(rng: Random) -> dict[str, Tamper]:
    """What can be done to a record."""

    def flip(records: list[bytes]) -> list[bytes]:
        record = bytearray(records[-1])
        at = rng.randrange(RECORD_HEADER, len(record)) if len(record) > RECORD_HEADER else 0
        record[at] ^= 1 << rng.randrange(8)
        return [bytes(record)]

    def flip_header(records: list[bytes]) -> list[bytes]:
        record = bytearray(records[-1])
        record[rng.randrange(RECORD_HEADER)] ^= 1 << rng.randrange(8)
        return [bytes(record)]

    held: list[bytes] = []

    def reorder(records: list[bytes]) -> list[bytes]:
        if not held:
            held.append(records[-1])
            return []
        return [records[-1], held.pop()]

    return {
        "flip": flip,
        "flip header": flip_header,
        "drop": lambda records: [],
        "duplicate": lambda records: [records[-1]] * 2,
        "replay": lambda records: [rng.choice(records), records[-1]],
        "cut short": lambda records: [records[-1][: rng.randrange(len(records[-1]))]],
        "insert": lambda records: [b"\x17\x03\x03\x00\x40" + rng.randbytes(64), records[-1]],
        "reorder": reorder,
    }


class Middleman:
    """Listens, and passes connections on to one address. `up` is what dialers send."""

    def __init__(self, address: str, up: Tamper = untouched, down: Tamper = untouched) -> None:
        self._to = split_address(address)
        self.tamper: tuple[Tamper, Tamper] = (up, down)
        """For connections from now on."""
        self.recorded: list[tuple[list[bytes], list[bytes]]] = []
        """Per connection, the records of both directions."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Middleman:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(IDLE_S)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to, 5)
            except OSError:
                return
            far.settimeout(IDLE_S)
            near.settimeout(IDLE_S)
            self._open += [near, far]
            records: tuple[list[bytes], list[bytes]] = ([], [])
            self.recorded.append(records)
            up, down = self.tamper
            self._start(_pass_on, near, far, records[0], up)
            self._start(_pass_on, far, near, records[1], down)


def _pass_on(source: socket.socket, sink: socket.socket, seen: list[bytes], tamper: Tamper) -> None:
    """Record by record, until either end closes; then both are closed."""
    waiting = b""
    try:
        while data := source.recv(1 << 16):
            waiting += data
            while len(waiting) >= RECORD_HEADER:
                size = RECORD_HEADER + int.from_bytes(waiting[3:5], "big")
                if len(waiting) < size:
                    break
                record, waiting = waiting[:size], waiting[size:]
                seen.append(record)
                for one in tamper(seen):
                    sink.sendall(one)
    except OSError:
        pass
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
