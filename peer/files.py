"""Files that survive a crash: whole or not at all, and private where they hold a secret."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from decentral.errors import ConfigError, DiskError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file may not grow that large (ulimit -f)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EISDIR: "it is a directory",
    errno.ENAMETOOLONG: "the path is too long",
}


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a DiskError that says what was being done, where, and why it failed."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise DiskError(f"cannot {doing} {path}: {reason}", phase="disk") from error


def sync_directory(path: Path) -> None:
    """Make renames and new names within `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` durably: a crash at any moment leaves the old content or the new one."""
    with disk_errors("write", path):
        temporary = _write_temporary(path, data, mode)
        try:
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def create_exclusive(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Make `path` with all of `data`, or not at all; False (and no change) if it exists."""
    with disk_errors("create", path):
        temporary = _write_temporary(path, data, mode)
        try:
            os.link(temporary, path)  # unlike a rename, fails if somebody was faster
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_directory(path.parent)
        return True


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Read a secret file; ConfigError if somebody else may read or has replaced it.

    Raises FileNotFoundError if there is none.
    """
    with _missing_passes(), disk_errors("read", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            mode = status.st_mode & 0o777
            if mode & 0o077:
                raise ConfigError(
                    f"{path} holds a secret but others may use it (mode {mode:04o}): "
                    f"run chmod 600 {path}"
                )
            if status.st_uid not in (os.geteuid(), 0):
                raise ConfigError(f"{path} holds a secret but belongs to user {status.st_uid}")
            return file.read(max_bytes + 1)


@contextmanager
def _missing_passes() -> Iterator[None]:
    try:
        yield
    except DiskError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise
