"""The list of what a state consists of, down to the hash of every chunk.

Bytes of a state can come from anybody, once this list matches the committed root; and nothing is
allocated for them before it also matches the model that is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from decentral.errors import FingerprintError, ProtocolError
from decentral.peer import packing
from decentral.peer.merkle import (
    HASH_BYTES,
    ITEM_BYTES,
    chunk_count,
    leaf_hash,
    state_root,
    tensor_bytes,
)
from decentral.types import CommittedState, TensorSpec

META = "run/meta"
"""The one tensor whose size is not the model's to say."""
META_MAX_BYTES = 1 << 20
_VERSION = 1
_MAX_NAME_BYTES = 512
_MAX_NDIM = 16
_MAX_TENSOR_BYTES = 1 << 50
_EMPTY_LEAF = leaf_hash(b"")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Tensors in name order, each with the concatenated hashes of its chunks."""

    tensors: tuple[tuple[TensorSpec, bytes], ...]

    @property
    def root(self) -> bytes:
        return state_root(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor_bytes(spec) for spec, _ in self.tensors)

    def encode(self) -> bytes:
        rows = [[s.name, s.dtype, list(s.shape), leaves] for s, leaves in self.tensors]
        return packing.pack([_VERSION, rows])


def specs_of(state: CommittedState) -> tuple[TensorSpec, ...]:
    """What the tensors of a state are, in name order."""
    return tuple(
        TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(array.shape))
        for name, array in sorted(state.tensors.items(), key=lambda item: item[0].encode())
    )


def manifest_of(state: CommittedState) -> Manifest:
    """The manifest of a state that carries its leaves."""
    missing = state.tensors.keys() - state.leaves.keys()
    assert not missing, f"state of round {state.round} has no leaves for {sorted(missing)[:3]}"
    return Manifest(tuple((spec, state.leaves[spec.name]) for spec in specs_of(state)))


def max_manifest_bytes(schema: Sequence[TensorSpec]) -> int:
    """Generous bound on a manifest that could fit this model: beyond it, somebody lies."""
    leaves = sum(chunk_count(tensor_bytes(spec)) for spec in schema) * HASH_BYTES
    names = sum(len(spec.name.encode()) + 64 + 9 * len(spec.shape) for spec in schema)
    return (1 << 20) + 2 * (leaves + names)


def decode_manifest(data: bytes, schema: Sequence[TensorSpec]) -> Manifest:
    """Parse what a holder sent; ProtocolError if it cannot be a manifest at all."""
    version, rows = packing.array(
        packing.unpack(
            data, max_bytes=max_manifest_bytes(schema), max_items=1024 + 2 * len(schema)
        ),
        "a manifest",
        2,
    )
    if packing.integer(version, "its version") != _VERSION:
        raise ProtocolError(f"a manifest of version {version}, this peer reads {_VERSION}")
    tensors: list[tuple[TensorSpec, bytes]] = []
    for row in packing.array(rows, "its tensors", 0, 1024 + 2 * len(schema)):
        tensors.append(_decode_row(row))
        if len(tensors) > 1 and tensors[-2][0].name.encode() >= tensors[-1][0].name.encode():
            raise ProtocolError("a manifest's tensors are not in the order of their names")
    return Manifest(tuple(tensors))


def _decode_row(row: object) -> tuple[TensorSpec, bytes]:
    name, dtype, dims, leaves = packing.array(row, "a tensor", 4)
    if type(dtype) is not str or dtype not in ITEM_BYTES:
        raise ProtocolError("a tensor's dtype is unknown")
    shape = tuple(
        packing.integer(dim, "a dimension", 0, _MAX_TENSOR_BYTES)
        for dim in packing.array(dims, "a shape", 0, _MAX_NDIM)
    )
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if nbytes > _MAX_TENSOR_BYTES:
        raise ProtocolError("a tensor is impossibly large")
    spec = TensorSpec(
        name=packing.text(name, "a tensor's name", _MAX_NAME_BYTES), dtype=dtype, shape=shape
    )
    leaves = packing.binary(leaves, "a tensor's hashes", chunk_count(nbytes) * HASH_BYTES)
    if nbytes == 0 and leaves != _EMPTY_LEAF:
        raise ProtocolError("an empty tensor has another hash than that of nothing")
    return spec, leaves


def check_schema(manifest: Manifest, schema: Sequence[TensorSpec]) -> None:
    """FingerprintError that names the first tensor in which the run's state is not this model's:
    a parameter, which people know, before the momentum that goes with it."""
    ours = {spec.name: spec for spec in schema}
    theirs = {spec.name: spec for spec, _ in manifest.tensors}
    names = ours.keys() | theirs.keys()
    for name in sorted(names, key=lambda name: (name.startswith("momentum/"), name)):
        if name == META:
            if name in theirs:
                _check_meta(theirs[name])
            continue
        if name not in theirs:
            raise FingerprintError(f"this model has a tensor {name!r} that the run's has not")
        if name not in ours:
            raise FingerprintError(f"the run's model has a tensor {name!r} that this one has not")
        for what in ("dtype", "shape"):
            here, there = getattr(ours[name], what), getattr(theirs[name], what)
            if here != there:
                raise FingerprintError(
                    f"tensor {name!r} has {what} {here} in this model, but {there} in the run's"
                )


def _check_meta(spec: TensorSpec) -> None:
    if spec.dtype != "uint8" or len(spec.shape) != 1 or tensor_bytes(spec) > META_MAX_BYTES:
        raise FingerprintError(f"{META!r} of the run is not up to {META_MAX_BYTES} plain bytes")
