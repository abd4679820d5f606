"""What the native codecs must compute, in numpy, bit for bit. Used by tests only.

Slow and obvious: a group of 256 values after the other, as native/collective/codec.h draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from decentral.types import Array

GROUP = 256
TOPK_CHUNK = 4096
_SMALLEST_SCALE = np.float32(2) * np.finfo(np.float32).tiny
"""Blocks with a smaller scale travel as zeros."""
_TINY_SIGN = np.float32(2.0**-100)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A blockwise codec: how a value becomes `bits` bits, and what a block's scale keeps."""

    block: int
    bits: int
    top: np.float32
    """absmax / scale."""
    scale_mask: int
    """The bits of an fp32 scale that are kept."""
    scale_bytes: int
    """How many of its upper bytes travel."""
    to_bits: Callable[[Array], NDArray[np.int64]]
    from_bits: Callable[[NDArray[np.int64]], Array]


def _round(values: Array) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)  # rint rounds halves to even


def _sign_extended(bits: int) -> Callable[[NDArray[np.int64]], Array]:
    half = 1 << (bits - 1)
    return lambda fields: ((fields ^ half) - half).astype(np.float32)


_E3M0 = np.array([0, 1, 2, 4, 8, 16, 32, 64], np.float32)
_E3M0_FROM = np.array([0.5, 1.5, 3, 6, 12, 24, 48], np.float32)
"""From here on the next value is at least as near."""


def _to_e3m0(values: Array) -> NDArray[np.int64]:
    codes = np.searchsorted(_E3M0_FROM, np.abs(values), side="right")
    return codes | np.signbit(values).astype(np.int64) << 3


def _from_e3m0(fields: NDArray[np.int64]) -> Array:
    values: Array = np.where(fields & 8, -_E3M0[fields & 7], _E3M0[fields & 7])
    return values


_PACKED = {
    "int8": _Packed(
        block=256,
        bits=8,
        top=np.float32(127),
        scale_mask=0xFFFFFF80,
        scale_bytes=4,
        to_bits=_round,
        from_bits=_sign_extended(8),
    ),
    "int4": _Packed(
        block=32,
        bits=4,
        top=np.float32(7),
        scale_mask=0xFFFF0000,
        scale_bytes=2,
        to_bits=_round,
        from_bits=_sign_extended(4),
    ),
    "fp4": _Packed(
        block=128,
        bits=4,
        top=np.float32(64),
        scale_mask=0xFFFF0000,
        scale_bytes=2,
        to_bits=_to_e3m0,
        from_bits=_from_e3m0,
    ),
}


def encode(codec: str, values: Array) -> bytes:
    """Wire bytes of fp32 values (native/collective/codec.h)."""
    if codec == "fp32":
        return values.astype("<f4").tobytes()
    if codec == "bf16":
        return _to_bf16(values).astype("<u2").tobytes()
    if codec == "fp16":
        return _to_fp16(values).tobytes()
    groups = [values[start : start + GROUP] for start in range(0, values.size, GROUP)]
    if codec == "sign":
        return b"".join(map(_encode_signs, groups))
    if codec in _PACKED:
        return b"".join(_encode_packed(_PACKED[codec], group) for group in groups)
    raise ValueError(f"no codec {codec!r}")


def decode(codec: str, data: bytes, count: int) -> Array:
    """`count` fp32 values from wire bytes."""
    if codec == "fp32":
        return np.frombuffer(data, "<f4", count).astype(np.float32)
    if codec == "bf16":
        return (np.frombuffer(data, "<u2", count).astype(np.uint32) << 16).view(np.float32)
    if codec == "fp16":
        return np.frombuffer(data, "<f2", count).astype(np.float32)
    if codec != "sign" and codec not in _PACKED:
        raise ValueError(f"no codec {codec!r}")
    out, at = np.empty(count, np.float32), 0
    for start in range(0, count, GROUP):
        part = out[start : start + GROUP]
        with np.errstate(over="ignore", invalid="ignore"):  # any bytes decode, to whatever
            if codec == "sign":
                at = _decode_signs(data, at, part)
            else:
                at = _decode_packed(_PACKED[codec], data, at, part)
    return out


def _to_bf16(values: Array) -> NDArray[np.uint32]:
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint32)


def _to_fp16(values: Array) -> NDArray[np.uint16]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        halves = values.astype("<f2").view("<u2")
    return np.where(np.isnan(values), np.uint16(0x7E00), halves).astype("<u2")


def _scale(absmax: np.float32, rule: _Packed) -> np.float32:
    """What a block is divided by: 0 for zeros, NaN where something is not finite."""
    if not np.isfinite(absmax):
        return np.float32(np.nan)
    if absmax < rule.top * _SMALLEST_SCALE:
        return np.float32(0)
    return _cut(absmax / rule.top, rule.scale_mask)


def _cut(value: np.float32, mask: int) -> np.float32:
    return np.float32((np.asarray(value).view(np.uint32) & np.uint32(mask)).view(np.float32))


def _encode_packed(rule: _Packed, group: Array) -> bytes:
    fields, scales = np.zeros(group.size, np.int64), b""
    for start in range(0, group.size, rule.block):
        block = group[start : start + rule.block]
        scale = _scale(np.max(np.abs(block)), rule)
        scales += np.array([scale], "<f4").tobytes()[4 - rule.scale_bytes :]
        if scale > 0:
            bits = rule.to_bits(block * (np.float32(1) / scale))
            fields[start : start + rule.block] = bits & ((1 << rule.bits) - 1)
    per_word = 32 // rule.bits
    words = -(-group.size // per_word)
    padded = np.zeros(per_word * words, np.int64)
    padded[: group.size] = fields
    shifts = rule.bits * np.arange(per_word)[:, None]
    packed: NDArray[np.int64] = (padded.reshape(per_word, words) << shifts).sum(axis=0)
    return scales + packed.astype("<u4").tobytes()


def _decode_packed(rule: _Packed, data: bytes, at: int, out: Array) -> int:
    """Fills `out` with a group that starts at `at`; where the next one starts."""
    blocks, per_word = -(-out.size // rule.block), 32 // rule.bits
    words = -(-out.size // per_word)
    upper = np.frombuffer(data, f"<u{rule.scale_bytes}", blocks, at).astype(np.uint32)
    scales = (upper << np.uint32(32 - 8 * rule.scale_bytes)).view(np.float32)
    at += blocks * rule.scale_bytes
    packed = np.frombuffer(data, "<u4", words, at).astype(np.int64)
    shifts = rule.bits * np.arange(per_word)[:, None]
    fields = (packed[None, :] >> shifts & ((1 << rule.bits) - 1)).ravel()[: out.size]
    out[:] = rule.from_bits(fields) * np.repeat(scales, rule.block)[: out.size]
    return at + 4 * words


def _encode_signs(group: Array) -> bytes:
    magnitudes, rows = np.abs(group), -(-group.size // 8)
    absmax, scale = np.max(magnitudes), np.float32(0)
    if not np.isfinite(absmax):
        scale = np.float32(np.nan)
    elif absmax >= _TINY_SIGN:
        exponent = int(np.frexp(absmax)[1]) - 1
        units = np.rint(np.ldexp(magnitudes, 21 - exponent)).astype(np.int64)
        mean = (int(units.sum()) + group.size // 2) // group.size
        scale = np.ldexp(np.float32(min(mean, 2**22 - 1)), exponent - 21)
        scale = scale if scale >= _TINY_SIGN else np.float32(0)
    bits = np.zeros(8 * rows, np.int64)
    if scale > 0:
        bits[: group.size] = np.signbit(group)
    packed: NDArray[np.int64] = (bits.reshape(8, rows) << np.arange(8)[:, None]).sum(axis=0)
    return np.array([scale], "<f4").tobytes() + packed.astype(np.uint8).tobytes()


def _decode_signs(data: bytes, at: int, out: Array) -> int:
    rows = -(-out.size // 8)
    (scale,) = np.frombuffer(data, "<f4", 1, at)
    packed = np.frombuffer(data, np.uint8, rows, at + 4).astype(np.int64)
    negative = (packed[None, :] >> np.arange(8)[:, None] & 1).ravel()[: out.size]
    out[:] = np.where(negative == 1, -scale, scale)
    return at + 4 + rows


def topk_encode(values: Array, k: int) -> bytes:
    """Wire bytes of the k largest of each 4096 values (native/collective/topk.h)."""
    return b"".join(
        _topk_chunk(values[start : start + TOPK_CHUNK], k)
        for start in range(0, values.size, TOPK_CHUNK)
    )


def topk_decode(data: bytes, count: int, k: int) -> Array:
    """`count` fp32 values, most of them zero, from what `topk_encode` made."""
    out, at = np.zeros(count, np.float32), 0
    for start in range(0, count, TOPK_CHUNK):
        size = min(TOPK_CHUNK, count - start)
        survivors = -(-size * k // TOPK_CHUNK)
        levels = (np.frombuffer(data, "<u2", 2, at).astype(np.uint32) << 16).view(np.float32)
        at += 4
        indices = _unpack(data, at, survivors, 12)
        at += -(-12 * survivors // 8)
        fields = _unpack(data, at, survivors, 2)
        at += -(-2 * survivors // 8)
        signs = np.where(fields & 1, np.float32(-1), np.float32(1))
        out[start + indices] = signs * levels[fields >> 1]
    return out


def _topk_chunk(chunk: Array, k: int) -> bytes:
    survivors = -(-chunk.size * k // TOPK_CHUNK)
    magnitudes = (
        chunk.view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    )  # order like floats, NaN on top
    ranked = np.argsort(-magnitudes, kind="stable")[:survivors]
    levels, cut = _fit(np.abs(chunk[ranked]).astype(np.float64))
    high = np.zeros(chunk.size, np.int64)
    high[ranked[:cut]] = 2
    indices = np.sort(ranked)
    fields = np.signbit(chunk[indices]) | high[indices]
    halves = _to_bf16(levels).astype("<u2").tobytes()
    return halves + _pack(indices, 12) + _pack(fields, 2)


def _fit(ranked: NDArray[np.float64]) -> tuple[Array, int]:
    """(low, high) and how many are high: the cut that leaves the least squared error."""
    if not np.isfinite(ranked[0]):
        return np.full(2, np.nan, np.float32), ranked.size
    sums, count = np.cumsum(ranked), ranked.size
    highs = np.arange(1, count + 1)
    below = sums[-1] - sums
    scores = sums * sums / highs
    scores[:-1] += below[:-1] * below[:-1] / (count - highs[:-1])
    cut = int(np.argmax(scores)) + 1
    high = sums[cut - 1] / cut
    low = below[cut - 1] / (count - cut) if cut < count else high
    return np.array([low, high], np.float32), cut


def _pack(fields: NDArray[Any], bits: int) -> bytes:
    """Fields in order, from the low bits on."""
    spread = (fields[:, None].astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(spread.ravel().astype(np.uint8), bitorder="little").tobytes()


def _unpack(data: bytes, at: int, count: int, bits: int) -> NDArray[np.int64]:
    raw = np.frombuffer(data, np.uint8, -(-count * bits // 8), at)
    spread = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
    fields: NDArray[np.int64] = (spread.astype(np.int64) << np.arange(bits)).sum(axis=1)
    return fields
