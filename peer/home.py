"""A peer's directory: what outlives the process.

identity.key     who this peer is (0600)       record             its votes, durable
authority.key    the run's key, at its maker   address_book.json  where others were last seen
credential       its membership                events.jsonl       what happened, one a line
join             the word it came with (0600)  checkpoints/       training state
revocations      whose membership was taken    lock               held while a peer runs
                 back                          control.sock, telemetry.sock
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from decentral import failpoints
from decentral.errors import ConfigError, StateError
from decentral.peer.files import disk_errors, write_atomic
from decentral.peer.identity import Identity
from decentral.types import PeerId, raw_id

_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un, less the terminating zero
_SHORT_PLACE = Path("/tmp")
_RECORD_MAGIC = b"decentral record 1\n"
_MAX_BOOK_BYTES = 4 << 20
_MAX_BOOK_PEERS = 10_000
_LOCK_TRIES = 50
_log = logging.getLogger(__name__)


def default_home(name: str) -> Path:
    """``~/.decentral/<name>``. ConfigError for a name that is no plain directory name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"{name[:80]!r} cannot name a peer: use up to 64 letters, digits, dots, - and _"
        )
    return Path("~/.decentral").expanduser() / name


class HomePaths:
    """Where things are in a home. Touches nothing, so anybody may ask."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()
        self.identity_key = self.path / "identity.key"
        self.authority_key = self.path / "authority.key"
        self.credential = self.path / "credential"
        self.join = self.path / "join"
        self.record = self.path / "record"
        self.address_book = self.path / "address_book.json"
        self.revocations = self.path / "revocations"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.lock = self.path / "lock"

    # ---------------------------------------------------------------------- sockets

    @property
    def control_socket(self) -> Path:
        """Unix socket for commands."""
        return self._socket("control.sock")

    @property
    def telemetry_socket(self) -> Path:
        """Unix socket for telemetry."""
        return self._socket("telemetry.sock")

    def _socket(self, name: str) -> Path:
        """In the home, unless that path is too long for a unix socket: then under /tmp."""
        path = self.path / name
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:24]
        return _SHORT_PLACE / f"decentral-{os.geteuid()}" / digest / name

    def make_socket_directory(self) -> None:
        """Make where the sockets go, for this user only; ConfigError if it is not."""
        place = self.control_socket.parent
        if place == self.path:
            return
        for directory in (place.parent, place):
            with disk_errors("make", directory):
                directory.mkdir(mode=0o700, exist_ok=True)
                status = directory.lstat()
            if (
                not stat.S_ISDIR(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_mode & 0o077
            ):
                raise ConfigError(
                    f"{directory} is not a private directory of this user: remove it, "
                    "or give a shorter --home"
                )


def is_locked(path: Path | str) -> bool:
    """Does a running peer hold this home?"""
    try:
        fd = os.open(HomePaths(path).lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Home(HomePaths):
    """A home taken for this process, until `close` or death; and its small durable files."""

    def __init__(self, path: Path | str) -> None:
        """Make the directory (0700) and lock it. ConfigError if a peer runs with it already."""
        super().__init__(path)
        self._events_file: TextIO | None = None
        self._lock_fd = -1
        with disk_errors("make", self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.checkpoints.mkdir(mode=0o700, exist_ok=True)
        with disk_errors("open", self.lock):
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        _LOCKED.add(self)
        for leftover in self.path.glob(".*.tmp"):  # of a write that a crash cut short
            with suppress(OSError):
                leftover.unlink()

    def _take(self, fd: int) -> None:
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < _LOCK_TRIES - 1:  # `is_locked` in another process takes it briefly
                    os.sched_yield()
                    continue
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"{self.path} is used by process {holder or 'unknown'}: "
                    "stop it, or give another --home"
                ) from None
        with disk_errors("write", self.lock):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory. Idempotent."""
        if self._events_file is not None:
            self._events_file.close()
            self._events_file = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        _LOCKED.discard(self)

    def identity(self) -> Identity:
        """This peer's key, made at the first start."""
        return Identity.load_or_create(self.identity_key)

    # ---------------------------------------------------------------------- votes

    def write_record(self, record: bytes) -> None:
        """Replace the vote record; durable when this returns. DiskError if the disk refuses."""
        digest = hashlib.sha256(record).digest()
        failpoints.passing("vote-write")
        write_atomic(self.record, _RECORD_MAGIC + digest + record)
        failpoints.passing("vote-written")

    def read_record(self) -> bytes | None:
        """The vote record, None before the first. StateError if its bytes are not what was saved.

        A peer that forgot its votes could vote twice, so damage is never taken for absence.
        """
        if not self.record.exists():
            return None
        with disk_errors("read", self.record):
            data = self.record.read_bytes()
        body = data[len(_RECORD_MAGIC) :]
        digest, record = body[:32], body[32:]
        if not data.startswith(_RECORD_MAGIC) or hashlib.sha256(record).digest() != digest:
            raise StateError(
                f"the vote record {self.record} is damaged: restore it, "
                "or rejoin as a new peer with another --home",
                phase="start",
            )
        return record

    # ---------------------------------------------------------------------- revocations

    def write_revocations(self, data: bytes) -> None:
        """Replace the list; durable when this returns."""
        write_atomic(self.revocations, data)

    def read_revocations(self, max_bytes: int) -> bytes | None:
        """The list (of `max_bytes` and one more at most), None before the first."""
        if not self.revocations.exists():
            return None
        with disk_errors("read", self.revocations), self.revocations.open("rb") as file:
            return file.read(max_bytes + 1)

    # ---------------------------------------------------------------------- address book

    def write_address_book(self, book: Mapping[PeerId, Sequence[str]]) -> None:
        """Remember where peers were reached."""
        text = json.dumps({peer: list(where) for peer, where in book.items()}, indent=1)
        write_atomic(self.address_book, text.encode())

    def read_address_book(self) -> dict[PeerId, tuple[str, ...]]:
        """Where peers were reached last; empty, with a warning, if the file is unusable."""
        try:
            with self.address_book.open("rb") as file:
                data = file.read(_MAX_BOOK_BYTES + 1)
            if len(data) > _MAX_BOOK_BYTES:
                raise ValueError("it is too large")
            return _checked_book(json.loads(data))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:  # only a hint: not worth a failure
            _log.warning("ignoring the address book %s: %s", self.address_book, error)
            return {}

    # ---------------------------------------------------------------------- events

    def append_event(self, line: str) -> None:
        """Add a line (JSON, without its end) to the event log."""
        with disk_errors("append to", self.events):
            if self._events_file is None:
                self._events_file = self.events.open("a", buffering=1, encoding="utf-8")
            try:
                failpoints.passing("event-write")
                self._events_file.write(line + "\n")
            except OSError:
                # Its buffer keeps the line and would fail again at close: start afresh instead.
                file, self._events_file = self._events_file, None
                with suppress(OSError):
                    file.close()
                raise


def _checked_book(value: object) -> dict[PeerId, tuple[str, ...]]:
    if not isinstance(value, dict) or len(value) > _MAX_BOOK_PEERS:
        raise ValueError("it does not map peers to addresses")
    book: dict[PeerId, tuple[str, ...]] = {}
    for peer, where in value.items():
        raw_id(peer)
        if not isinstance(where, list) or not all(type(a) is str for a in where):
            raise ValueError(f"the addresses of {peer} are no list of strings")
        book[peer] = tuple(where)
    return book


_LOCKED: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork() -> None:
    # A forked child (a DataLoader worker) shares the lock's file description: it would hold the
    # home of a killed parent, and the restarted peer would be told that the home is in use.
    for home in list(_LOCKED):
        fd, home._lock_fd = home._lock_fd, -1
        if fd >= 0:
            os.close(fd)


os.register_at_fork(after_in_child=_after_fork)
