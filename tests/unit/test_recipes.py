"""Recipes: how they are found, what they promise, and the fingerprint that peers compare."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from decentral.baselines import data_parallel, ring_bytes, single
from decentral.errors import ConfigError
from decentral.fingerprint import dataset_fact, fingerprint
from decentral.recipes import Recipe, load
from decentral.recipes.gpt_model import GPT, GPTConfig
from decentral.schedule import Progress, cosine
from decentral.strategies import DiLoCo


def test_the_gpt_is_the_one_of_the_published_figures():
    task = load("gpt").build(0)
    assert sum(p.numel() for p in task.model.parameters()) == 117_056
    assert task.batch_size == 16 and task.dataset.context == 32
    assert task.strategy == DiLoCo(sync_every=15, outer_lr=0.7, outer_momentum=0.6)
    batch = torch.stack([task.dataset[i] for i in (0, len(task.dataset) - 1)])
    assert batch.shape == (2, 33) and task.tokens_of(batch) == 64
    # Untrained, it knows nothing of bytes: log 256 = 5.545.
    assert abs(task.evaluate(task.model) - 5.545) < 0.5
    assert task.evaluate(task.model) == task.evaluate(task.model)


def test_equal_seeds_build_equal_models():
    a, b, c = (load("gpt").build(seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_the_gpt_sees_no_later_byte():
    model = GPT(GPTConfig(layers=1)).eval()
    ids = torch.randint(256, (1, 32))
    changed = ids.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 256
    with torch.no_grad():
        a, b = model(ids), model(changed)
    assert torch.equal(a[0, :20], b[0, :20]) and not torch.equal(a[0, 20:], b[0, 20:])


def test_unknown_recipes_are_refused_with_what_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_recipes.py").write_text("def wrong():\n    return 3\n")
    for name, says in {
        "gtp": "no recipe 'gtp': use diffusion, dipaco, gpt, or module:function",
        "absent_module:f": "cannot be imported",
        "my_recipes:absent": "has no function 'absent'",
        "my_recipes:wrong": "gives a int, not a Recipe",
    }.items():
        with pytest.raises(ConfigError, match=says):
            load(name)


def test_a_recipe_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_recipe.py").write_text(
        "from decentral.recipes import Recipe\n"
        "def tiny():\n    return Recipe(name='tiny', version='3', build=lambda seed: None)\n"
    )
    assert load("own_recipe:tiny").version == "3"


def fingerprint_of(strategy=None, **options):
    return fingerprint(strategy or DiLoCo(), **options)


def test_the_fingerprint_is_the_same_where_nothing_differs():
    a, b = fingerprint_of(recipe="r"), fingerprint_of(recipe="r")
    assert a.digest == b.digest and len(a.digest) == 32
    assert a.difference(b.facts) == ""


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"tags": ("a", "b")}, "modules is a, b here and one there"),
        ({"strategy": DiLoCo(sync_every=7)}, "strategy.sync_every is 7 here and 100 there"),
        ({"recipe": "gpt"}, "recipe is gpt here"),
        ({"version": "2"}, "recipe.version"),
        ({"dataset": "97 samples"}, "dataset"),
        ({"seed": 1}, "seed is 1 here and 0 there"),
    ],
)
def test_a_mismatch_can_be_named(options, names):
    mine = fingerprint_of(**options)
    assert mine.digest != fingerprint_of().digest
    assert names in mine.difference(fingerprint_of().facts)


def test_a_dataset_speaks_for_itself():
    assert dataset_fact([1, 2]) == "2 samples"
    windows = load("gpt").build(0).dataset
    assert dataset_fact(windows) == f"{len(windows)} samples {windows.digest}"


def at(fraction: float | None) -> Progress:
    return Progress(tokens=0, rounds=0.0, fraction=fraction)


def test_cosine_warms_up_and_ends_at_its_floor():
    schedule = cosine(warmup=0.1, floor=0.2)
    assert 0 < schedule(at(0.0)) < 0.02
    assert schedule(at(0.05)) == pytest.approx(0.5)
    assert schedule(at(0.1)) == pytest.approx(1.0)
    assert schedule(at(0.55)) == pytest.approx(0.6)
    assert schedule(at(1.0)) == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="needs the run to have an end"):
        schedule(at(None))
    with pytest.raises(ConfigError, match="warmup"):
        cosine(warmup=1.0)


def test_baselines_count_tokens_and_bytes():
    recipe = dataclasses.replace(load("gpt"), name="short")
    assert isinstance(recipe, Recipe)
    seen: list[int] = []
    alone = single(recipe, 2, progress=lambda step, loss: seen.append(step))
    together = data_parallel(recipe, 2, peers=4)
    assert seen == [1, 2]
    assert (alone.tokens, together.tokens) == (2 * 16 * 32, 8 * 16 * 32)
    assert alone.bytes_per_peer == 0
    assert together.bytes_per_peer == 2 * ring_bytes(117_056, 4) == 2 * 6 * 117_056
    assert 2 < together.loss < 5.6
