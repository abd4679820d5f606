"""What is asked of a peer that serves, as the body of a call; the answer is raw.

    generate   text goes on     ─▶ bytes, `count` of them
    denoise    an expert's velocity at x_t ─▶ float32 [n, d], little-endian
    solve      all steps from noise to x_0 ─▶ the same

Whoever is linked may send anything: every field has its type, every size its limit, and the two
together are checked before an array is made. What is wrong is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from decentral.diffusion.sampling import SOLVERS
from decentral.errors import ProtocolError
from decentral.serving.parts import Version

if TYPE_CHECKING:
    from decentral.types import Array

    Classes: TypeAlias = "NDArray[np.int64]"

GENERATE, DENOISE, SOLVE = "generate", "denoise", "solve"
MAX_BYTES = 256
"""Of text, per call."""
MAX_CONTEXT = 1 << 16
MAX_VERSIONS = 64
"""Cells that a path is made of."""
MAX_TEMPERATURE = 100.0
MAX_ROWS = 1 << 16
MAX_ARRAY_BYTES = 15 << 20
"""A call's body has 16 MiB."""
MAX_STEPS, MAX_GUIDANCE = 1000, 100.0
MAX_WORK = 1 << 17
"""Rows times steps of one call: seconds, for a network that fits a processor."""
_ROOT_BYTES, _MAX_CELL = 32, 256
_MAX_INT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """The next `count` bytes of a text."""

    versions: tuple[Version, ...]
    """What the path's model is made of."""
    path: str
    context: bytes
    """As much of the text's end as a model can see."""
    place: int
    """Bytes of the text so far that were generated: which random numbers come next."""
    count: int
    temperature: float
    seed: int

    def pack(self) -> bytes:
        return _packed(
            [
                self.path,
                [[one.cell, one.round, one.root] for one in self.versions],
                self.context,
                self.place,
                self.count,
                float(self.temperature),
                self.seed,
            ]
        )

    @classmethod
    def unpack(cls, body: bytes) -> TextRequest:
        path, versions, context, place, count, temperature, seed = _fields(body, 7)
        return cls(
            path=_text("path", path),
            versions=_versions(versions),
            context=_bytes("context", context, 1, MAX_CONTEXT),
            place=_whole("place", place, 0, _MAX_INT),
            count=_whole("count", count, 1, MAX_BYTES),
            temperature=_temperature(temperature),
            seed=_whole("seed", seed, 0, _MAX_INT),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VelocityRequest:
    """u_k(x, t, class) of one expert."""

    version: Version
    x: Array
    """float32 [n, d]"""
    t: Array
    """float32 [n], in [0, 1]"""
    classes: Classes | None
    """int64 [n], 0 to 255 (the null class among them)."""

    def pack(self) -> bytes:
        """Within the limits if there are no more rows than `rows_at_once`."""
        version, classes = self.version, self.classes
        return _packed(
            [
                [version.cell, version.round, version.root],
                list(self.x.shape),
                np.ascontiguousarray(self.x, dtype="<f4").tobytes(),
                np.ascontiguousarray(self.t, dtype="<f4").tobytes(),
                None if classes is None else classes.astype(np.uint8).tobytes(),
            ]
        )

    @classmethod
    def unpack(cls, body: bytes, dim: int, classes: int) -> VelocityRequest:
        """`dim`: d of the run; `classes`: how many, without the null class; 0: unconditional."""
        version, shape, x, t, labels = _fields(body, 5)
        n = _rows(shape, dim)
        rows = floats("x", x, (n, dim))
        times = floats("t", t, (n,))
        if not ((times >= 0) & (times <= 1)).all():
            raise ProtocolError("t is in [0, 1]", phase="body")
        return cls(version=_version(version), x=rows, t=times, classes=_classes(labels, n, classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRequest:
    """Noise to images, all the way with one expert."""

    version: Version
    x: Array
    """float32 [n, d], at t = 1"""
    classes: Classes | None
    """int64 [n]; None where the run knows none."""
    steps: int
    solver: str
    guidance: float

    def pack(self) -> bytes:
        version, classes = self.version, self.classes
        return _packed(
            [
                [version.cell, version.round, version.root],
                list(self.x.shape),
                np.ascontiguousarray(self.x, dtype="<f4").tobytes(),
                None if classes is None else classes.astype(np.uint8).tobytes(),
                self.steps,
                self.solver,
                float(self.guidance),
            ]
        )

    @classmethod
    def unpack(cls, body: bytes, dim: int, classes: int) -> SolveRequest:
        """As of a `VelocityRequest`; the null class is for guidance only, not to be asked for."""
        version, shape, x, labels, steps, solver, guidance = _fields(body, 7)
        n = _rows(shape, dim)
        start = floats("x", x, (n, dim))
        steps = _whole("steps", steps, 1, min(MAX_STEPS, MAX_WORK // n))
        if solver not in SOLVERS:
            raise _wrong("solver", " or ".join(SOLVERS), solver)
        if not isinstance(guidance, float) or not abs(guidance) <= MAX_GUIDANCE:
            raise ProtocolError(f"guidance is a float up to {MAX_GUIDANCE:g}", phase="body")
        found = _classes(labels, n, classes)
        if (found is None) != (classes == 0) or (found is not None and (found == classes).any()):
            raise ProtocolError("each row has a class where the run knows classes", phase="body")
        return cls(
            version=_version(version),
            x=start,
            classes=found,
            steps=steps,
            solver=solver,
            guidance=guidance,
        )


def rows_at_once(dim: int, steps: int = 1) -> int:
    """Rows that one call can carry, and work on for so many steps."""
    return max(1, min(MAX_ROWS, MAX_ARRAY_BYTES // (4 * dim + 5), MAX_WORK // steps))


def floats(name: str, data: object, shape: tuple[int, ...]) -> Array:
    """Finite float32 of exactly this shape, read-only; ProtocolError for anything else."""
    size = 4 * int(np.prod(shape))
    if not isinstance(data, bytes) or len(data) != size:
        raise _wrong(name, f"{size} bytes of float32", data)
    array = np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)
    if not np.isfinite(array).all():
        raise ProtocolError(f"{name} has values that are not finite", phase="body")
    return cast("Array", array)


# ------------------------------------------------------------------------------------ details


def _packed(fields: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _fields(body: bytes, count: int) -> list[Any]:
    try:
        fields = msgpack.unpackb(
            body,
            max_array_len=MAX_VERSIONS,
            max_map_len=0,
            max_str_len=_MAX_CELL,
            max_bin_len=MAX_ARRAY_BYTES,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the body is not as agreed: {error}", phase="body") from error
    if not isinstance(fields, list) or len(fields) != count:
        raise ProtocolError(f"the body is a list of {count} fields", phase="body")
    return fields


def _wrong(name: str, wanted: str, found: object) -> ProtocolError:
    size = f" of {len(found)}" if isinstance(found, bytes | str | list) else ""
    return ProtocolError(f"{name} is {wanted}, not {type(found).__name__}{size}", phase="body")


def _whole(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int:
        raise _wrong(name, "a whole number", value)
    if not least <= value <= most:
        raise ProtocolError(f"{name} is from {least} to {most}, not {value}", phase="body")
    return value


def _rows(shape: object, dim: int) -> int:
    """n of [n, dim]."""
    if not isinstance(shape, list) or len(shape) != 2:
        raise _wrong("shape", "[n, d]", shape)
    _whole("d", shape[1], dim, dim)
    return _whole("n", shape[0], 1, MAX_ROWS)


def _bytes(name: str, value: object, least: int, most: int) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise _wrong(name, f"{least} to {most} bytes", value)
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _wrong(name, "a cell's name", value)
    return value


def _temperature(value: object) -> float:
    if not isinstance(value, float) or not 0 <= value <= MAX_TEMPERATURE:  # nan is neither
        says = f"temperature is a float from 0 to {MAX_TEMPERATURE:g}"
        raise ProtocolError(says, phase="body")
    return value


def _version(value: object) -> Version:
    if not isinstance(value, list) or len(value) != 3:
        raise _wrong("a version", "[cell, round, root]", value)
    cell, round, root = value
    return Version(
        _text("cell", cell),
        _whole("round", round, 0, _MAX_INT),
        _bytes("root", root, _ROOT_BYTES, _ROOT_BYTES),
    )


def _versions(value: object) -> tuple[Version, ...]:
    if not isinstance(value, list):
        raise _wrong("versions", "a list", value)
    return tuple(_version(one) for one in cast("Sequence[object]", value))


def _classes(value: object, n: int, classes: int) -> Classes | None:
    if value is None:
        return None
    if not classes:
        raise ProtocolError("this run knows no classes", phase="body")
    found = np.frombuffer(_bytes("classes", value, n, n), np.uint8).astype(np.int64)
    if (found > classes).any():
        raise ProtocolError(f"classes are 0 to {classes}, of which the last is none", phase="body")
    return found
