"""The numpy reference of the engine agrees with itself on every rank, and with exact sums."""

from __future__ import annotations

import numpy as np
import pytest

from decentral.collectives import reference
from decentral.collectives.codecs import ENGINE_CODECS, codec_named
from decentral.collectives.network import Network
from decentral.collectives.schedules import butterfly, ring

TOLERANCE = {
    "fp32": 1e-6,
    "bf16": 0.05,
    "fp16": 0.005,
    "int8": 0.15,
    "int4": 1.5,
    "fp4": 2.5,
    "sign": 4.0,
}
PLANNERS = {"ring": ring.plan, "butterfly": butterfly.plan}


@pytest.mark.parametrize("schedule", PLANNERS)
@pytest.mark.parametrize("codec", ENGINE_CODECS)
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_the_reference_agrees_with_itself_on_every_rank(
    schedule: str, codec: str, members: int
) -> None:
    info = codec_named(codec)
    if schedule == "ring" and not info.rides_ring:
        schedule = "butterfly"
    random = np.random.default_rng(members)
    sources = [random.standard_normal(3001, np.float32) for _ in range(members)]
    weights = [float(rank % 3) for rank in range(1, members + 1)]
    sources = [
        source if weight else np.full_like(source, np.nan)
        for source, weight in zip(sources, weights, strict=True)
    ]
    network = Network.uniform(members)
    plans = [PLANNERS[schedule](network, rank, 3001) for rank in range(members)]
    scale = float(np.float32(1 / sum(weights)))
    results = reference.execute(
        plans, sources, codec=codec, final_codec=info.final, weights=weights, scale=scale
    )
    for result in results[1:]:
        assert result.tobytes() == results[0].tobytes()
    exact = sum(
        weight * source.astype(np.float64)
        for weight, source in zip(weights, sources, strict=True)
        if weight
    ) / sum(weights)
    assert np.abs(results[0] - exact).max() < TOLERANCE[codec]
