"""Checkpoints: whole or absent, verified when loaded, and no failure hurts what was there."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from decentral import checkpoint, tensor_file
from decentral.errors import CorruptCheckpointError, DiskError
from decentral.state import Layout, Meta, aligned_zeros, seal

LAYOUT = Layout.of(
    [("w", "trainable", (300, 7)), ("empty", "trainable", (0,)), ("b", "buffer", ())]
)
SCHEMA = LAYOUT.schema()
RUN = b"r" * 32


def state(round: int):
    theta, momentum = aligned_zeros(LAYOUT.total), aligned_zeros(LAYOUT.trainable)
    theta[: 300 * 7] = np.random.default_rng(round).standard_normal(300 * 7)
    return seal(LAYOUT, theta, momentum, Meta(round=round)).state


OWN = {"residual": np.arange(12, dtype=np.float32), "inner/0/0/step": np.float32(3).reshape(())}


def test_what_is_this_peers_alone_comes_back_with_its_state(tmp_path):
    checkpoint.save(state(1), tmp_path, run=RUN)
    checkpoint.save(state(2), tmp_path, run=RUN, own=OWN)
    loaded = checkpoint.load_latest(tmp_path, SCHEMA, run=RUN)
    assert loaded.own.keys() == OWN.keys()
    assert all((loaded.own[name] == OWN[name]).all() for name in OWN)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "shape", "manifest"])
def test_damage_to_it_costs_no_committed_state(tmp_path, damage: str):
    folder = checkpoint.save(state(1), tmp_path, run=RUN, own=OWN)
    own, manifest = folder / "own.safetensors", folder / "manifest.json"
    told = json.loads(manifest.read_text())
    if damage == "flip":
        data = bytearray(own.read_bytes())
        data[-3] ^= 1
        own.write_bytes(data)
    elif damage == "cut":
        own.write_bytes(own.read_bytes()[:-8])
    elif damage == "gone":
        own.unlink()
    elif damage == "shape":
        told["own"]["shapes"]["residual"] = [1 << 50]
    else:
        told["own"] = 7
    manifest.write_text(json.dumps(told))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA, run=RUN)
    assert loaded.own == {} and loaded.state.root == state(1).root


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def saved(tmp_path, *rounds: int):
    for round in rounds:
        checkpoint.save(state(round), tmp_path, run=RUN, lineage="L")
    return tmp_path


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    loaded = checkpoint.load_latest(saved(tmp_path, 1, 2), SCHEMA, run=RUN)
    assert loaded is not None and loaded.passed_over == () and loaded.lineage == "L"
    want = state(2)
    assert (loaded.state.round, loaded.state.root) == (2, want.root)
    assert loaded.state.leaves == want.leaves
    for name, array in want.tensors.items():
        assert array.tobytes() == loaded.state.tensors[name].tobytes()


def test_only_the_last_few_are_kept_and_nothing_else_lies_about(tmp_path):
    saved(tmp_path, *range(1, 6))
    assert names(tmp_path) == ["round-00000003", "round-00000004", "round-00000005"]


def test_the_files_are_what_other_tools_read(tmp_path):
    path = checkpoint.save(state(4), tmp_path, run=RUN)
    tensors = load_file(path / "state.safetensors")
    assert tensors.keys() == {spec.name for spec in SCHEMA}
    assert np.array_equal(tensors["param/w"], state(4).tensors["param/w"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["round"] == 4 and manifest["root"] == state(4).root.hex()
    assert manifest["tensors"]["param/w"]["size_bytes"] == 8400


def test_no_checkpoint_and_another_run(tmp_path):
    assert checkpoint.load_latest(tmp_path / "absent", SCHEMA) is None
    assert checkpoint.load_latest(saved(tmp_path, 1), SCHEMA, run=b"x" * 32) is None


def flip(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda d: flip(d / "state.safetensors", -100),
    "a truncated file": lambda d: os.truncate(d / "state.safetensors", 5000),
    "an empty file": lambda d: os.truncate(d / "state.safetensors", 0),
    "a header of 2^60 bytes": lambda d: flip(d / "state.safetensors", 7),
    "a header that is not JSON": lambda d: flip(d / "state.safetensors", 8),
    "no tensors": lambda d: (d / "state.safetensors").unlink(),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "half a manifest": lambda d: os.truncate(d / "manifest.json", 40),
    "a manifest of another shape": lambda d: (d / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_passed_over_by_name(tmp_path, damage):
    damage(saved(tmp_path, 1, 2) / "round-00000002")
    loaded = checkpoint.load_latest(tmp_path, SCHEMA, run=RUN)
    assert loaded is not None and loaded.state.root == state(1).root
    assert len(loaded.passed_over) == 1


def test_when_none_is_left_the_newest_one_is_blamed(tmp_path):
    saved(tmp_path, 1, 2)
    for name in ("round-00000001", "round-00000002"):
        os.truncate(tmp_path / name / "state.safetensors", 6000)
    with pytest.raises(CorruptCheckpointError, match=r"state\.safetensors"):
        checkpoint.load_latest(tmp_path, SCHEMA, run=RUN)


def test_damage_names_the_tensor(tmp_path):
    flip(saved(tmp_path, 1) / "round-00000001" / "state.safetensors", -1200)
    with pytest.raises(CorruptCheckpointError, match=r"round-00000001 is damaged: .* match"):
        checkpoint.load_latest(tmp_path, SCHEMA)


def test_another_models_file_is_not_loaded(tmp_path):
    other = Layout.of([("w", "trainable", (300, 8))])
    with pytest.raises(CorruptCheckpointError, match="this model's tensors"):
        checkpoint.load_latest(saved(tmp_path, 1), other.schema())
    wider = Layout.of(
        [("w", "trainable", (300, 8)), ("empty", "trainable", (0,)), ("b", "buffer", ())]
    )
    with pytest.raises(CorruptCheckpointError, match="not as declared"):
        checkpoint.load_latest(tmp_path, wider.schema())


class FullDisk:
    """A disk that takes the header and then no more."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __call__(self, file, tensors) -> None:
        file.write(b"the beginning")
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "I/O error")],
)
def test_a_disk_that_refuses_hurts_nothing(tmp_path, monkeypatch, code, says):
    saved(tmp_path, 1)
    monkeypatch.setattr(tensor_file, "write", FullDisk(code))
    with pytest.raises(DiskError, match=says) as caught:
        checkpoint.save(state(2), tmp_path, run=RUN)
    assert caught.value.phase == "checkpoint"
    assert names(tmp_path) == ["round-00000001"]
    loaded = checkpoint.load_latest(tmp_path, SCHEMA, run=RUN)
    assert loaded is not None and loaded.state.round == 1


def test_a_really_full_disk():
    """/dev/full refuses every write with ENOSPC."""
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError) as caught:
        tensor_file.write(full, state(1).tensors)
    assert caught.value.errno == errno.ENOSPC


def test_the_same_round_may_be_saved_again(tmp_path):
    saved(tmp_path, 3, 3)
    assert names(tmp_path) == ["round-00000003"]


def test_a_save_that_was_cut_short_is_not_seen(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".tmp-00000002-99").mkdir()
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None and loaded.state.round == 1


def test_the_writer_skips_to_the_newest_and_reports(tmp_path, monkeypatch):
    entered, go = threading.Event(), threading.Event()
    real = tensor_file.write

    def slow(file, tensors):
        entered.set()
        assert go.wait(20)
        real(file, tensors)

    monkeypatch.setattr(tensor_file, "write", slow)
    done: list[int] = []
    writer = checkpoint.Checkpointer(tmp_path, on_saved=done.append, on_failed=done.append)
    writer.submit(state(1), "L")
    assert entered.wait(20)
    for round in (2, 3, 4):
        writer.submit(state(round), "L")
    assert not writer.flush(timeout_s=0.01)
    go.set()
    assert writer.flush(timeout_s=20)
    writer.close()
    assert done == [1, 4]


def test_the_writer_survives_a_failure(tmp_path, monkeypatch):
    saves: list[int] = []
    failures: list[DiskError] = []
    writer = checkpoint.Checkpointer(tmp_path, on_saved=saves.append, on_failed=failures.append)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "write", FullDisk(errno.ENOSPC))
        writer.submit(state(1), "L")
        assert writer.flush(timeout_s=20)
    writer.submit(state(2), "L")
    writer.close()
    assert saves == [2] and len(failures) == 1 and "the disk is full" in failures[0].says
