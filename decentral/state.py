"""The committed state as flat fp32 buffers, its names, and its hash.

One buffer per kind, so that an all-reduce moves one array and the outer optimizer is one pass:

    theta     | trainable parameters … | floating buffers … | frozen parameters … |
              |<------ momentum ------>|
              |<---------- exchanged (Δ) ------------------>|

    momentum  | trainable parameters … |

Every tensor starts on a 64-byte boundary; the padding is zero and stays zero. What is committed
(`CommittedState`) are views into these two buffers, named ``param/…``, ``buffer/…`` and
``momentum/…``, and ``run/meta``. Low-precision parameters have fp32 masters here.

The root covers name, dtype, shape and bytes of every tensor (FORMAT.md, "State hash"). It is
computed by native code, as is all arithmetic on committed values, so that all machines agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from decentral.errors import ConfigError, DivergenceError
from decentral.types import CommittedState, TensorSpec

if TYPE_CHECKING:
    from decentral.types import Array

ALIGN_BYTES = 64
_ALIGN = ALIGN_BYTES // 4

META_NAME = "run/meta"
META_BYTES = 1024
"""Fixed, so that the schema is the same in every round; msgpack, then zeros."""

TRAINABLE, BUFFER, FROZEN = "trainable", "buffer", "frozen"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lives in `theta`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of tensors in the flat buffers: equal on all peers with the same model."""

    slots: tuple[Slot, ...]
    trainable: int
    """`theta[:trainable]` has outer momentum."""
    exchanged: int
    """`theta[:exchanged]` is what an all-reduce moves."""
    total: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
        """From (name, kind, shape) in model order; kinds are grouped, order is kept within."""
        entries = list(tensors)
        slots: list[Slot] = []
        ends: dict[str, int] = {}
        offset = 0
        for kind in (TRAINABLE, BUFFER, FROZEN):
            for name, its_kind, shape in entries:
                if its_kind == kind:
                    size = int(np.prod(shape, dtype=np.int64))
                    slots.append(Slot(name, kind, tuple(shape), offset, size))
                    offset += -(-size // _ALIGN) * _ALIGN
            ends[kind] = offset
        if len({slot.name for slot in slots}) != len(slots):
            raise ConfigError("two tensors of the model have the same name", phase="layout")
        if not ends[TRAINABLE]:
            raise ConfigError("the model has no trainable parameter", phase="layout")
        return cls(tuple(slots), ends[TRAINABLE], ends[BUFFER], offset)

    def schema(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the committed state, sorted by name."""
        specs = [TensorSpec(name=META_NAME, dtype="uint8", shape=(META_BYTES,))]
        for slot in self.slots:
            specs.append(TensorSpec(name=_committed_name(slot), dtype="float32", shape=slot.shape))
            if slot.kind == TRAINABLE:
                name = f"momentum/{slot.name}"
                specs.append(TensorSpec(name=name, dtype="float32", shape=slot.shape))
        return tuple(sorted(specs, key=lambda spec: spec.name))

    def clear_padding(self, flat: Array) -> None:
        """Zeros between the tensors again: a coarse codec gives them values (a sign has no zero).

        `flat` is as long as one of the layout's parts, or all of it.
        """
        for slot in self.slots:
            end = slot.offset + slot.size
            flat[end : end + -end % _ALIGN] = 0

    def views(self, theta: Array, momentum: Array) -> dict[str, NDArray[Any]]:
        """The named arrays inside the two flat buffers (no copy)."""
        named: dict[str, NDArray[Any]] = {}
        for slot in self.slots:
            where = slice(slot.offset, slot.offset + slot.size)
            named[_committed_name(slot)] = theta[where].reshape(slot.shape)
            if slot.kind == TRAINABLE:
                named[f"momentum/{slot.name}"] = momentum[where].reshape(slot.shape)
        return named


def _committed_name(slot: Slot) -> str:
    return f"buffer/{slot.name}" if slot.kind == BUFFER else f"param/{slot.name}"


def aligned_zeros(count: int) -> Array:
    """`count` fp32 zeros that start on a 64-byte boundary."""
    raw = np.zeros(count + _ALIGN, dtype=np.float32)
    skip = (-raw.ctypes.data % ALIGN_BYTES) // 4
    return raw[skip : skip + count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What the run shares besides tensors. Changes only with a committed round."""

    round: int = 0
    tokens: int = 0
    """Tokens in all counted contributions: the committed part of the schedule's clock."""
    target_rounds: int = 0
    """The run ends for all at this round (0: no such end)."""
    target_tokens: int = 0
    """The run ends for all at the first round with so many tokens (0: no such end)."""
    strategy: str = ""
    shared: Mapping[str, int | float | str] = field(default_factory=dict)
    """Whatever else a strategy shares."""

    def after(self, tokens: int) -> Meta:
        return replace(self, round=self.round + 1, tokens=self.tokens + tokens)

    @property
    def complete(self) -> bool:
        return bool(
            (self.target_rounds and self.round >= self.target_rounds)
            or (self.target_tokens and self.tokens >= self.target_tokens)
        )

    def pack(self) -> NDArray[np.uint8]:
        """Canonical bytes: keys in a fixed order, shortest integers, zero padding."""
        packed = msgpack.packb(
            {
                "format": 1,
                "round": self.round,
                "shared": dict(sorted(self.shared.items())),
                "strategy": self.strategy,
                "target_rounds": self.target_rounds,
                "target_tokens": self.target_tokens,
                "tokens": self.tokens,
            }
        )
        if len(packed) > META_BYTES:
            raise ConfigError(f"a strategy shares more than {META_BYTES} bytes of metadata")
        return np.frombuffer(packed.ljust(META_BYTES, b"\0"), dtype=np.uint8)

    @classmethod
    def unpack(cls, data: NDArray[Any]) -> Meta:
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=META_BYTES)
        try:
            unpacker.feed(data.tobytes())
            fields = unpacker.unpack()
            if fields.pop("format") != 1:
                raise ValueError("format")
            meta = cls(**fields)
            if meta.pack().tobytes() != data.tobytes():
                raise ValueError("not canonical")
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            raise DivergenceError(f"{META_NAME} cannot be read: {error}", phase="state") from error
        return meta


@dataclass(frozen=True, slots=True)
class HeldState:
    """A committed state (or one that may become it), flat and named. Never mutated."""

    theta: Array
    momentum: Array
    meta: Meta
    state: CommittedState

    @property
    def round(self) -> int:
        return self.meta.round

    @property
    def root(self) -> bytes:
        return self.state.root


def seal(layout: Layout, theta: Array, momentum: Array, meta: Meta) -> HeldState:
    """Name and hash two flat buffers, which belong to the result from here on."""
    tensors = layout.views(theta, momentum)
    tensors[META_NAME] = meta.pack()
    for array in tensors.values():
        array.flags.writeable = False
    root, leaves = hash_state(tensors)
    state = CommittedState(round=meta.round, tensors=tensors, root=root, leaves=leaves)
    return HeldState(theta, momentum, meta, state)


def unseal(layout: Layout, state: CommittedState) -> HeldState:
    """Flat buffers from a state that came over the network or from disk; its root is checked."""
    check_schema(layout.schema(), state.tensors)
    theta, momentum = aligned_zeros(layout.total), aligned_zeros(layout.trainable)
    for name, view in layout.views(theta, momentum).items():
        view[...] = state.tensors[name]
    held = seal(layout, theta, momentum, Meta.unpack(state.tensors[META_NAME]))
    if held.root != state.root or held.round != state.round:
        raise DivergenceError(
            f"the state of round {state.round} hashes to {held.root.hex()[:16]}, "
            f"not to the committed {state.root.hex()[:16]}",
            phase="adopt",
        )
    return held


def check_schema(schema: Sequence[TensorSpec], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise a DivergenceError that names the first tensor which is not as expected."""
    expected = {spec.name: (spec.dtype, spec.shape) for spec in schema}
    for name in sorted(expected.keys() | tensors.keys()):
        have = (str(tensors[name].dtype), tensors[name].shape) if name in tensors else None
        if have != expected.get(name):
            raise DivergenceError(
                f"tensor {name} is {have or 'missing'}, and this model wants "
                f"{expected.get(name) or 'none of that name'}",
                phase="state",
            )


def hash_state(tensors: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, bytes]]:
    """The Merkle root of named arrays, and the chunk hashes of each."""
    from decentral import _native

    roots: list[tuple[str, bytes]] = []
    leaves: dict[str, bytes] = {}
    for name in sorted(tensors):
        array = tensors[name]
        leaves[name] = _native.leaf_hashes(array)
        roots.append((name, tensor_root(name, array, leaves[name])))
    return _native.state_root(roots), leaves


def tensor_root(name: str, array: NDArray[Any], leaves: bytes) -> bytes:
    """The hash of one tensor: its name, dtype, shape and chunk hashes."""
    from decentral import _native

    shape = tuple(int(size) for size in array.shape)
    return bytes(_native.tensor_root(name, str(array.dtype), shape, array.nbytes, leaves))
