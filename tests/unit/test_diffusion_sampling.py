"""Sampling, against mixtures of Gaussians, whose velocities and posteriors are known exactly."""

from __future__ import annotations

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from decentral.diffusion import routing
from decentral.diffusion.sampling import ExpertLostError, Experts, How, sample
from decentral.errors import ConfigError

MEANS, SPREAD = np.array([-3.0, 3.0]), 0.5
SHARES = np.array([[0.7, 0.3]], dtype=np.float32)
N = 4000


def moments(k: int, t: Any) -> tuple[Any, Any]:
    """Mean and variance of x_t in component k."""
    return (1 - t) * MEANS[k], (1 - t) ** 2 * SPREAD**2 + t**2


def velocity(k: int, x: Any, t: Any, classes: Any) -> Any:
    """E[ε − x_0 | x_t] of one Gaussian."""
    t = t[:, None]
    mean, variance = moments(k, t)
    away = (x - mean) / variance
    return (t * away - (MEANS[k] + (1 - t) * SPREAD**2 * away)).astype(np.float32)


def route(x: Any, t: Any, classes: Any) -> Any:
    t = t[:, None]
    density = []
    for k in range(2):
        mean, variance = moments(k, t)
        density.append(np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance))
    p = np.concatenate(density, axis=1) * SHARES
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


GAUSSIANS = Experts(velocity=velocity, route=route, prior=SHARES)


def noise(n: int = N) -> Any:
    return np.random.default_rng(0).standard_normal((n, 1), dtype=np.float32)


@pytest.mark.parametrize("way", ["full", "sticky", "threshold"])
def test_the_mixture_comes_out(way: str) -> None:
    x = sample(GAUSSIANS, noise(), how=How(way=way, steps=200))[:, 0]
    left = x < 0
    assert left.mean() == pytest.approx(0.7, abs=0.03)
    for side, mean in ((x[left], -3), (x[~left], 3)):
        assert side.mean() == pytest.approx(mean, abs=0.08)
        assert side.std() == pytest.approx(SPREAD, abs=0.08)


def test_top_1_without_classes_collapses_and_says_so() -> None:
    with pytest.warns(UserWarning, match="collapses"):
        x = sample(GAUSSIANS, noise(), how=How(way="top-1"))[:, 0]
    assert (x < 0).mean() > 0.85, "and not the larger component's 70 %"


def test_heun_errs_less_than_euler_at_as_many_calls() -> None:
    exact = sample(GAUSSIANS, noise(), how=How(way="full", steps=1000, solver="heun"))
    errors = {}
    for solver, steps in (("euler", 20), ("heun", 10)):
        x = sample(GAUSSIANS, noise(), how=How(way="full", steps=steps, solver=solver))
        errors[solver] = np.median(np.abs(x - exact))
    assert errors["heun"] < errors["euler"] / 2


def test_an_expert_is_asked_once_a_step_and_only_for_its_samples() -> None:
    asked: list[tuple[int, int]] = []

    def counting(k: int, x: Any, t: Any, classes: Any) -> Any:
        asked.append((k, len(x)))
        return velocity(k, x, t, classes)

    sample(dataclasses.replace(GAUSSIANS, velocity=counting), noise(100), how=How(steps=7))
    assert len(asked) == 14
    assert sum(n for _, n in asked) == 700, "sticky: one expert per sample"


def test_a_pool_changes_nothing_but_the_time() -> None:
    how = How(way="full", steps=5)
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(
            sample(GAUSSIANS, noise(), how=how, pool=pool), sample(GAUSSIANS, noise(), how=how)
        )


@pytest.mark.parametrize("way", ["full", "sticky"])
def test_an_expert_that_is_lost_on_the_way_is_masked(way: str) -> None:
    calls = 0

    def dying(k: int, x: Any, t: Any, classes: Any) -> Any:
        nonlocal calls
        calls += k == 0
        if k == 0 and calls > 3:
            raise ExpertLostError(0)
        return velocity(k, x, t, classes)

    x = sample(dataclasses.replace(GAUSSIANS, velocity=dying), noise(), how=How(way=way))[:, 0]
    assert x.mean() == pytest.approx(3, abs=0.25), "all go where the living expert leads"


def test_dead_experts_are_not_asked_and_the_last_one_may_not_die() -> None:
    x = sample(GAUSSIANS, noise(), how=How(way="full", dead=frozenset({0})))[:, 0]
    assert x.mean() == pytest.approx(3, abs=0.05)
    with pytest.raises(ConfigError, match="no expert is left"):
        sample(GAUSSIANS, noise(), how=How(dead=frozenset({0, 1})))


def test_sticky_draws_by_class() -> None:
    """Class 0 is all of expert 0, class 1 all of expert 1."""
    prior = np.eye(2, dtype=np.float32)
    by_class = Experts(velocity=velocity, route=route, prior=prior)
    classes = np.arange(N) % 2
    x = sample(by_class, noise(), classes)[:, 0]
    assert ((x > 0) == (classes == 1)).all()


def test_guidance_extrapolates_from_the_null_class() -> None:
    seen: list[Any] = []

    def linear(k: int, x: Any, t: Any, classes: Any) -> Any:
        seen.append(classes)
        return np.where(classes == 2, 1.0, 3.0).astype(np.float32)[:, None] * np.ones_like(x)

    experts = Experts(velocity=linear, route=route, prior=np.ones((2, 1), dtype=np.float32))
    start = noise(4)
    x = sample(experts, start, np.array([0, 1, 0, 1]), How(guidance=4.0, steps=10))
    np.testing.assert_allclose(x, start - (1 + 4 * (3 - 1)), rtol=1e-4, atol=1e-4)
    assert len(seen) == 10, "with and without the class in one call"


@pytest.mark.parametrize(
    ("experts", "classes", "how"),
    [
        (GAUSSIANS, np.zeros(N, dtype=np.int64), How()),
        (Experts(velocity=velocity, route=route, prior=np.eye(2, dtype=np.float32)), None, How()),
        (
            Experts(velocity=velocity, route=route, prior=np.eye(2, dtype=np.float32)),
            np.full(N, 2),
            How(),
        ),
        (GAUSSIANS, None, How(guidance=2.0)),
    ],
)
def test_what_does_not_fit_is_refused(experts: Experts, classes: Any, how: How) -> None:
    with pytest.raises(ConfigError):
        sample(experts, noise(), classes, how)


@pytest.mark.parametrize("options", [{"way": "psychic"}, {"solver": "rk4"}, {"steps": 0}], ids=str)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        How(**options)


# ------------------------------------------------------------------ routing


def test_weights() -> None:
    p = np.array([[0.5, 0.3, 0.16, 0.04]], dtype=np.float32)
    expected = {
        "full": [0.5, 0.3, 0.16, 0.04],
        "top-1": [1, 0, 0, 0],
        "top-2": [0.625, 0.375, 0, 0],
        "threshold": [0.5 / 0.96, 0.3 / 0.96, 0.16 / 0.96, 0],
    }
    for way, weights in expected.items():
        np.testing.assert_allclose(routing.weights(p, way), [weights], rtol=1e-5)


def test_who_had_shares_of_the_dead_only_asks_all_living() -> None:
    p = np.array([[1.0, 0, 0], [0.5, 0.25, 0.25]], dtype=np.float32)
    np.testing.assert_allclose(routing.without(p, {0}), [[0, 0.5, 0.5], [0, 0.5, 0.5]])


def test_draws_follow_the_prior_and_skip_what_has_none() -> None:
    p = np.tile(np.array([[0.2, 0.0, 0.8]], dtype=np.float32), (20_000, 1))
    shares = np.bincount(routing.drawn(p, 0), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.2, 0, 0.8], atol=0.015)
    assert (routing.drawn(p, 0) == routing.drawn(p, 0)).all()
    assert (routing.drawn(p, 0) != routing.drawn(p, 1)).any()


def test_counts() -> None:
    assignment, labels = np.array([0, 1, 1, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8)
    np.testing.assert_allclose(
        routing.counted(assignment, labels, 2, 3), [[0.5, 0.5], [0, 1], [0, 0]]
    )
    np.testing.assert_allclose(routing.counted(assignment, None, 2, 3), [[0.25, 0.75]])


def test_only_one_way_needs_caution() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert routing.caution("top-1", conditional=False)
        assert not routing.caution("top-1", conditional=True)
        assert not routing.caution("sticky", conditional=False)
