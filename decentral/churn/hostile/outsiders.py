"""Whoever can reach a peer's port but has no business there: each function is one attempt.

It returns True where the peer ended the connection, or refused; False where it put up with it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from decentral.churn.hostile import wire
from decentral.churn.hostile.middleman import Middleman, at_record, tampers, untouched
from decentral.churn.hostile.mutations import BOMBS
from decentral.churn.hostile.wire import Frame, Papers, Wire, message_frames
from decentral.errors import DecentralError
from decentral.peer import packing
from decentral.peer.joinword import split_address

PATIENCE_S = 9.0
"""Above the 5 s that a peer gives strangers."""
RAW_SIZES = (1, 5, 60, 2000)


class Outsider:
    """With a target, a seed, and keys of its own but no invite."""

    def __init__(self, folder: Path, address: str, rng: Random) -> None:
        self.address, self.rng = address, rng
        self.papers = Papers(folder)
        self._hello = _client_hello(self.papers)
        self.recorded: list[bytes] = []
        """What a real dialer sent in a real session."""

    def attempts(self) -> dict[str, Callable[[], bool]]:
        return {
            "random bytes": self.random_bytes,
            "mutated ClientHello": self.client_hello,
            "valid TLS, nonsense": self.nonsense,
            "valid TLS, huge sizes": self.huge,
            "valid TLS, forged admission": self.forged_admission,
            "clear bulk frame": self.clear_bulk,
            "replayed session": self.replayed,
        }

    # -------------------------------------------------------------- without TLS

    def random_bytes(self) -> bool:
        first = self.rng.choice(
            (b"", b"", b"\x16", b"\x16\x03\x01", b"\x01", b"GET / HTTP/1.1\r\n")
        )
        return self.raw(first + self.rng.randbytes(self.rng.choice(RAW_SIZES)))

    def client_hello(self) -> bool:
        data = bytearray(self._hello)
        for _ in range(self.rng.choice((1, 2, 8))):
            match self.rng.randrange(4):
                case 0:
                    data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                case 1:
                    del data[self.rng.randrange(6, len(data)) :]
                case 2:
                    at = self.rng.randrange(len(data))
                    data[at:at] = self.rng.randbytes(self.rng.randrange(1, 40))
                case 3:
                    data += self.rng.randbytes(self.rng.randrange(1, 200))
        return self.raw(bytes(data))

    def clear_bulk(self) -> bool:
        """Bulk without TLS, which this run does not take, with a token nobody gave."""
        hello = Frame(type=wire.BULK_HELLO, payload=self.rng.randbytes(32), attempt=1)
        return self.raw(hello.encode() + self.rng.randbytes(100))

    def replayed(self) -> bool:
        return self.raw(b"".join(self.recorded)) if self.recorded else True

    def dribble(self, seconds: float = PATIENCE_S) -> bool:
        """A byte now and then: it must not hold the place for longer than the time limit."""
        begun = time.monotonic()
        with self._connect() as plain:
            plain.settimeout(0.5)
            for byte in self._hello * 10:
                try:
                    plain.send(bytes([byte]))
                    if plain.recv(100) == b"":
                        break
                except TimeoutError:
                    pass
                except OSError:
                    break
                if time.monotonic() - begun > seconds:
                    return False
        return True

    def raw(self, data: bytes) -> bool:
        try:
            with self._connect() as plain:
                plain.settimeout(PATIENCE_S)
                plain.sendall(data)
                while plain.recv(1 << 16):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _connect(self) -> socket.socket:
        host, port = split_address(self.address)
        return socket.create_connection((host, port), PATIENCE_S)

    # -------------------------------------------------------------- behind a TLS handshake

    def nonsense(self) -> bool:
        rng = self.rng
        what = rng.choice(
            (
                lambda: rng.randbytes(rng.choice((10, 56, 500))),
                lambda: self._frame(rng.randrange(256), rng.randbytes(rng.randrange(80))),
                lambda: self._frame(wire.REFUSE, rng.randbytes(rng.randrange(1, 900))),
                lambda: self._frame(wire.OP_READY, rng.randbytes(112)) * 20 + rng.randbytes(56),
                lambda: self._frame(wire.OP_ABORT, rng.randbytes(90)) + rng.randbytes(56),
                lambda: self._frame(wire.BULK_WANTED, rng.randbytes(32)),
                lambda: self._frame(wire.PROBE, bytes(8)) * 50 + rng.randbytes(56),
                lambda: self._frame(wire.PROBE_ACK, rng.randbytes(8)) * 50 + rng.randbytes(56),
                lambda: self._frame(wire.CHUNK, rng.randbytes(100)),
            )
        )()
        return self._said(what)

    def huge(self) -> bool:
        rng = self.rng
        length = rng.choice((1 << 14, (1 << 16) + 1, 1 << 20, 1 << 31, (1 << 32) - 1)) + 1
        kind = rng.choice((1, 1, 2, 4, 5, 6, 7, 16, 17, 18))
        what = rng.choice(
            (
                Frame(type=kind, payload=b"x" * 20, length=length & 0xFFFFFFFF).encode(),
                # A message without end, in honest slices: more than a stranger may send.
                Frame(type=wire.MESSAGE, payload=bytes(wire.SLICE), flags=1).encode() * 6,
            )
        )
        return self._said(what)

    def forged_admission(self) -> bool:
        rng = self.rng
        chain = rng.randbytes(rng.choice((0, 1, 300)))
        said = rng.choice(
            (
                ["a/present", rng.randbytes(32), ["x", [], b"", ""], chain, rng.randbytes(64), b""],
                ["a/present", rng.randbytes(32)],
                ["a/offer", 1, rng.randbytes(32), True, chain, rng.randbytes(64)],
                ["a/welcome", ["x", [], b"", ""]],
                ["x/pin", 1, bytes(32)],
                ["g", []],
            )
        )
        bomb = rng.random() < 0.3
        return self._said(message_frames(rng.choice(BOMBS) if bomb else packing.pack(said), 0))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        rng = self.rng
        return Frame(
            type=kind, payload=payload, flags=rng.randrange(256), tag=rng.randrange(1 << 32),
            attempt=rng.randrange(1 << 32), round=rng.randrange(1 << 64),
            sequence=rng.randrange(1 << 64),
        ).encode()  # fmt: skip

    def _said(self, data: bytes) -> bool:
        try:
            with Wire(self.papers, self.address) as one:
                one.send(data)
                return one.ended(PATIENCE_S)
        except (OSError, DecentralError):
            return True


class TamperedGuest:
    """A guest with good papers whose connection goes through somebody who changes one record."""

    def __init__(self, papers: Papers, address: str, rng: Random) -> None:
        self.papers, self.rng = papers, rng
        self.middleman = Middleman(address)

    def attempt(self) -> tuple[str, bool]:
        """What was done, and whether the connection was given up by then."""
        rng = self.rng
        name, tamper = rng.choice(list(tampers(rng).items()))
        number = rng.randrange(1, 7)
        up = rng.random() < 0.5
        at = at_record(number, tamper)
        if name == "reorder":
            at = _from_record(number, tamper)
        self.middleman.tamper = (at, untouched) if up else (untouched, at)
        try:
            with Wire(self.papers, self.middleman.address) as one:
                one.admit()
                # Heartbeats come each second: with them all records of interest have passed.
                return name, one.ended(PATIENCE_S)
        except (OSError, ssl.SSLError, DecentralError, UnicodeDecodeError):
            return name, True

    def close(self) -> None:
        self.middleman.close()


def _from_record(
    number: int, tamper: Callable[[list[bytes]], list[bytes]]
) -> Callable[[list[bytes]], list[bytes]]:
    """With that record and the next one."""
    return lambda records: tamper(records) if len(records) in (number, number + 1) else records[-1:]


def _client_hello(papers: Papers) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = papers.context(wire.ALPN).wrap_bio(incoming, outgoing, server_hostname="peer")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
