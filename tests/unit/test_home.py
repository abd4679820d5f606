"""A peer's directory: one process at a time, nothing half-written, and a sentence when the disk
refuses."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError, DiskError, StateError
from decentral.peer.files import disk_errors, write_atomic
from decentral.peer.home import Home, HomePaths, default_home, is_locked
from decentral.types import peer_id

BOOK = {peer_id(bytes([n]) * 32): (f"h:{n + 1}", "[::1]:2") for n in range(3)}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size`: what a full disk looks like, really."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(tmp_path / "home") as home:
        yield home


def test_a_home_is_made_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Home(tmp_path / "a" / "home") as home:
            assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
            assert home.checkpoints.is_dir()
            assert home.identity().peer_id == home.identity().peer_id
            assert stat.S_IMODE(home.identity_key.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_paths_alone_touch_nothing(tmp_path: Path) -> None:
    assert HomePaths(tmp_path / "home").record.name == "record"
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    path = tmp_path / "home"
    assert not is_locked(path)
    with Home(path):
        assert is_locked(path)
        with pytest.raises(ConfigError, match=rf"is used by process {os.getpid()}: stop it"):
            Home(path)
        assert is_locked(path)
    assert not is_locked(path)
    with Home(path):
        pass


def test_a_killed_process_frees_its_home(tmp_path: Path) -> None:
    """Even while a child that it forked lives on, as a DataLoader's worker may."""
    program = (
        "import os, sys, signal\n"
        "from decentral.peer.home import Home\n"
        f"home = Home({str(tmp_path / 'home')!r})\n"
        "ready, go = os.pipe(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(go[1])\n"  # the child waits until its pipe to the parent's stdin ends
        "    os.write(ready[1], b'.')\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.read(ready[0], 1)\n"
        "print('locked', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"locked\n"
        assert is_locked(tmp_path / "home")
        process.kill()
        process.wait()
        assert not is_locked(tmp_path / "home")
        Home(tmp_path / "home").close()


def test_leftovers_of_a_crash_are_swept(home: Home) -> None:
    leftover = home.path / ".record.0badcafe.tmp"
    leftover.write_bytes(b"half")
    home.close()
    with Home(home.path):
        assert not leftover.exists()


# ------------------------------------------------------------------------------- votes


def test_votes_survive(home: Home) -> None:
    assert home.read_record() is None
    for record in (b"", b"first", bytes(100_000)):
        home.write_record(record)
        assert home.read_record() == record
    assert stat.S_IMODE(home.record.stat().st_mode) == 0o600
    assert not list(home.path.glob(".*.tmp"))


def test_a_damaged_record_is_never_taken_for_none(home: Home) -> None:
    home.write_record(b"my votes")
    good = home.record.read_bytes()
    for bad in (b"", good[:-1], good + b"x", good[:40], bytes([good[0] ^ 1]) + good[1:]):
        home.record.write_bytes(bad)
        with pytest.raises(StateError, match=r"the vote record .* is damaged"):
            home.read_record()


def test_a_full_disk_keeps_the_old_record(home: Home) -> None:
    home.write_record(b"old")
    with (
        file_size_limit(4096),
        pytest.raises(DiskError, match=r"cannot write .*/record: the file may not grow"),
    ):
        home.write_record(bytes(10_000))
    assert home.read_record() == b"old"
    assert not list(home.path.glob(".*.tmp"))
    home.write_record(b"new")
    assert home.read_record() == b"new"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_disk_errors_are_sentences(number: int, says: str) -> None:
    with (
        pytest.raises(DiskError, match=f"cannot write /x: {says}"),
        disk_errors("write", Path("/x")),
    ):
        raise OSError(number, os.strerror(number))


def test_really_full() -> None:
    """/dev/full answers every write with ENOSPC."""
    with (
        pytest.raises(DiskError, match="the disk is full"),
        disk_errors("write", Path("/dev/full")),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"cannot write .*: No such file or directory"):
        write_atomic(tmp_path / "missing" / "file", b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        Home(tmp_path / "file" / "home")


# ------------------------------------------------------------------------------- address book


def test_the_address_book(home: Home) -> None:
    assert home.read_address_book() == {}
    home.write_address_book(BOOK)
    assert home.read_address_book() == BOOK


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BOOK, "x"]), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_damaged_address_book_is_only_a_warning(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory, Home(directory) as home:
        home.address_book.write_bytes(data)
        book = home.read_address_book()
        assert all(isinstance(a, str) for where in book.values() for a in where)


def test_a_huge_or_nested_address_book_is_ignored(home: Home) -> None:
    for data in (b" " * (5 << 20) + b"{}", b"[" * 1_000_000):
        home.address_book.write_bytes(data)
        assert home.read_address_book() == {}


# ------------------------------------------------------------------------------- events


def test_events_are_lines_that_are_there_at_once(home: Home) -> None:
    for number in range(3):
        home.append_event(json.dumps({"event": "round", "round": number}))
        lines = home.events.read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(number + 1))
    home.close()
    with Home(home.path) as again:
        again.append_event("{}")
    assert len(home.events.read_text().splitlines()) == 4


def test_a_full_disk_at_an_event(home: Home) -> None:
    home.append_event("{}")
    with file_size_limit(16), pytest.raises(DiskError, match=r"cannot append to .*events\.jsonl"):
        home.append_event(json.dumps({"x": "y" * 100}))
    home.append_event('{"after":1}')
    assert home.events.read_text().endswith('{"after":1}\n')


# ------------------------------------------------------------------------------- sockets


def test_sockets_are_in_the_home(tmp_path: Path) -> None:
    paths = HomePaths(tmp_path / "h")
    assert paths.control_socket == tmp_path / "h" / "control.sock"


def test_long_paths_get_a_short_private_place(tmp_path: Path) -> None:
    long = HomePaths(tmp_path / ("x" * 120))
    other = HomePaths(tmp_path / ("y" * 120))
    for socket in (long.control_socket, long.telemetry_socket):
        assert len(os.fsencode(socket)) <= 107 and socket.is_relative_to("/tmp")
    assert long.control_socket != other.control_socket
    assert long.control_socket == HomePaths(tmp_path / ("x" * 120)).control_socket
    long.make_socket_directory()
    place = long.control_socket.parent
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o755)
    with pytest.raises(ConfigError, match="not a private directory"):
        long.make_socket_directory()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not a private directory"):
        long.make_socket_directory()
    place.unlink()


def test_default_homes() -> None:
    assert default_home("peer-1") == Path.home() / ".decentral" / "peer-1"
    for bad in ("", "..", "a/b", ".hidden", "x" * 65, "a b", "a\n"):
        with pytest.raises(ConfigError, match="cannot name a peer"):
            default_home(bad)
