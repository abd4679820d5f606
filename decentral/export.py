"""The committed parameters as a file that other tools read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save_file

from decentral.errors import DiskError
from decentral.types import CommittedState


def export(states: Sequence[CommittedState], path: Path) -> Path:
    """Write parameters and buffers, under the model's own names, and return the path.

    Several states are those of the modules of one model, the leading one first.
    ``.safetensors`` is appended where it is missing. A file of that name is replaced at once.
    """
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    tensors = {
        name.partition("/")[2]: array
        for state in states
        for name, array in state.tensors.items()
        if name.startswith(("param/", "buffer/"))
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    first = states[0]
    metadata = {"format": "pt", "round": str(first.round), "state_hash": first.root.hex()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)
    except Exception as error:  # safetensors has its own error type for the disk's refusals
        temporary.unlink(missing_ok=True)
        raise DiskError(f"{path} could not be written: {error}", phase="save") from error
    return path
