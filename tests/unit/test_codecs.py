"""The native codecs and top-k compute what the numpy reference says, bit for bit; how far they
round, and that they do so without bias."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from decentral import _native
from decentral.collectives import topk
from decentral.collectives.codecs import CODECS, ENGINE_CODECS, codec_named
from decentral.collectives.reference_codecs import (
    decode,
    encode,
    topk_decode,
    topk_encode,
)
from decentral.errors import ConfigError, ProtocolError

BLOCKWISE = ("int8", "int4", "fp4", "sign")

anything = hnp.arrays(np.float32, st.integers(0, 700), elements=st.floats(width=32))


@st.composite
def ordinary(draw: st.DrawFn) -> np.ndarray:
    """Finite values of all magnitudes, with stretches that are alike, as tensors have them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(0, 1100))
    shifts = np.exp(random.uniform(-60, 60, 1 + size // 200))
    values = random.standard_t(3, size) * np.repeat(shifts, 200)[:size]
    return np.nan_to_num(values.astype(np.float32), posinf=3e38, neginf=-3e38)


values_of_any_kind = st.one_of(anything, ordinary())


def native_decode(codec: str, data: bytes, count: int) -> np.ndarray:
    out = np.full(count, 42, np.float32)
    _native.decode(codec, data, out)
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Payloads of NaN are the machine's affair."""
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b))) and a[~nan].tobytes() == b[~nan].tobytes()


def test_the_table_of_codecs() -> None:
    assert CODECS == ("fp32", "bf16", "int8", "fp16", "int4", "fp4", "sign", "topk")
    bits = [8 * codec_named(name).bytes_per_value for name in CODECS]
    assert bits == pytest.approx([32, 16, 8.125, 16, 4.5, 4.125, 1.125, 0.2266], rel=1e-3)
    for name in ENGINE_CODECS:
        info = codec_named(name)
        assert codec_named(info.final).rides_ring, "a sum must fit into what finals travel as"
        assert info.rides_ring == (name != "sign")
        assert info.reencodes
    assert codec_named("sign").final == "int8"
    with pytest.raises(ConfigError, match="int4"):
        codec_named("int16")
    with pytest.raises(ConfigError, match="int4"):
        _native.encoded_size("int16", 1)


@given(values_of_any_kind, st.sampled_from(ENGINE_CODECS))
def test_native_encodes_and_decodes_the_same_bytes(values: np.ndarray, codec: str) -> None:
    data = encode(codec, values)
    assert _native.encode(codec, values) == data
    assert len(data) == _native.encoded_size(codec, values.size)
    assert same_bits(native_decode(codec, data, values.size), decode(codec, data, values.size))


@given(ordinary(), st.sampled_from(ENGINE_CODECS), st.sampled_from([1.0, 0.5, 0.37, 1e-3]))
def test_weights_apply_before_rounding(values: np.ndarray, codec: str, weight: float) -> None:
    assert _native.encode(codec, values, weight) == encode(codec, np.float32(weight) * values)


@given(st.data(), st.sampled_from(ENGINE_CODECS), st.integers(0, 600))
def test_any_bytes_decode_to_what_the_reference_says(
    data: st.DataObject, codec: str, count: int
) -> None:
    size = _native.encoded_size(codec, count)
    seed = data.draw(st.integers(0, 2**32))
    raw = np.random.default_rng(seed).bytes(size)
    assert same_bits(native_decode(codec, raw, count), decode(codec, raw, count))


@given(ordinary(), st.sampled_from(ENGINE_CODECS), st.sampled_from([0.0, 1.0, 0.37]))
def test_decode_add_adds_to_the_weighted_source(
    values: np.ndarray, codec: str, weight: float
) -> None:
    wire = np.frombuffer(encode(codec, values), np.uint8).copy()
    other = values[::-1].copy()
    received = decode(codec, wire.tobytes(), values.size)
    expected = received if weight == 0 else received + np.float32(weight) * other
    _native.decode_add(codec, wire, other, weight, other)
    assert same_bits(other, expected)


@given(values_of_any_kind, st.sampled_from(ENGINE_CODECS))
def test_encoding_what_was_decoded_gives_the_same_bytes(values: np.ndarray, codec: str) -> None:
    data = _native.encode(codec, values)
    assert _native.encode(codec, native_decode(codec, data, values.size)) == data


@given(ordinary(), st.sampled_from(ENGINE_CODECS))
def test_how_far_a_value_moves(values: np.ndarray, codec: str) -> None:
    once = native_decode(codec, encode(codec, values), values.size)
    error = np.abs(once.astype(np.float64) - values)
    block = codec_named(codec).block
    absmax = np.array(
        [np.abs(values[i : i + block]).max(initial=0) for i in range(0, values.size, block)],
        np.float64,
    )
    absmax = np.repeat(absmax, block)[: values.size]
    bound = {
        "fp32": 0 * absmax,
        "bf16": absmax / 256,
        "fp16": absmax / 2048 + 2.0**-25,
        "int8": absmax / 253,
        "int4": absmax / 13.9,
        "fp4": np.maximum(np.abs(values) / 2.9, absmax / 120),
        "sign": absmax,
    }[codec]
    zeros = 1e-29 if codec in BLOCKWISE else 1e-45  # blocks below travel as zeros
    fits = np.isfinite(once) | (codec not in ("bf16", "fp16"))  # the largest become infinite
    assert np.all((error <= bound + zeros) | ~fits)


@given(st.sampled_from(ENGINE_CODECS), st.integers(0, 40), st.integers(0, 1000))
def test_sizes_add_up_over_whole_blocks(codec: str, blocks: int, rest: int) -> None:
    whole = _native.encoded_size(codec, 256 * blocks)
    tail = _native.encoded_size(codec, rest)
    assert _native.encoded_size(codec, 256 * blocks + rest) == whole + tail


def test_halves_round_to_even() -> None:
    ones = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32).view(np.float32)
    assert _native.encode("bf16", ones) == struct.pack("<4H", 0x3F80, 0x3F82, 0x3F81, 0x7F80)
    ones = np.array([0x3F801000, 0x3F803000, 0x3F801001, 0x477FEFFF, 0x477FF000, 0x33000000])
    halves = _native.encode("fp16", ones.astype(np.uint32).view(np.float32))
    assert halves == struct.pack("<6H", 0x3C00, 0x3C02, 0x3C01, 0x7BFF, 0x7C00, 0)


def test_nan_stays_nan_and_infinity_infinity_in_16_bits() -> None:
    odd = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    assert _native.encode("bf16", odd) == struct.pack("<4H", 0x7FC0, 0xFFFF, 0x7F80, 0xFF80)
    assert _native.encode("fp16", odd) == struct.pack("<4H", 0x7E00, 0x7E00, 0x7C00, 0xFC00)


@pytest.mark.parametrize("codec", BLOCKWISE)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_block_with_what_is_not_finite_is_nan_everywhere(codec: str, odd: float) -> None:
    values = np.ones(700, np.float32)
    values[300] = odd
    out = native_decode(codec, _native.encode(codec, values), 700)
    block = codec_named(codec).block
    start = 300 // block * block
    assert np.isnan(out[start : start + block]).all()
    assert np.isfinite(np.delete(out, range(start, start + block))).all()


@pytest.mark.parametrize("codec", BLOCKWISE)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-37])
def test_zero_blocks_and_tiny_ones_travel_as_zero_bytes(codec: str, value: float) -> None:
    block = np.full(256, value, np.float32)
    assert _native.encode(codec, block) == bytes(_native.encoded_size(codec, 256))


@pytest.mark.parametrize("codec", BLOCKWISE)
def test_the_largest_floats_stay_finite(codec: str) -> None:
    values = np.full(256, np.finfo(np.float32).max, np.float32)
    data = _native.encode(codec, values)
    assert data == encode(codec, values)
    assert np.isfinite(native_decode(codec, data, 256)).all()


def test_fp4_takes_the_nearest_power_of_two() -> None:
    values = np.array([64, 47, 48, 1.5, 1.49, 0.5, 0.49, -3, -2.9, 0], np.float32)
    expected = [64, 32, 64, 2, 1, 1, 0, -4, -2, 0]
    assert native_decode("fp4", _native.encode("fp4", values), 10).tolist() == expected


def test_sign_keeps_the_mean_magnitude() -> None:
    values = np.array([1, -2, 3, -6, -0.0], np.float32)
    out = native_decode("sign", _native.encode("sign", values), 5)
    assert np.sign(out).tolist() == [1, -1, 1, -1, -1]
    assert np.allclose(np.abs(out), 2.4, rtol=1e-6)


@pytest.mark.parametrize(
    ("codec", "rms"),
    [
        ("bf16", 0.0017),
        ("fp16", 0.00021),
        ("int8", 0.0073),
        ("int4", 0.099),
        ("fp4", 0.194),
        ("sign", 0.604),
    ],
)
def test_rounding_has_no_bias_and_a_bounded_error(codec: str, rms: float) -> None:
    values = np.random.default_rng(7).standard_normal(1 << 18, np.float32)
    out = native_decode(codec, _native.encode(codec, values), values.size)
    error = out.astype(np.float64) - values
    assert rms / 1.15 < error.std() < rms
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(values.size)


def test_what_cannot_be_is_refused() -> None:
    values = np.ones(10, np.float32)
    with pytest.raises(ConfigError, match="int8"):
        _native.encode("int9", values)
    with pytest.raises(ValueError, match="size"):
        _native.decode("int8", bytes(9), values)
    with pytest.raises(ValueError, match="size"):
        _native.encode_into("int8", values, np.empty(9, np.uint8))
    with pytest.raises(TypeError):  # a strided array would be copied, and the result lost
        _native.decode("fp32", bytes(20), values[::2])
    with pytest.raises(ValueError, match="aligned"):
        _native.encode_into("fp32", values, np.empty(44, np.uint8)[1:41])


# ---- top-k


@given(values_of_any_kind, st.sampled_from([1, 2, 64, 333, 4096]))
def test_native_top_k_makes_the_same_bytes(values: np.ndarray, k: int) -> None:
    data = topk.encode(values, k=k)
    assert len(data) == topk.encoded_size(values.size, k=k)
    assert data == topk_encode(values, k)
    out = np.zeros_like(values)
    topk.decode_add(data, out, k=k)
    assert same_bits(out, topk_decode(data, values.size, k) + np.float32(0))


@pytest.mark.parametrize("seed", range(5))
def test_top_k_of_whole_chunks(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_t(3, 3 * 4096 + 777).astype(np.float32)
    data = topk.encode(values)
    assert data == topk_encode(values, topk.K)
    assert len(data) == 3 * 116 + topk.encoded_size(777)
    out = np.ones_like(values)
    topk.decode_add(data, out, 0.25)
    survivors = np.flatnonzero(out != 1)
    for start in range(0, 3 * 4096, 4096):
        kept = survivors[(survivors >= start) & (survivors < start + 4096)]
        dropped = np.delete(values[start : start + 4096], kept - start)
        assert kept.size == 64
        assert np.abs(values[kept]).min() >= np.abs(dropped).max()
        assert len(np.unique(np.abs(out[kept] - 1))) <= 4  # two magnitudes, rounded around 1
    kept_error = np.linalg.norm(4 * (out - 1)[survivors] - values[survivors])
    assert kept_error < 0.35 * np.linalg.norm(values[survivors])


def test_top_k_refuses_what_no_encoder_makes() -> None:
    values = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    data = topk.encode(values)
    out = np.full(5000, 3, np.float32)
    twice = bytearray(data)
    twice[7:10] = twice[4:7]
    for bad in (data[:-1], data + b"\0", b"", bytes(twice)):
        with pytest.raises(ProtocolError):
            topk.decode_add(bad, out)
    with pytest.raises(ProtocolError):
        topk.decode_add(data, out, k=65)
    assert np.all(out == 3)
    topk.decode_add(topk.encode(np.full(5000, np.nan, np.float32)), out, 0.0)
    assert np.all(out == 3), "a weight of zero is an absence"
    for k in (0, 4097):
        with pytest.raises(ConfigError, match="4096"):
            topk.encode(values, k=k)
