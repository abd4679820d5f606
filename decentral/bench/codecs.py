"""Codecs on one core: ratio, speed, and the error of an all-reduced mean.

    decentral bench codecs --json

Speed is of fp32 bytes, in chunks as the engine takes them, streaming through memory: `encode` a
contribution, `reduce` what was received (decode and add), `decode` the final.

Error is simulated with the native codecs, n members whose mean is wanted, against the exact mean:

    butterfly   owner: x0 + dec(enc(x1)) + ... + dec(enc(xn-1))       each rounded once, then
                                                                      the final once
    ring        x0 -> enc -> + x1 -> enc -> + x2 -> ... -> + xn-1     the sum rounded at each hop,
                                                                      then the final once

so that with one rounding's relative error e (`once`), the butterfly ends between 1.2 e (n = 2) and
1.4 e whatever n, and the ring at e · sqrt((n + 1) / 2).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decentral import _native
from decentral.collectives import topk
from decentral.collectives.codecs import CODECS, CodecInfo, codec_named

if TYPE_CHECKING:
    from decentral.types import Array

MEMBERS = (2, 4, 16)
CHUNK_VALUES = 128 << 10
"""512 KiB, the engine's usual grain."""
ERROR_VALUES = 1 << 19
"""Per member. Chance leaves a mean error of 0.14 % of the error's own spread."""
SEED = 0
DRAWS: dict[str, Callable[[np.random.Generator], Array]] = {
    "gaussian": lambda r: r.standard_normal(ERROR_VALUES, np.float32),
    "student_t3": lambda r: r.standard_t(3, ERROR_VALUES).astype(np.float32),
}
"""Inputs. Student's t with 3 degrees of freedom: tails as heavy as gradients have."""

PUBLISHED: list[dict[str, Any]] = [
    {
        "system": "PCCL 1.0.0, u8 min-max",
        "bits_per_value": 8,
        "rms_percent_gaussian": {"2": 3.9, "4": 6.7},
        "bias_gaussian": {"2": -0.05, "4": -0.13},
        "source": "measured elsewhere: built from source, ring of 2 and 4 peers, loopback",
    },
    {
        "system": "PCCL 1.0.0, u8 zero-point/scale",
        "bits_per_value": 8,
        "rms_percent_gaussian": {"2": 1.7, "4": 2.1},
        "bias_gaussian": {"2": 0.0, "4": 0.0},
        "source": "measured elsewhere: built from source, ring of 2 and 4 peers, loopback",
    },
]
"""What to compare with: the error of PCCL's reduced sums on standard normal input."""


def measure(size_mib: int = 64, runs: int = 7) -> dict[str, Any]:
    """Medians of `runs` over `size_mib` of fp32, errors over `ERROR_VALUES` per member, seeded."""
    results: list[dict[str, Any]] = []
    values = np.random.default_rng(SEED).standard_normal(size_mib << 18, np.float32)
    for name in CODECS:
        info = codec_named(name)
        speeds = _topk_speeds(values, runs) if name == "topk" else _speeds(name, values, runs)
        results.append(
            {
                "codec": name,
                "ratio": round(4 / info.bytes_per_value, 3),
                "bits_per_value": round(8 * info.bytes_per_value, 3),
                "final": info.final,
                **speeds,
            }
        )
    for kind, draw in DRAWS.items():
        random = np.random.default_rng(SEED)
        members = [draw(random) for _ in range(max(MEMBERS))]
        for result in results:
            result.update(_errors(codec_named(result["codec"]), kind, members))
    # One set of columns: fp32 has all; None where a codec has no such thing.
    results = [{key: result.get(key) for key in results[0]} for result in results]
    return {
        "bench": "codecs",
        "size_bytes": values.nbytes,
        "seed": SEED,
        "results": results,
        "published": PUBLISHED,
        "held": not (wrong := list(_wrong(results))),
        "notes": [
            "rms_percent: error of the all-reduced mean, relative to the exact mean's root mean "
            "square. bias: the sum's mean error, in standard deviations of one contribution; what "
            "is below bias_noise is chance.",
            *(f"{p['system']} ({p['source']}): {p['rms_percent_gaussian']} %" for p in PUBLISHED),
            *wrong,
        ],
    }


def _wrong(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the table claims and these figures do not hold."""
    wrong = []
    int8 = next(r for r in results if r["codec"] == "int8")
    for schedule in ("butterfly", "ring"):
        ours = int8[f"rms_percent_gaussian_{schedule}"]
        for other in PUBLISHED:
            for n, rms in other["rms_percent_gaussian"].items():
                if ours[n] >= rms:
                    wrong.append(f"int8, {schedule}, {n} members: {ours[n]} %, not below {rms} %")
    once = {(r["codec"], kind): r[f"rms_percent_{kind}_once"] for r in results for kind in DRAWS}
    for result in results:
        for kind in DRAWS:
            rms = result[f"rms_percent_{kind}_butterfly"]
            most = np.hypot(once[result["codec"], kind], once.get((result["final"], kind), 0))
            if result["codec"] != "fp32" and max(rms.values()) > 1.03 * most:
                wrong.append(f"{result['codec']}: the butterfly's error grows on {kind}: {rms}")
            for schedule in ("butterfly", "ring"):
                bias = result[f"bias_{kind}_{schedule}"] or {}
                noise = result[f"bias_noise_{kind}_{schedule}"]
                if any(abs(bias[n]) > 4 * noise[n] + 1e-7 for n in bias):
                    wrong.append(f"{result['codec']}: biased on {kind}, {schedule}: {bias}")
    return wrong


# ---- speed


def _speeds(codec: str, values: Array, runs: int) -> dict[str, float]:
    chunks = [slice(at, at + CHUNK_VALUES) for at in range(0, values.size, CHUNK_VALUES)]
    sizes = [_native.encoded_size(codec, values[chunk].size) for chunk in chunks]
    wire = np.empty(sum(sizes), np.uint8)
    wires = np.split(wire, np.cumsum(sizes)[:-1])
    total, back = np.zeros_like(values), np.empty_like(values)

    def encode() -> None:
        for chunk, data in zip(chunks, wires, strict=True):
            _native.encode_into(codec, values[chunk], data)

    def reduce() -> None:
        for chunk, data in zip(chunks, wires, strict=True):
            _native.decode_add(codec, data, total[chunk], 1.0, total[chunk])

    def decode() -> None:
        for chunk, data in zip(chunks, wires, strict=True):
            _native.decode(codec, data, back[chunk])

    return _timed(values.nbytes, runs, encode=encode, reduce=reduce, decode=decode)


def _topk_speeds(values: Array, runs: int) -> dict[str, float]:
    """A final is a sum of all contributions: there is nothing further to decode."""
    total = np.zeros_like(values)
    data = topk.encode(values)
    return _timed(
        values.nbytes,
        runs,
        encode=lambda: topk.encode(values),
        reduce=lambda: topk.decode_add(data, total),
    )


def _timed(size_bytes: int, runs: int, **phases: Callable[[], object]) -> dict[str, float]:
    """GB/s of each phase and of all after each other."""
    for work in phases.values():  # touch all memory once
        work()
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    for _ in range(runs):
        for name, work in phases.items():
            start_s = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start_s)
    speeds = {
        f"{name}_gb_s": round(size_bytes / 1e9 / statistics.median(times), 3)
        for name, times in seconds.items()
    }
    together = [sum(times) for times in zip(*seconds.values(), strict=True)]
    return {**speeds, "all_gb_s": round(size_bytes / 1e9 / statistics.median(together), 3)}


# ---- error


def _errors(info: CodecInfo, kind: str, members: Sequence[Array]) -> dict[str, Any]:
    out: dict[str, Any] = {
        f"rms_percent_{kind}_once": _rms_percent(_once(info, members[0]), members[0])
    }
    schedules = {"butterfly": butterfly_mean}
    if info.name == "topk":
        schedules = {"butterfly": gathered_mean}  # like the butterfly, each is rounded once
    elif info.rides_ring:
        schedules["ring"] = ring_mean
    for schedule, mean_of in schedules.items():
        rms, bias, noise = {}, {}, {}
        for n in MEMBERS:
            exact = np.asarray(np.mean(members[:n], axis=0, dtype=np.float64))
            mean = mean_of(info, members[:n])
            error, spread = mean - exact, float(np.std(members[0]))
            rms[str(n)] = _rms_percent(mean, exact)
            bias[str(n)] = _figures(n * float(np.mean(error)) / spread)
            noise[str(n)] = _figures(n * float(np.std(error)) / spread / error.size**0.5)
        where = f"{kind}_{schedule}"
        out[f"rms_percent_{where}"] = rms
        out[f"bias_{where}"], out[f"bias_noise_{where}"] = bias, noise
    return out


def _rms_percent(values: Array, exact: NDArray[Any]) -> float:
    error = values - exact.astype(np.float64)
    return _figures(
        100 * float(np.sqrt(np.mean(error**2) / np.mean(exact.astype(np.float64) ** 2)))
    )


def _once(info: CodecInfo, values: Array) -> Array:
    """What is left of one contribution."""
    out = np.zeros_like(values)
    if info.name == "topk":
        topk.decode_add(topk.encode(values), out)
    else:
        _native.decode(info.name, _encode(info.name, values), out)
    return out


def butterfly_mean(info: CodecInfo, members: Sequence[Array]) -> Array:
    """What everybody holds after a butterfly, with member 0 as the owner."""
    total = members[0]
    for values in members[1:]:
        total = _add(info.name, _encode(info.name, values), total)
    return _final(info, total, len(members))


def ring_mean(info: CodecInfo, members: Sequence[Array]) -> Array:
    """What everybody holds after a ring: the partial sum is encoded again at every hop."""
    total = members[0]
    for values in members[1:]:
        total = _add(info.name, _encode(info.name, total), values)
    return _final(info, total, len(members))


def gathered_mean(info: CodecInfo, members: Sequence[Array]) -> Array:
    """The mean of what top-k keeps, added up in the order of the members."""
    total = np.zeros_like(members[0])
    for values in members:
        topk.decode_add(topk.encode(values), total, 1 / len(members))
    return total


def _encode(codec: str, values: Array, weight: float = 1.0) -> NDArray[np.uint8]:
    wire = np.empty(_native.encoded_size(codec, values.size), np.uint8)
    _native.encode_into(codec, values, wire, weight)
    return wire


def _add(codec: str, wire: NDArray[np.uint8], values: Array) -> Array:
    out = np.empty_like(values)
    _native.decode_add(codec, wire, values, 1.0, out)
    return out


def _final(info: CodecInfo, total: Array, members: int) -> Array:
    out = np.empty_like(total)
    _native.decode(info.final, _encode(info.final, total, 1 / members), out)
    return out


def _figures(value: float) -> float:
    """Four significant figures."""
    return float(f"{value:.4g}")
