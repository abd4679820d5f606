"""Codecs: how values travel. The table is the native one (native/collective/codec.h); "topk" is not
an engine codec but goes by all-gather (`decentral.collectives.topk`), and is listed with them.

| codec | bits per value | what it does |
|---|---|---|
| fp32 | 32 | as it is |
| bf16, fp16 | 16 | round to nearest even |
| int8 | 8.125 | blocks of 256, absmax scale |
| int4 | 4.5 | blocks of 32, absmax scale |
| fp4 | 4.125 | E3M0, blocks of 128 (Streaming DiLoCo, arXiv:2501.18512) |
| sign | 1.125 | the sign, and the mean magnitude of a block of 256; sums travel as int8 |
| topk | 0.227 | the 64 largest of 4096, 2 bits each (SparseLoCo, arXiv:2508.15706) |
"""

from __future__ import annotations

from dataclasses import dataclass

from decentral import _native
from decentral.collectives import topk
from decentral.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecInfo:
    """What planners and groups know of a codec."""

    name: str
    block: int
    """Values that share a scale; 1: each stands alone."""
    reencodes: bool
    """Encoding what was decoded gives the same bytes: finals are passed on without being kept."""
    rides_ring: bool
    """Partial sums may be encoded again. False: only contributions and finals (butterfly)."""
    final: str
    """The codec of finals: wide enough for a sum."""
    bytes_per_value: float
    """On the wire, of large buffers."""
    final_bytes_per_value: float


_LARGE = 1 << 20
_TOPK = CodecInfo(
    name="topk",
    block=topk.CHUNK,
    reencodes=False,
    rides_ring=False,
    final="topk",
    bytes_per_value=topk.encoded_size(_LARGE) / _LARGE,
    final_bytes_per_value=topk.encoded_size(_LARGE) / _LARGE,
)
_TABLE: dict[str, CodecInfo] = {
    name: CodecInfo(
        name=name,
        block=block,
        reencodes=reencodes,
        rides_ring=rides_ring,
        final=final,
        bytes_per_value=_native.encoded_size(name, _LARGE) / _LARGE,
        final_bytes_per_value=_native.encoded_size(final, _LARGE) / _LARGE,
    )
    for name, block, reencodes, rides_ring, final in _native.codecs()
} | {"topk": _TOPK}

CODECS: tuple[str, ...] = tuple(_TABLE)
"""The names of all codecs."""
ENGINE_CODECS: tuple[str, ...] = tuple(name for name in CODECS if name != "topk")
"""Those that the engine encodes and reduces with, chunk by chunk."""


def codec_named(name: str) -> CodecInfo:
    """What is known of a codec; `ConfigError` names all where there is none of that name."""
    try:
        return _TABLE[name]
    except KeyError:
        raise ConfigError(
            f"there is no codec {name!r}: choose from {', '.join(CODECS)}", phase="start"
        ) from None
