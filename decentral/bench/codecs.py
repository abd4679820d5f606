"""Codecs on one core: ratio, speed and error."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from decentral import _native

CODECS = ("fp32", "bf16", "int8")


def measure(size_mib: int = 64, runs: int = 7) -> dict[str, Any]:
    """Encode and decode `size_mib` of standard normal fp32, `runs` times each; medians."""
    values = np.random.default_rng(0).standard_normal(size_mib * 2**18, dtype=np.float32)
    back = np.empty_like(values)
    results = []
    for codec in CODECS:
        encode_s, decode_s = [], []
        for _ in range(runs):
            start_s = time.perf_counter()
            encoded = _native.encode(codec, values)
            middle_s = time.perf_counter()
            _native.decode(codec, encoded, back)
            encode_s.append(middle_s - start_s)
            decode_s.append(time.perf_counter() - middle_s)
        error = (back - values).astype(np.float64)
        results.append(
            {
                "codec": codec,
                "ratio": round(values.nbytes / len(encoded), 3),
                "encode_gb_s": round(values.nbytes / 1e9 / statistics.median(encode_s), 3),
                "decode_gb_s": round(values.nbytes / 1e9 / statistics.median(decode_s), 3),
                "rms_relative_error": float(np.sqrt(np.mean(error**2)) / np.std(values)),
                "bias": float(np.mean(error)),
            }
        )
    return {"bench": "codecs", "size_bytes": values.nbytes, "results": results}
