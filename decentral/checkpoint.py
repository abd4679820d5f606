"""Committed states on disk: safetensors and a manifest with their hashes; the last few are kept.

    checkpoints/
      round-00000041/  state.safetensors  own.safetensors  manifest.json
      round-00000042/  …
      undone-00000043/ …            newer than where the run was rolled back to
      lineage-…-00000042/ …         of a lineage that another one has won over
      .tmp-…           a save in progress: everything is fsynced before the rename makes it count
      module-a/ …           the same, of a module that has rounds of its own

`own.safetensors` holds what is this peer's alone: its inner optimizer, its error feedback. It goes
on with the latter only if the run goes on from that very round.

A save that fails leaves the older ones and the training as they are. A load verifies every hash
and falls back to the next older checkpoint, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from decentral import failpoints, tensor_file
from decentral.errors import CorruptCheckpointError, DiskError
from decentral.state import hash_state, tensor_root
from decentral.types import CommittedState, TensorSpec

Own: TypeAlias = Mapping[str, NDArray[np.float32]]
"""What is one peer's alone, by name."""

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
OWN = "own.safetensors"

_MAX_MANIFEST_BYTES = 16 << 20
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EIO: "the disk reports an I/O error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What `load_latest` found."""

    state: CommittedState
    lineage: str
    own: Own
    """This peer's alone, as it was given to `save`; empty where it is missing or damaged."""
    passed_over: tuple[CorruptCheckpointError, ...]
    """Newer checkpoints that could not be used, one sentence each."""


def save(
    state: CommittedState,
    directory: Path,
    *,
    run: bytes = b"",
    lineage: str = "",
    keep: int = 3,
    own: Own | None = None,
) -> Path:
    """Write `state` so that it is wholly there or not at all. Raises a DiskError.

    `own`: what this peer alone needs to go on from there, fp32 arrays by name.
    """
    final = _save(state, directory, f"round-{state.round:08d}", run, lineage, own or {})
    for old in _rounds(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def keep_apart(state: CommittedState, directory: Path, run: bytes, lineage: str) -> Path:
    """Write `state` where no later round replaces it and no start picks it up by itself."""
    return _save(state, directory, f"lineage-{lineage}-{state.round:08d}", run, lineage, {})


def kept(directory: Path) -> tuple[int, ...]:
    """Rounds that are there, oldest first."""
    return tuple(int(path.name.partition("-")[2]) for path in reversed(_rounds(directory)))


def undo(directory: Path, *, after: int) -> None:
    """Move checkpoints of later rounds aside: the run has gone back. Raises a DiskError."""
    for path in _rounds(directory):
        number = int(path.name.partition("-")[2])
        if number > after:
            aside = path.with_name(f"undone-{number:08d}")
            try:
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            except OSError as error:
                raise _disk_error(
                    error, f"round {number} in {directory} could not be moved"
                ) from error


def load_round(
    directory: Path, number: int, root: bytes, schema: Sequence[TensorSpec]
) -> CommittedState | None:
    """That very state, or None. Raises a CorruptCheckpointError if it is there but damaged."""
    path = directory / f"round-{number:08d}"
    if not path.is_dir():
        return None
    manifest = _read_manifest(path)
    return _load(path, manifest, schema) if manifest["root"] == root.hex() else None


def _save(
    state: CommittedState,
    directory: Path,
    name: str,
    run: bytes,
    lineage: str,
    own: Own,
) -> Path:
    final = directory / name
    # By name: the checkpointer may be saving this very round while it is kept apart.
    temporary = directory / f".tmp-{name}-{os.getpid()}"
    replaced = directory / f".tmp-{name}-{os.getpid()}-replaced"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        failpoints.passing("checkpoint-write")
        with (temporary / TENSORS).open("wb") as file:
            tensor_file.write(file, state.tensors)
            os.fsync(file.fileno())
        if own:
            with (temporary / OWN).open("wb") as file:
                tensor_file.write(file, own)
                os.fsync(file.fileno())
        with (temporary / MANIFEST).open("w") as text:
            json.dump(_manifest(state, run, lineage, own), text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        _sync_directory(temporary)
        if final.exists():
            # The same round once more, after a rollback: the newer outcome replaces the older.
            final.rename(replaced)
        failpoints.passing("checkpoint-rename")
        temporary.rename(final)
        failpoints.passing("checkpoint-renamed")
        shutil.rmtree(replaced, ignore_errors=True)
        _sync_directory(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _disk_error(
            error, f"round {state.round} could not be saved in {directory}"
        ) from error
    return final


def _disk_error(error: OSError, says: str) -> DiskError:
    why = _REASONS.get(error.errno or 0, os.strerror(error.errno or errno.EIO))
    says = f"{says}: {why}; training goes on, and older checkpoints are as they were"
    return DiskError(says, phase="checkpoint")


def load_latest(
    directory: Path, schema: Sequence[TensorSpec], *, run: bytes = b""
) -> Loaded | None:
    """The newest state whose every hash is right; None where there is no checkpoint of this run.

    Raises the newest one's CorruptCheckpointError when there are some and none can be used.
    """
    passed_over: list[CorruptCheckpointError] = []
    for path in _rounds(directory):
        try:
            manifest = _read_manifest(path)
            if run and manifest["run"] != run.hex():
                continue
            return Loaded(
                state=_load(path, manifest, schema),
                lineage=str(manifest["lineage"]),
                own=_load_own(path, manifest),
                passed_over=tuple(passed_over),
            )
        except CorruptCheckpointError as error:
            passed_over.append(error)
    if passed_over:
        raise passed_over[0]
    return None


def _manifest(state: CommittedState, run: bytes, lineage: str, own: Own) -> dict[str, Any]:
    leaves = state.leaves or hash_state(state.tensors)[1]
    return {
        "format": FORMAT,
        "run": run.hex(),
        "lineage": lineage,
        "round": state.round,
        "root": state.root.hex(),
        "tensors": {
            name: {
                "size_bytes": array.nbytes,
                "root": tensor_root(name, array, leaves[name]).hex(),
            }
            for name, array in sorted(state.tensors.items())
        },
        "own": {
            "root": hash_state(own)[0].hex() if own else "",
            "shapes": {name: list(array.shape) for name, array in sorted(own.items())},
        },
    }


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        file = path / MANIFEST
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("too long")
        manifest = json.loads(file.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, and this version reads {FORMAT}")
        for key in ("run", "lineage", "round", "root", "tensors"):
            manifest[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(
            f"{path.name} has no readable manifest ({error})", phase="load checkpoint"
        ) from error
    return manifest  # type: ignore[no-any-return]


def _load(path: Path, manifest: Mapping[str, Any], schema: Sequence[TensorSpec]) -> CommittedState:
    try:
        tensors = tensor_file.read(path / TENSORS, schema)
    except (OSError, CorruptCheckpointError) as error:
        why = error.strerror if isinstance(error, OSError) else error.says
        raise CorruptCheckpointError(
            f"{path.name} cannot be used: {why}", phase="load checkpoint"
        ) from error
    root, leaves = hash_state(tensors)
    if root.hex() != manifest["root"]:
        declared = manifest["tensors"]
        bad = [
            name
            for name, array in tensors.items()
            if declared.get(name, {}).get("root") != tensor_root(name, array, leaves[name]).hex()
        ]
        raise CorruptCheckpointError(
            f"{path.name} is damaged: {', '.join(bad[:3]) or 'its root'} does not match its hash",
            phase="load checkpoint",
        )
    return CommittedState(round=int(manifest["round"]), tensors=tensors, root=root, leaves=leaves)


def _load_own(path: Path, manifest: Mapping[str, Any]) -> Own:
    """Nothing depends on it but how smoothly this peer goes on: damage costs no more than that."""
    try:
        described = manifest["own"]
        if not described["root"]:
            return {}
        schema = [
            TensorSpec(name=name, dtype="float32", shape=tuple(shape))
            for name, shape in described["shapes"].items()
        ]
        if sum(4 * math.prod(one.shape) for one in schema) > (path / OWN).stat().st_size:
            return {}
        own = tensor_file.read(path / OWN, schema)
        return own if hash_state(own)[0].hex() == described["root"] else {}
    except (OSError, CorruptCheckpointError, KeyError, TypeError, AttributeError):
        return {}


def _rounds(directory: Path) -> list[Path]:
    """Newest first."""
    with contextlib.suppress(OSError):
        return sorted(directory.glob("round-" + "[0-9]" * 8), reverse=True)
    return []


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpointer:
    """Saves in a thread of its own. At most one state waits: a newer one takes its place.

    `on_saved(round)` and `on_failed(error)` are called on that thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run: bytes = b"",
        keep: int = 3,
        on_saved: Callable[[int], None],
        on_failed: Callable[[DiskError], None],
    ) -> None:
        self._directory, self._run, self._keep = directory, run, keep
        self._on_saved, self._on_failed = on_saved, on_failed
        self._changed = threading.Condition()
        self._pending: tuple[CommittedState, str, Own] | None = None  # guarded by _changed
        self._saving = False  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    def submit(self, state: CommittedState, lineage: str, own: Own | None = None) -> None:
        """Returns at once. Nothing happens after `close`."""
        with self._changed:
            self._pending = (state, lineage, own or {})
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything submitted is saved, or has failed."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._pending is None and not self._saving, timeout_s
            )

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                if self._pending is None:
                    return
                (state, lineage, own), self._pending = self._pending, None
                self._saving = True
            try:
                save(
                    state,
                    self._directory,
                    run=self._run,
                    lineage=lineage,
                    keep=self._keep,
                    own=own,
                )
                self._on_saved(state.round)
            except DiskError as error:
                self._on_failed(error)
            finally:
                with self._changed:
                    self._saving = False
                    self._changed.notify_all()
