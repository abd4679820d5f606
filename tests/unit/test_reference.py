"""The native codecs compute what the numpy reference says, bit for bit, and how far they round."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from decentral import _native
from decentral.collectives import CODECS, reference, ring
from decentral.collectives.reference import decode, encode

floats = hnp.arrays(np.float32, st.integers(0, 700), elements=st.floats(width=32, allow_nan=True))


@given(floats, st.sampled_from(CODECS))
def test_native_encodes_and_decodes_the_same_bytes(values, codec):
    data = encode(codec, values)
    assert _native.encode(codec, values) == data
    out = np.empty_like(values)
    _native.decode(codec, data, out)
    expected = decode(codec, data, values.size)
    assert np.array_equal(np.isnan(out), np.isnan(expected))
    assert np.array_equal(out, expected, equal_nan=True)


@given(floats.filter(lambda v: bool(np.isfinite(v).all())), st.sampled_from(CODECS))
def test_encoding_what_was_decoded_changes_little(values, codec):
    once = decode(codec, encode(codec, values), values.size)
    absmax = np.abs(values).max(initial=0.0).astype(np.float64)
    finite = np.isfinite(once)  # the largest floats round up to infinity in bf16
    error = np.abs(once.astype(np.float64) - values)[finite]
    bound = {"fp32": 0.0, "bf16": absmax / 256, "int8": absmax / 253 + 1.6e-36}[codec]
    assert np.all(error <= bound)
    if codec != "int8":
        assert encode(codec, once) == encode(codec, values)


def test_halves_round_to_even_in_bf16():
    ones = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32).view(np.float32)
    assert encode("bf16", ones) == struct.pack("<4H", 0x3F80, 0x3F82, 0x3F81, 0x7F80)


def test_nan_stays_nan_and_infinity_infinity_in_bf16():
    odd = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    assert encode("bf16", odd) == struct.pack("<4H", 0x7FC0, 0xFFFF, 0x7F80, 0xFF80)


def test_int8_blocks_are_on_their_own():
    values = np.zeros(600, np.float32)
    values[:256] = np.arange(256)
    values[300] = np.nan
    values[520:] = -2.54
    data = encode("int8", values)
    assert len(data) == 600 + 3 * 4
    out = decode("int8", data, 600)
    assert np.abs(out[:256] - values[:256]).max() <= 255 / 254
    assert np.isnan(out[256:512]).all(), "a block with a NaN is NaN everywhere"
    assert np.array_equal(out[512:520], np.zeros(8, np.float32))
    assert out[520] == np.float32(-2.54) / np.float32(127) * np.float32(127)


def test_zero_blocks_and_tiny_ones_decode_to_zero():
    for value in (0.0, -0.0, 1e-45, 1e-37):
        block = np.full(256, value, np.float32)
        assert encode("int8", block) == bytes(260)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_the_reference_agrees_with_itself_on_every_rank(codec, members):
    random = np.random.default_rng(members)
    sources = [random.standard_normal(3001, np.float32) for _ in range(members)]
    weights = [float(rank % 3) for rank in range(1, members + 1)]
    sources = [
        source if weight else np.full_like(source, np.nan)
        for source, weight in zip(sources, weights, strict=True)
    ]
    plans = [ring(members, rank, 3001) for rank in range(members)]
    scale = float(np.float32(1 / sum(weights)))
    results = reference.execute(plans, sources, codec=codec, weights=weights, scale=scale)
    for result in results[1:]:
        assert result.tobytes() == results[0].tobytes()
    exact = sum(
        weight * source.astype(np.float64)
        for weight, source in zip(weights, sources, strict=True)
        if weight
    ) / sum(weights)
    assert np.abs(results[0] - exact).max() < {"fp32": 1e-6, "bf16": 0.05, "int8": 0.15}[codec]
