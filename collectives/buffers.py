"""What callers bring, as the fp32 memory that the engine works on.

fp32           the caller's own memory, never a copy
bf16, fp16     decoded into fp32 once, summed in fp32, rounded once at the end
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array

DTYPES = ("fp32", "bf16", "fp16")
"""Element types of buffers. A bf16 array has numpy dtype `bfloat16` (ml_dtypes), or is a torch
tensor; the number of a type in this list is that of native/collective/engine.h."""

_NAMES = {
    "float32": "fp32",
    "torch.float32": "fp32",
    "float16": "fp16",
    "torch.float16": "fp16",
    "bfloat16": "bf16",
    "torch.bfloat16": "bf16",
}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A caller's buffer: its raw memory, and the fp32 values that stand for it."""

    dtype: str
    raw: Any
    """One dimension of the caller's memory: float32, or the 16-bit patterns as uint16."""
    owner: Any
    """What keeps that memory alive."""

    @property
    def size(self) -> int:
        return int(self.raw.size)

    def load(self) -> Array:
        """The values as fp32: the memory itself, or a decoded copy."""
        if self.dtype == "fp32":
            return self.raw  # type: ignore[no-any-return]
        values = np.empty(self.size, np.float32)
        _native.decode(self.dtype, self.raw.tobytes(), values)
        return values

    def target(self) -> tuple[Array, Callable[[], None] | None]:
        """Where the result shall land, and what brings it into the caller's memory then."""
        if self.dtype == "fp32":
            return self.raw, None
        values = np.empty(self.size, np.float32)

        def finish() -> None:
            self.raw[:] = np.frombuffer(_native.encode(self.dtype, values), np.uint16)

        return values, finish


def buffer(given: Any, name: str, *, writable: bool = False) -> Buffer:
    """`given` as a Buffer over the same memory. ConfigError if that is impossible: never a silent
    copy, and never a tensor that lies elsewhere than in this machine's memory."""
    dtype = _NAMES.get(str(getattr(given, "dtype", None)))
    if dtype is None:
        raise ConfigError(
            f"{name} must be an array of {', '.join(DTYPES)}, not "
            f"{getattr(given, 'dtype', type(given).__name__)}",
            phase="start",
        )
    array = given if isinstance(given, np.ndarray) else _of_tensor(given, name, dtype)
    if not array.flags.c_contiguous:
        raise ConfigError(
            f"{name} must be C-contiguous, not with strides {array.strides}", phase="start"
        )
    if writable and not array.flags.writeable:
        raise ConfigError(f"{name} must be writable", phase="start")
    flat = array.reshape(-1)
    return Buffer(dtype, flat if dtype == "fp32" else flat.view(np.uint16), given)


def _of_tensor(tensor: Any, name: str, dtype: str) -> Any:
    """A torch tensor's memory. Its methods are enough: nothing here imports torch."""
    device = str(getattr(tensor, "device", "cpu"))
    if device != "cpu":
        raise ConfigError(
            f"{name} lies on {device}: give it to decentral.collectives.staging", phase="start"
        )
    if not tensor.is_contiguous():
        raise ConfigError(f"{name} must be contiguous", phase="start")
    if dtype != "bf16":
        return tensor.detach().numpy()
    # numpy has no name for bf16: its patterns, straight from memory.
    patterns = (ctypes.c_uint16 * tensor.numel()).from_address(tensor.data_ptr())
    return np.frombuffer(patterns, np.uint16)
