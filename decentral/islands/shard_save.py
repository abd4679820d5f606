"""A sharded island's committed parameters on disk, as torch.distributed.checkpoint lays them out.

    final/model-00001-of-00001.safetensors           the whole model, for any tool
    final/sharded/shard-0000R-….safetensors          rank R's part
    final/decentral.json                             the round and the hash of each shard

`torch.distributed.checkpoint.load` with its HuggingFaceStorageReader reads both on an island of any
shape. Its own writer is not used, because that has the ranks send each other pickled plans: here
each rank writes its part, and they tell each other integers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch.distributed.tensor import Shard

from decentral.errors import ConfigError, DiskError
from decentral.islands.shard_tensors import ShardTensors
from decentral.islands.talk import Talk

if TYPE_CHECKING:
    from decentral.state import HeldState

INDEX = "decentral.json"
WHOLE = "model-00001-of-00001.safetensors"
PARTS = "sharded"


def save_shards(talk: Talk, tensors: ShardTensors, held: HeldState, path: Path) -> Path:
    """Write the folder `path` and return it. Called by all ranks, which share the file system.

    Buffers are rank 0's. Raises a DiskError on all ranks if one of them cannot write.
    """
    try:
        from torch.distributed.checkpoint._consolidate_hf_safetensors import (
            consolidate_safetensors_files,
        )
    except ImportError as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot save a sharded model as safetensors: 2.9 can",
            phase="save",
        ) from error
    offsets = shard_offsets(talk, tensors)
    roots = [talk.share(held.root if talk.rank == r else None, r).hex() for r in range(talk.size)]
    rounds = [row[0] for row in talk.compare([held.round])]
    parts = path / PARTS

    def clear() -> None:
        # Parts of an earlier save by a larger island would be taken for parts of this one.
        parts.mkdir(parents=True, exist_ok=True)
        for old in parts.glob("shard-*.safetensors"):
            old.unlink()

    def write() -> None:
        name = f"shard-{talk.rank + 1:05d}-{WHOLE}"
        write_part(parts / name, committed(tensors, held, buffers=talk.rank == 0), offsets)

    def join() -> None:
        names = [*tensors.whole, *(slot.name for slot in tensors.layout.slots)]
        where = dict.fromkeys(names, 1)
        consolidate_safetensors_files(str(parts), str(path), where)
        index = {"format": 1, "rounds": rounds, "state_hashes": roots}
        (path / INDEX).write_text(json.dumps(index, indent=1))

    _together(talk, path, clear if talk.rank == 0 else None)
    _together(talk, path, write)
    _together(talk, path, join if talk.rank == 0 else None)
    return path


def _together(talk: Talk, path: Path, work: Callable[[], None] | None) -> None:
    """All go on when all are done, and fail when one fails."""
    failed: Exception | None = None
    try:
        if work is not None:
            work()
    except Exception as error:  # safetensors has its own error type for the disk's refusals
        failed = error
    rows = talk.compare([failed is not None])
    bad = next((rank for rank, row in enumerate(rows) if row[0]), None)
    if bad is not None:
        why = talk.share(str(failed)[:500].encode() if bad == talk.rank else None, bad).decode()
        says = f"{path} could not be written by rank {bad}: {why}"
        raise DiskError(says, phase="save") from failed


def shard_offsets(talk: Talk, tensors: ShardTensors) -> dict[str, list[int]]:
    """Where in each sharded parameter this rank's part begins."""
    dims: dict[str, int] = {}
    for name, parameter in tensors.whole.items():
        placement = parameter.placements[0]
        assert isinstance(placement, Shard)
        dims[name] = placement.dim
    whole = tensors.whole
    mine = [whole[name].to_local().shape[dim] for name, dim in dims.items()]
    before = talk.compare(mine)[: talk.rank]
    offsets: dict[str, list[int]] = {}
    for at, (name, dim) in enumerate(dims.items()):
        offsets[name] = [0] * whole[name].ndim
        offsets[name][dim] = sum(row[at] for row in before)
    return offsets


def committed(tensors: ShardTensors, held: HeldState, *, buffers: bool) -> dict[str, NDArray[Any]]:
    """The committed fp32 values of this rank's shards under the model's names; with `buffers` also
    of what is not sharded."""
    named: dict[str, NDArray[Any]] = {}
    for name, values in held.state.tensors.items():
        kind, _, plain = name.partition("/")
        if kind in ("param", "buffer") and (buffers or plain in tensors.whole):
            named[plain] = values
    return named


def write_part(path: Path, named: dict[str, NDArray[Any]], offsets: dict[str, list[int]]) -> None:
    where = {
        name: {"saved_offsets": offsets.get(name, [0] * values.ndim)}
        for name, values in named.items()
    }
    metadata = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(where), "format": "pt"}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(named, temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
