"""A sharded island's committed parameters on disk, by torch.distributed.checkpoint.

    final/model-00001-of-00001.safetensors           the whole model, for any tool
    final/sharded/shard-0000R-….safetensors          rank R's part, for `dcp.load` on any island
    final/decentral.json                             the round and the hash of each shard

Only safetensors and JSON are written, and what is read back is nothing else: a program that loads
the model needs `torch.distributed.checkpoint.HuggingFaceStorageReader`, or safetensors alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from decentral.errors import ConfigError, DiskError
from decentral.islands.shard_tensors import ShardTensors
from decentral.islands.talk import Talk

if TYPE_CHECKING:
    from decentral.state import HeldState

INDEX = "decentral.json"


def save_shards(talk: Talk, tensors: ShardTensors, held: HeldState, path: Path) -> Path:
    """Write the folder `path` and return it. Called by all ranks, which share the file system.

    Buffers are rank 0's. Raises a DiskError on all ranks if one of them cannot write.
    """
    try:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save
    except ImportError as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot save a sharded model as safetensors: 2.9 can",
            phase="save",
        ) from error
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True, enable_consolidation=True)
    try:
        save(
            committed(tensors, held, buffers=talk.rank == 0),
            storage_writer=writer,
            process_group=talk.group,
        )
    except Exception as error:
        raise DiskError(f"{path} could not be written: {error}", phase="save") from error
    rounds = talk.compare([held.round])
    roots = [talk.share(held.root if talk.rank == r else None, r).hex() for r in range(talk.size)]
    if talk.rank == 0:
        index = {"format": 1, "rounds": [row[0] for row in rounds], "state_hashes": roots}
        try:
            (path / INDEX).write_text(json.dumps(index, indent=1))
        except OSError as error:
            raise DiskError(f"{path / INDEX} could not be written: {error}") from error
    talk.compare([])
    return path


def committed(tensors: ShardTensors, held: HeldState, *, buffers: bool) -> dict[str, Any]:
    """The committed fp32 values under the model's names; sharded ones as DTensors."""
    state = held.state.tensors
    named: dict[str, Any] = {}
    for name, parameter in tensors.whole.items():
        values = state.get(f"param/{name}")
        local = (
            torch.from_numpy(values.copy())
            if values is not None
            else torch.zeros(tuple(parameter.to_local().shape))
        )
        named[name] = DTensor.from_local(
            local,
            _host_mesh(parameter),
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    if buffers:
        for slot in tensors.layout.slots:
            prefix = "buffer" if f"buffer/{slot.name}" in state else "param"
            if slot.name not in named:
                named[slot.name] = torch.from_numpy(state[f"{prefix}/{slot.name}"].copy())
    return named


def _host_mesh(parameter: DTensor) -> Any:
    """The parameter's ranks; the committed values are in host memory wherever it is."""
    from torch.distributed.device_mesh import DeviceMesh

    mesh = parameter.device_mesh
    if mesh.device_type == "cpu":
        return mesh
    return DeviceMesh("cpu", mesh.mesh, _init_backend=False)
