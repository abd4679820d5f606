"""A diffusion run as a program: its graph, its bits, its isolation."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import numpy as np
import pytest

from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays
from decentral.dataflow.progress import kind_of
from decentral.diffusion.config import Config
from decentral.diffusion.dit import DiT
from decentral.diffusion.images import shapes
from decentral.diffusion.networks import MLP
from decentral.diffusion.program import DiffusionProgram
from decentral.diffusion.recipe import tiny
from decentral.errors import ConfigError

SMALL = Config(
    experts=2,
    latent=8,
    fine=8,
    batch=32,
    router_batch=8,
    rounds=3,
    steps=3,
    warmup=2,
    network=MLP(width=16, depth=1, condition=8),
    router=MLP(width=16, depth=1, condition=8),
)


def small(seed: int = 0, **options: Any) -> DiffusionProgram:
    return DiffusionProgram(shapes(300, 50), dataclasses.replace(SMALL, **options), seed)


def bits(states: dict[str, Arrays] | Any) -> dict[str, bytes]:
    return {
        f"{cell}/{name}": array.tobytes()
        for cell, state in states.items()
        for name, array in state.items()
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"peers": 2}, {"conditional": False}, {"clusters": "random"}, {"experts": 1}],
    ids=str,
)
def test_any_order_of_rounds_comes_to_the_same_bits(options: dict[str, Any]) -> None:
    program = small(**options)
    expected = bits(run_alone(program))
    for seed in range(4):
        assert bits(run_alone(program, random=Random(seed))) == expected
    assert bits(run_alone(small(**options))) == expected, "a fresh program, as on another peer"
    assert bits(run_alone(small(seed=1, **options))) != expected


def test_a_round_goes_on_from_what_was_committed() -> None:
    """A lease that moves: another process computes round 3 from the arrays of round 2 alone."""
    program = small()
    kept: dict[str, Arrays] = {}
    states = run_alone(
        program,
        on_round=lambda cell, round, done: kept.update({f"{cell}@{round}": done.tensors}),
    )
    again = small().compute(
        "expert/1", 3, kept["expert/1@2"], [kept["clusters@1"]], beat=lambda: None
    )
    assert bits({"": again.tensors}) == bits({"": states["expert/1"]})


def test_experts_are_isolated_by_the_graph() -> None:
    """Nothing that an expert has learnt is an input to another's rounds, however far away."""
    for program in (small(), small(peers=2)):
        for cell in program.cells:
            if kind_of(cell) not in ("expert", "part"):
                continue
            cluster = cell.partition("/")[2].partition(".")[0]
            sources = {one.cell for one in program.inputs(cell, 2)}
            own = {f"expert/{cluster}", f"part/{cluster}.0", f"part/{cluster}.1", "clusters"}
            assert sources <= own
        assert {one.cell for one in program.inputs("router", 2)} == {"clusters"}


def test_rounds_write_to_nothing_that_they_are_given() -> None:
    program = small(peers=2)
    states = {cell: dict(program.initial(cell)) for cell in program.cells}
    states["clusters"] = dict(program.compute("clusters", 1, states["clusters"], [], _beat).tensors)
    for state in states.values():
        for array in state.values():
            array.flags.writeable = False
    given = bits(states)
    inputs = [states["clusters"], states["expert/0"]]
    first = program.compute("part/0.0", 1, states["part/0.0"], inputs, _beat)
    second = program.compute("part/0.1", 1, states["part/0.1"], inputs, _beat)
    program.compute("expert/0", 1, states["expert/0"], [first.tensors, second.tensors], _beat)
    program.compute("router", 1, states["router"], [states["clusters"]], _beat)
    assert bits(states) == given


def test_parts_train_on_different_samples_and_meet_in_their_expert() -> None:
    program = small(peers=2)
    states = run_alone(program)
    theta = states["expert/0"]["param"]
    assert (states["part/0.0"]["param"] != states["part/0.1"]["param"]).any()
    assert np.abs(theta - program.initial("expert/0")["param"]).max() > 0
    assert (states["expert/0"]["ema"] != theta).any()


def test_losses_fall() -> None:
    losses: dict[str, list[float]] = {}
    run_alone(
        tiny(0), on_round=lambda cell, _, done: losses.setdefault(cell, []).append(done.loss or 0)
    )
    for cell in ("router", "expert/0", "expert/1", "expert/2", "expert/3"):
        assert losses[cell][-1] < 0.9 * losses[cell][0], cell


def test_given_features_decide_about_clusters() -> None:
    """Brightness alone, here: the brighter half goes to one expert."""
    images = shapes(300, 50)
    bright = images.train.reshape(300, -1).mean(axis=1, keepdims=True).astype(np.float32)
    config = dataclasses.replace(SMALL, fine=32)
    program = DiffusionProgram(images, config, 0, features=bright)
    found = program.compute("clusters", 1, program.initial("clusters"), [], _beat).tensors
    brighter = bright[:, 0] > np.median(bright)
    agree = (found["assignment"] == brighter).mean()
    assert max(agree, 1 - agree) > 0.9


def test_a_dit_learns_in_pixels() -> None:
    dit = DiT(width=32, depth=1, heads=2, patch=4)
    losses: dict[str, list[float]] = {}
    run_alone(
        small(latent=0, network=dit, steps=15, lr=3e-3),
        on_round=lambda cell, _, done: losses.setdefault(cell, []).append(done.loss or 0),
    )
    for cell in ("expert/0", "expert/1"):
        assert losses[cell][-1] < 0.9 * losses[cell][0]


def test_the_fingerprint_covers_config_data_features_and_seed() -> None:
    images = shapes(300, 50)
    features = np.zeros((300, 4), dtype=np.float32)
    made = {
        small().fingerprint,
        small(seed=1).fingerprint,
        small(lr=2e-3).fingerprint,
        DiffusionProgram(shapes(301, 50), SMALL, 0).fingerprint,
        DiffusionProgram(images, SMALL, 0, features=features).fingerprint,
        DiffusionProgram(images, SMALL, 0, features=features + 1).fingerprint,
    }
    assert len(made) == 6
    assert small().fingerprint == DiffusionProgram(images, SMALL, 0).fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"experts": 0},
        {"batch": 30, "experts": 4},
        {"clusters": "vibes"},
        {"class_dropout": 1.0},
        {"network": DiT(), "latent": 8},
        {"fine": 301},
        {"experts": 16, "fine": 8},
        {"latent": 145},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        small(**options)


def _beat() -> None:
    pass
