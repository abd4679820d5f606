"""DiLoCo's options and arithmetic, against the paper's formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from decentral.errors import ConfigError
from decentral.state import Layout, Meta, aligned_zeros, seal
from decentral.strategies import DiLoCo
from decentral.strategies.base import rank_weights
from decentral.types import Contribution

LAYOUT = Layout.of([("w", "trainable", (40,)), ("mean", "buffer", (3,)), ("f", "frozen", (5,))])


@pytest.mark.parametrize(
    "options",
    [
        {"sync_every": 0},
        {"sync_every": 1.5},
        {"outer_lr": 0.0},
        {"outer_momentum": 1.0},
        {"outer_momentum": float("nan")},
        {"codec": "int7"},
        {"weights": "loss"},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DiLoCo(**options)


def test_unknown_options_raise():
    with pytest.raises(TypeError, match="sync_evry"):
        DiLoCo(sync_evry=10)


def test_outer_step_is_nesterov_on_parameters_and_plain_on_buffers():
    rng = np.random.default_rng(1)
    strategy = DiLoCo(outer_lr=0.7, outer_momentum=0.9)
    theta, momentum = aligned_zeros(LAYOUT.total), aligned_zeros(LAYOUT.trainable)
    theta[:] = rng.standard_normal(LAYOUT.total)
    held = seal(LAYOUT, theta, momentum, Meta())
    expected, b = theta.astype(np.float64), np.zeros(LAYOUT.trainable)
    for _ in range(3):
        delta = rng.standard_normal(LAYOUT.exchanged).astype(np.float32)
        theta, momentum = aligned_zeros(LAYOUT.total), aligned_zeros(LAYOUT.trainable)
        strategy.outer_step(LAYOUT, held, delta, theta, momentum)
        held = seal(LAYOUT, theta, momentum, held.meta.after(10))
        d = delta[: LAYOUT.trainable]
        b = 0.9 * b + d
        expected[: LAYOUT.trainable] -= 0.7 * (d + 0.9 * b)
        expected[LAYOUT.trainable : LAYOUT.exchanged] -= delta[LAYOUT.trainable :]
    np.testing.assert_allclose(held.theta, expected, rtol=1e-5, atol=1e-5)
    assert held.round == 3 and held.meta.tokens == 30


def test_local_sgd_is_a_special_case():
    """η = 1, μ = 0: θ becomes the average of the θm."""
    theta, momentum = aligned_zeros(LAYOUT.total), aligned_zeros(LAYOUT.trainable)
    theta[:] = 3.0
    held = seal(LAYOUT, theta, momentum, Meta())
    delta = np.full(LAYOUT.exchanged, 0.5, np.float32)
    theta, momentum = aligned_zeros(LAYOUT.total), aligned_zeros(LAYOUT.trainable)
    DiLoCo(outer_lr=1.0, outer_momentum=0.0).outer_step(LAYOUT, held, delta, theta, momentum)
    assert (theta[: LAYOUT.exchanged] == 2.5).all()
    assert (theta[LAYOUT.exchanged :] == 3.0).all(), "frozen parameters stay"


def test_weights_in_rank_order():
    contributions = [Contribution(peer="b", tokens=30), Contribution(peer="a", tokens=10)]
    assert rank_weights(DiLoCo(), ["a", "x", "b"], contributions) == (10.0, 0.0, 30.0)
    equal = DiLoCo(weights="equal")
    assert rank_weights(equal, ["a", "x", "b"], contributions) == (1.0, 0.0, 1.0)


def test_contributions_without_tokens_count_the_same():
    contributions = [Contribution(peer="b", tokens=0), Contribution(peer="a", tokens=0)]
    assert rank_weights(DiLoCo(), ["a", "b", "x"], contributions) == (1.0, 1.0, 0.0)


def test_who_has_nothing_to_add_pulls_nothing_back():
    """A peer that another module holds up offers no token: its Δ is zero, and so is its weight."""
    contributions = [Contribution(peer="b", tokens=0), Contribution(peer="a", tokens=10)]
    for strategy in (DiLoCo(), DiLoCo(weights="equal")):
        assert rank_weights(strategy, ["a", "b"], contributions)[1] == 0.0


def test_options_are_what_the_fingerprint_sees():
    assert DiLoCo(sync_every=7).options() == {
        "sync_every": 7,
        "outer_lr": 0.7,
        "outer_momentum": 0.9,
        "codec": "fp32",
        "error_feedback": None,
        "weights": "tokens",
        "min_contributors": 0,
        "grace_s": 0.0,
        "staleness_power": 0.5,
        "steps_alone": 0,
    }
