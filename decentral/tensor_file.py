"""safetensors files, streamed: no second copy in memory, and the disk's own errors.

    | header length, 8 bytes LE | JSON header | tensor bytes … |

The `safetensors` library reads these files; it is not used to write them because it wants all
bytes at once and hides ENOSPC. A reader bounds and checks the header before it allocates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from decentral.errors import CorruptCheckpointError
from decentral.types import TensorSpec

MAX_HEADER_BYTES = 16 << 20

_DTYPES = {"float32": "F32", "uint8": "U8"}


def write(file: BinaryIO, tensors: Mapping[str, NDArray[Any]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors):
        array = tensors[name]
        header[name] = {
            "dtype": _DTYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in sorted(tensors):
        file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def read(path: Path, schema: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """All tensors of the schema. A CorruptCheckpointError where the file holds anything else."""
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        header, start = _read_header(file, size_bytes)
        expected = {spec.name: spec for spec in schema}
        if header.keys() != expected.keys():
            differs = sorted(header.keys() ^ expected.keys())
            raise CorruptCheckpointError(
                f"{path.name} does not hold this model's tensors: {', '.join(differs[:3])}"
            )
        tensors: dict[str, NDArray[Any]] = {}
        for name, spec in expected.items():
            entry = header[name]
            array = np.empty(spec.shape, dtype=spec.dtype)
            begin, end = _offsets(entry)
            if (
                entry.get("dtype") != _DTYPES.get(spec.dtype)
                or entry.get("shape") != list(spec.shape)
                or end - begin != array.nbytes
                or start + end > size_bytes
            ):
                raise CorruptCheckpointError(f"{path.name}: tensor {name} is not as declared")
            file.seek(start + begin)
            flat = array.reshape(-1).view(np.uint8)
            if file.readinto(flat.data) != array.nbytes:
                raise CorruptCheckpointError(f"{path.name} ends inside tensor {name}")
            tensors[name] = array
        return tensors


def _read_header(file: BinaryIO, size_bytes: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise CorruptCheckpointError(f"a tensor file's header claims {length} bytes")
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise CorruptCheckpointError("a tensor file's header is not JSON") from error
    if not isinstance(header, dict) or not all(isinstance(e, dict) for e in header.values()):
        raise CorruptCheckpointError("a tensor file's header is not a table of tensors")
    header.pop("__metadata__", None)
    return header, 8 + length


def _offsets(entry: dict[str, Any]) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(isinstance(o, int) and o >= 0 for o in offsets)
    ):
        return offsets[0], offsets[1]
    return 0, -1
